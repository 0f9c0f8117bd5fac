//! Arguments of `dunlin export`.

use super::{Shared, duration};
use clap::{Args, Subcommand};
use dunlin_protocol::id::{Family, RolloutId};
use jiff::Timestamp;
use std::path::PathBuf;
use std::time::Duration;

/// `dunlin export`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: the last week for pandas or DuckDB\n  dunlin export windows --family digits --last 7d --out windows.parquet"
)]
pub struct DataArgs {
    /// Which server, as whom.
    #[command(flatten)]
    pub shared: Shared,
    /// What to export.
    #[command(subcommand)]
    pub action: DataAction,
}

/// What `dunlin export` writes.
#[derive(Debug, Subcommand)]
pub enum DataAction {
    /// Write windows as Parquet, one row a window
    #[command(
        after_help = "Example:\n  dunlin export windows --family digits --last 7d --out windows.parquet"
    )]
    Windows(SelectionArgs),
    /// Write histograms as Parquet, one row a window and feature, confidence or entropy
    #[command(
        after_help = "Example:\n  dunlin export histograms --family digits --version 2 --out histograms.parquet"
    )]
    Histograms(SelectionArgs),
    /// Write reference profiles as Parquet, one row a bin: what the histograms' counts stand for
    #[command(
        after_help = "Example:\n  dunlin export reference --family digits --out reference.parquet"
    )]
    Reference(SelectionArgs),
}

/// Which rows, and where to.
#[derive(Debug, Args)]
pub struct SelectionArgs {
    /// Model family
    #[arg(long)]
    pub family: Family,
    /// Only this version
    #[arg(long, value_name = "N")]
    pub version: Option<u64>,
    /// Only this segment, such as one site or camera
    #[arg(long, value_name = "NAME")]
    pub segment: Option<String>,
    /// Only a rollout's canaries or controls
    #[arg(long, value_name = "canary|control", value_parser = ["canary", "control"])]
    pub cohort: Option<String>,
    /// The rollout that says who they are (default: the newest of the family)
    #[arg(long, value_name = "ID", requires = "cohort")]
    pub rollout: Option<RolloutId>,
    /// Only windows of the last so long
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with = "from")]
    pub last: Option<Duration>,
    /// Only windows that begin at or after this, such as 2026-03-01T00:00:00Z
    #[arg(long, value_name = "TIME")]
    pub from: Option<Timestamp>,
    /// Only windows that end at or before this
    #[arg(long, value_name = "TIME")]
    pub until: Option<Timestamp>,
    /// Where to write; it is the old file or the whole new one
    #[arg(short, long, value_name = "FILE")]
    pub out: PathBuf,
}
