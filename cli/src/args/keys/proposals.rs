//! Arguments of what proposes new metadata: roots, and targets that delegate.

use crate::args::duration;
use clap::{Args, Subcommand};
use dunlin_protocol::id::Family;
use std::path::PathBuf;
use std::time::Duration;

/// What `dunlin keys root` does.
#[derive(Debug, Subcommand)]
pub enum RootAction {
    /// Propose the first root from public keys
    #[command(after_help = "\
Example:
  dunlin keys root new --root alice.pub --root bob.pub --root carol.pub --root-threshold 2 \\
    --targets alice.pub --targets bob.pub --targets-threshold 2 --server-keys server.json --out root.request")]
    New(RootNewArgs),
    /// Propose the next root: keys added or removed, thresholds, the server's keys, a new expiry
    ///
    /// Without any change but --expires-in it renews the root.
    #[command(after_help = "\
Examples:
  dunlin keys root edit --dir keys --add-targets dave.pub --targets-threshold 3 --out root.request
  dunlin keys root edit --dir keys --server-keys next-server.json --out root.request")]
    Edit(RootEditArgs),
}

/// `dunlin keys root new`.
#[derive(Debug, Args)]
pub struct RootNewArgs {
    /// Public key that may sign roots; may be given again
    #[arg(long = "root", value_name = "PUB", required = true)]
    pub root: Vec<PathBuf>,
    /// Root keys that must sign [default: more than half]
    #[arg(long, value_name = "N")]
    pub root_threshold: Option<u64>,
    /// Public key that may sign what is installed; may be given again
    #[arg(long = "targets", value_name = "PUB", required = true)]
    pub targets: Vec<PathBuf>,
    /// Targets keys that must sign [default: more than half]
    #[arg(long, value_name = "N")]
    pub targets_threshold: Option<u64>,
    /// JSON with the server's keys instead of asking the server
    #[arg(long, value_name = "FILE")]
    pub server_keys: Option<PathBuf>,
    /// Validity
    #[arg(long, default_value = "730d", value_parser = duration)]
    pub expires_in: Duration,
    /// Where to write the signing request
    #[arg(long, value_name = "REQUEST")]
    pub out: PathBuf,
}

/// What every proposal of a next root has.
#[derive(Debug, Args)]
pub struct NextRoot {
    /// Folder with the roots so far (1.root.json, 2.root.json, …)
    #[arg(long, default_value = "keys", value_name = "DIR")]
    pub dir: PathBuf,
    /// Root keys that must sign from now on
    #[arg(long, value_name = "N")]
    pub root_threshold: Option<u64>,
    /// Targets keys that must sign from now on
    #[arg(long, value_name = "N")]
    pub targets_threshold: Option<u64>,
    /// Validity of the new root
    #[arg(long, default_value = "730d", value_parser = duration)]
    pub expires_in: Duration,
    /// Where to write the signing request
    #[arg(long, value_name = "REQUEST")]
    pub out: PathBuf,
}

/// `dunlin keys root edit`.
#[derive(Debug, Args)]
pub struct RootEditArgs {
    /// The proposal.
    #[command(flatten)]
    pub next: NextRoot,
    /// Public key that may sign roots from now on; may be given again
    #[arg(long = "add-root", value_name = "PUB")]
    pub add_root: Vec<PathBuf>,
    /// Key (name or id) that may no longer sign roots; may be given again
    #[arg(long = "remove-root", value_name = "KEY")]
    pub remove_root: Vec<String>,
    /// Public key that may sign what is installed from now on; may be given again
    #[arg(long = "add-targets", value_name = "PUB")]
    pub add_targets: Vec<PathBuf>,
    /// Key (name or id) that may no longer sign what is installed; may be given again
    #[arg(long = "remove-targets", value_name = "KEY")]
    pub remove_targets: Vec<String>,
    /// JSON with the server's new keys (from: dunlin keys server rotate)
    #[arg(long, value_name = "FILE")]
    pub server_keys: Option<PathBuf>,
}

/// `dunlin keys rotate`.
#[derive(Debug, Args)]
pub struct RotateArgs {
    /// The key to replace: its holder's name, or its id
    #[arg(value_name = "KEY")]
    pub old: String,
    /// The new public key
    #[arg(value_name = "PUB")]
    pub new: PathBuf,
    /// The proposal.
    #[command(flatten)]
    pub next: NextRoot,
}

/// `dunlin keys revoke`.
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// The key to remove from every role: its holder's name, or its id
    #[arg(value_name = "KEY")]
    pub key: String,
    /// Public key that takes its seats
    #[arg(long, value_name = "PUB")]
    pub replace_with: Option<PathBuf>,
    /// The proposal.
    #[command(flatten)]
    pub next: NextRoot,
}

/// What every proposal of next targets metadata has.
#[derive(Debug, Args)]
pub struct NextTargets {
    /// Folder with the root metadata you trust
    #[arg(long, default_value = "keys", value_name = "DIR")]
    pub dir: PathBuf,
    /// Targets metadata to build on instead of the server's newest
    #[arg(long, value_name = "FILE")]
    pub targets: Option<PathBuf>,
    /// Start with no earlier targets metadata: the fleet's first
    #[arg(long, conflicts_with = "targets")]
    pub first: bool,
    /// Validity of the new metadata
    #[arg(long, default_value = "365d", value_parser = duration)]
    pub expires_in: Duration,
    /// Where to write the signing request
    #[arg(long, value_name = "REQUEST")]
    pub out: PathBuf,
}

/// `dunlin keys delegate`.
#[derive(Debug, Args)]
pub struct DelegateArgs {
    /// Model family to hand on
    #[arg(long)]
    pub family: Family,
    /// Public key of the team; may be given again
    #[arg(long = "to", value_name = "PUB", required = true)]
    pub to: Vec<PathBuf>,
    /// Keys of the team that must sign [default: more than half]
    #[arg(long, value_name = "N")]
    pub threshold: Option<u64>,
    /// Paths handed on, all of the family; `*` matches no `/`; may be given again [default: FAMILY/*/*]
    #[arg(long = "paths", value_name = "PATTERN")]
    pub paths: Vec<String>,
    /// Name of the role [default: the family's]
    #[arg(long, value_name = "ROLE")]
    pub role: Option<String>,
    /// Ask roles delegated to later as well, for paths that this one does not list
    #[arg(long)]
    pub not_terminating: bool,
    /// The proposal.
    #[command(flatten)]
    pub next: NextTargets,
}

/// `dunlin keys undelegate`.
#[derive(Debug, Args)]
pub struct UndelegateArgs {
    /// The role
    pub role: String,
    /// The proposal.
    #[command(flatten)]
    pub next: NextTargets,
}
