//! Arguments of `dunlin capture`.

use super::{Shared, duration};
use clap::{Args, Subcommand};
use dunlin_protocol::id::{DeviceId, Digest, Family};
use std::path::PathBuf;
use std::time::Duration;

/// `dunlin capture`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example: from a key to rows
  dunlin capture keygen --out capture.key       # the public key goes into bundle.toml, [capture]
  dunlin capture request edge-07 --reason \"drift on line 3\"
  dunlin capture get --key capture.key -o samples.ndjson")]
pub struct CaptureArgs {
    /// Which server, as whom.
    #[command(flatten)]
    pub shared: Shared,
    /// What to do.
    #[command(subcommand)]
    pub action: CaptureAction,
}

/// What `dunlin capture` does.
#[derive(Debug, Subcommand)]
pub enum CaptureAction {
    /// Make the key pair that samples are sealed to; prints the public key
    ///
    /// The private key is X25519 in PKCS#8 PEM, as `openssl genpkey -algorithm X25519` makes it, mode
    /// 0600. It belongs where samples are read, never on the fleet server. Without it nobody can open
    /// what devices keep: keep a copy.
    #[command(after_help = "Example:\n  dunlin capture keygen --out capture.key")]
    Keygen {
        /// Where to write the private key; must not be there yet
        #[arg(short, long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Print the public key that belongs to a private one
    #[command(after_help = "Example:\n  dunlin capture public --key capture.key")]
    Public {
        /// The private key
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Ask devices for the samples that they keep
    ///
    /// Devices that are away are asked when they come back. What a device has sent goes from its disk.
    #[command(after_help = "\
Examples:
  dunlin capture request edge-07 edge-08 --reason \"drift on line 3\"
  dunlin capture request --family digits --model-version 3 --reason \"retraining\"")]
    Request(CaptureRequestArgs),
    /// List requests and where their devices stand
    #[command(after_help = "Example:\n  dunlin capture requests")]
    Requests,
    /// End a request for devices that have not answered it
    #[command(after_help = "Example:\n  dunlin capture cancel 4")]
    Cancel {
        /// The request's number
        request: u64,
    },
    /// List sealed batches on the server
    #[command(after_help = "Example:\n  dunlin capture list --device edge-07")]
    List {
        /// Which.
        #[command(flatten)]
        which: WhichCaptures,
    },
    /// Fetch sealed batches and open them here: a JSON object a sample and line, or a table if FILE ends
    /// in .parquet
    ///
    /// Without --key they are written as they are, one file each, for `decrypt` elsewhere.
    #[command(after_help = "\
Examples:
  dunlin capture get --family digits --key capture.key -o samples.parquet
  dunlin capture get --request 4 --sealed batches    # then, where the key is: dunlin capture decrypt")]
    Get {
        /// Which.
        #[command(flatten)]
        which: WhichCaptures,
        /// Private key that opens them
        #[arg(long, value_name = "FILE", required_unless_present = "sealed")]
        key: Option<PathBuf>,
        /// Where to write rows [default: standard output]
        #[arg(short, long, value_name = "FILE", requires = "key")]
        out: Option<PathBuf>,
        /// Folder for sealed batches, NAME.sealed each
        #[arg(long, value_name = "DIR", conflicts_with_all = ["key", "out"])]
        sealed: Option<PathBuf>,
    },
    /// Open sealed batches without any server; rows as with `get`
    #[command(
        after_help = "Example:\n  dunlin capture decrypt --key capture.key batches/*.sealed -o samples.ndjson"
    )]
    Decrypt {
        /// Sealed batches
        #[arg(value_name = "FILE", required = true)]
        batches: Vec<PathBuf>,
        /// Private key that opens them
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// Where to write rows [default: standard output]
        #[arg(short, long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Delete a sealed batch from the server
    #[command(
        after_help = "Example:\n  dunlin capture delete 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    )]
    Delete {
        /// SHA-256 of the batch, as `list` shows it
        sha256: Digest,
    },
    /// Show who asked for samples, sent, fetched and deleted them
    #[command(after_help = "Example:\n  dunlin capture audit")]
    Audit,
}

/// `dunlin capture request`.
#[derive(Debug, Args)]
pub struct CaptureRequestArgs {
    /// Devices; without any, all that run --family
    #[arg(value_name = "DEVICE", required_unless_present = "family")]
    pub devices: Vec<DeviceId>,
    /// Samples of this family only
    #[arg(long)]
    pub family: Option<Family>,
    /// Samples of this version only
    #[arg(long, value_name = "N")]
    pub model_version: Option<u64>,
    /// Why, for the audit log
    #[arg(long)]
    pub reason: String,
    /// How long devices that are away are waited for
    #[arg(long, default_value = "7d", value_parser = duration)]
    pub expires_in: Duration,
}

/// Which batches.
#[derive(Debug, Default, Args)]
pub struct WhichCaptures {
    /// That answered this request
    #[arg(long, value_name = "N")]
    pub request: Option<u64>,
    /// Of this device
    #[arg(long)]
    pub device: Option<DeviceId>,
    /// Of this family
    #[arg(long)]
    pub family: Option<Family>,
    /// Of this version
    #[arg(long, value_name = "N")]
    pub model_version: Option<u64>,
}
