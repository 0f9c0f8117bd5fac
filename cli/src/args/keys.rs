//! Arguments of `dunlin keys`.

use super::{Shared, duration};
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

/// `dunlin keys`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  dunlin keys init --dir keys --targets-threshold 2 --targets-keys 3"
)]
pub struct KeysArgs {
    /// Which server, as whom.
    #[command(flatten)]
    pub shared: Shared,
    /// What to do.
    #[command(subcommand)]
    pub action: KeysAction,
}

/// What `dunlin keys` does.
#[derive(Debug, Subcommand)]
pub enum KeysAction {
    /// Make root and targets keys and the first root metadata
    ///
    /// Run it on a machine that you trust, best one without a network (give the server's public keys
    /// with --server-keys then). Afterwards move each private key to its holder: whoever holds a
    /// threshold of targets keys decides what the fleet runs.
    #[command(after_help = "\
Examples:
  dunlin keys init --dir keys
  dunlin keys init --dir keys --server-keys fleet.json   # from: GET /api/v1/fleet")]
    Init {
        /// New folder for the keys
        #[arg(long, default_value = "keys")]
        dir: PathBuf,
        /// Root keys that must sign a new root
        #[arg(long, default_value_t = 2)]
        root_threshold: u32,
        /// Root keys to make
        #[arg(long, default_value_t = 3)]
        root_keys: u32,
        /// Targets keys that must sign what may be installed
        #[arg(long, default_value_t = 2)]
        targets_threshold: u32,
        /// Targets keys to make
        #[arg(long, default_value_t = 3)]
        targets_keys: u32,
        /// Validity of the root metadata
        #[arg(long, default_value = "730d", value_parser = duration)]
        expires_in: Duration,
        /// JSON with the server's `online_keys` instead of asking the server
        #[arg(long, value_name = "FILE")]
        server_keys: Option<PathBuf>,
    },
    /// Show which keys a folder holds and what root says of them
    #[command(after_help = "Example:\n  dunlin keys show --dir keys")]
    Show {
        /// The key folder
        #[arg(long, default_value = "keys")]
        dir: PathBuf,
    },
    /// Give the server the root metadata that it does not have yet
    #[command(after_help = "Example:\n  dunlin keys upload-root --dir keys")]
    UploadRoot {
        /// The key folder
        #[arg(long, default_value = "keys")]
        dir: PathBuf,
    },
}
