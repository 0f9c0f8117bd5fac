//! Arguments of `dunlin token` and `dunlin device`.

use super::{Shared, duration, label};
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

/// `dunlin token`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  dunlin token create --keys keys --uses 12 --label site=harbour"
)]
pub struct TokenArgs {
    /// Which server, as whom.
    #[command(flatten)]
    pub shared: Shared,
    /// What to do.
    #[command(subcommand)]
    pub action: TokenAction,
}

/// What `dunlin token` does.
#[derive(Debug, Subcommand)]
pub enum TokenAction {
    /// Issue a claim token, sealed with the hashes of the fleet CA and of your own root metadata
    #[command(
        after_help = "Example:\n  dunlin token create --keys keys --uses 12 --expires-in 2h > claim"
    )]
    Create {
        /// Folder with your own 1.root.json: the server's copy is never believed
        #[arg(long, value_name = "DIR", default_value = "keys")]
        keys: PathBuf,
        /// Devices that may enrol with it
        #[arg(long, default_value_t = 1)]
        uses: u32,
        /// Validity
        #[arg(long, default_value = "24h", value_parser = duration)]
        expires_in: Duration,
        /// Label that its devices get; may be given again
        #[arg(long = "label", value_name = "K=V", value_parser = label)]
        labels: Vec<(String, String)>,
    },
    /// List claim tokens that are left
    #[command(after_help = "Example:\n  dunlin token list")]
    List,
    /// Withdraw a claim token; devices enrolled with it stay
    #[command(after_help = "Example:\n  dunlin token revoke 7f3a")]
    Revoke {
        /// Its id, as `dunlin token list` shows it
        id: String,
    },
}

/// `dunlin device`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  dunlin device list --label site=harbour")]
pub struct DeviceArgs {
    /// Which server, as whom.
    #[command(flatten)]
    pub shared: Shared,
    /// What to do.
    #[command(subcommand)]
    pub action: DeviceAction,
}

/// What `dunlin device` does.
#[derive(Debug, Subcommand)]
pub enum DeviceAction {
    /// List devices
    #[command(after_help = "Example:\n  dunlin device list --online --family digits")]
    List {
        /// Only with this label; may be given again
        #[arg(long = "label", value_name = "K=V", value_parser = label)]
        labels: Vec<(String, String)>,
        /// Only connected ones
        #[arg(long)]
        online: bool,
        /// Only those that run this family
        #[arg(long)]
        family: Option<String>,
        /// Only those that run this version of --family
        #[arg(long, value_name = "N", requires = "family")]
        version: Option<u64>,
    },
    /// Show one device
    #[command(after_help = "Example:\n  dunlin device show edge-07")]
    Show {
        /// Its id
        device: String,
    },
    /// Shut a device out until it is enrolled again: its connection drops, its certificate is refused
    #[command(after_help = "Example:\n  dunlin device revoke edge-07")]
    Revoke {
        /// Its id
        device: String,
    },
    /// Pin a device to a published version by hand
    #[command(after_help = "Example:\n  dunlin device pin edge-07 digits 2")]
    Pin {
        /// Its id
        device: String,
        /// Model family
        family: String,
        /// Version
        version: u64,
    },
}
