//! Arguments of `dunlin consumer`.

use super::Shared;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// `dunlin consumer`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  dunlin consumer add grafana --channels metrics,event")]
pub struct ConsumerArgs {
    /// Which server, as whom.
    #[command(flatten)]
    pub shared: Shared,
    /// What to do.
    #[command(subcommand)]
    pub action: ConsumerAction,
}

/// What `dunlin consumer` does.
#[derive(Debug, Subcommand)]
pub enum ConsumerAction {
    /// Give a program of yours a certificate with which it reads what devices send, and nothing else
    ///
    /// Writes ca.pem, client.pem and client.key (mode 0600) and prints where to connect and what to
    /// subscribe to. It can publish nothing. The name is given once: when a consumer was revoked, the
    /// next one needs another name.
    #[command(after_help = "\
Examples:
  dunlin consumer add grafana
  dunlin consumer add quay --channels metrics,event --devices edge-01,edge-02 --out quay
  dunlin consumer add historian --csr historian.csr   # the key was made elsewhere and stays there")]
    Add {
        /// Its name
        name: String,
        /// What it may read: presence, reported, metrics, sketch, event, log
        #[arg(
            long,
            value_name = "CHANNEL,…",
            value_delimiter = ',',
            default_value = "metrics"
        )]
        channels: Vec<String>,
        /// Whose; all devices if not given, also those to come
        #[arg(long, value_name = "DEVICE,…", value_delimiter = ',')]
        devices: Vec<String>,
        /// The key and where its files go.
        #[command(flatten)]
        files: ConsumerFiles,
    },
    /// Give a consumer another certificate before its own ends; the one before counts no more
    #[command(after_help = "Example:\n  dunlin consumer renew grafana")]
    Renew {
        /// Its name
        name: String,
        /// The key and where its files go.
        #[command(flatten)]
        files: ConsumerFiles,
    },
    /// List consumers, the revoked too
    #[command(after_help = "Example:\n  dunlin consumer list")]
    List,
    /// Shut a consumer out for good: its connection drops, its certificate is refused
    #[command(after_help = "Example:\n  dunlin consumer revoke grafana")]
    Revoke {
        /// Its name
        name: String,
    },
}

/// The key of a consumer and where its files go.
#[derive(Debug, Args)]
pub struct ConsumerFiles {
    /// Folder for its files [default: its name]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Certificate signing request of a key made elsewhere, PEM; without it a key is made
    #[arg(long, value_name = "FILE")]
    pub csr: Option<PathBuf>,
}
