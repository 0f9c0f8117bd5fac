//! Arguments of `dunlin keys`.

mod proposals;

pub use proposals::{
    DelegateArgs, NextRoot, NextTargets, RevokeArgs, RootAction, RootEditArgs, RootNewArgs,
    RotateArgs, UndelegateArgs,
};

use super::{Shared, duration};
use crate::keys::passphrase::Source;
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

/// `dunlin keys`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dunlin keys init --dir keys                          # all keys in one folder: the quick way
  dunlin keys generate alice --dir alice               # or each on its holder's machine:
  dunlin keys root new --root alice.pub --root bob.pub --targets alice.pub --out root.request
  dunlin keys sign root.request --key alice/alice.pem
  dunlin keys combine root.request root.request.alice.sig root.request.bob.sig --dir keys")]
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
    /// Make root and targets keys and the first root metadata, all in one folder
    ///
    /// Run it on a machine that you trust, best one without a network (give the server's public keys
    /// with --server-keys then). Afterwards move each private key to its holder: whoever holds a
    /// threshold of targets keys decides what the fleet runs. Without --encrypt the keys are plain files;
    /// `dunlin keys generate` makes each where it stays.
    #[command(after_help = "\
Examples:
  dunlin keys init --dir keys
  dunlin keys init --dir keys --server-keys fleet.json   # from: GET /api/v1/fleet")]
    Init(InitArgs),
    /// Make one key on its holder's machine: NAME.pem, which stays, and NAME.pub to hand over
    ///
    /// The private key is PKCS #8 PEM, encrypted with scrypt and AES-256 (OpenSSL reads it: openssl
    /// pkey -in NAME.pem). The passphrase is asked twice on the terminal, or read from a file or a file
    /// descriptor; it is never an argument.
    #[command(after_help = "\
Examples:
  dunlin keys generate alice --dir alice
  dunlin keys generate build-bot --passphrase-file /run/secrets/passphrase")]
    Generate(GenerateArgs),
    /// Take over an Ed25519 key that was made elsewhere, such as with OpenSSL
    #[command(after_help = "\
Example:
  openssl genpkey -algorithm ed25519 -out made.pem
  dunlin keys import made.pem --name alice --dir alice")]
    Import(ImportArgs),
    /// Write the public half of a private key once more
    #[command(after_help = "Example:\n  dunlin keys public alice.pem")]
    Public(PublicArgs),
    /// Change, set or remove the passphrase of a private key
    #[command(after_help = "\
Examples:
  dunlin keys passphrase keys/root-1.pem
  dunlin keys passphrase alice.pem --new-passphrase-file new --passphrase-file old")]
    Passphrase(PassphraseArgs),
    /// Propose the first or the next root: who may sign what, until when
    #[command(
        subcommand,
        after_help = "Example:\n  dunlin keys root edit --dir keys --expires-in 730d --out root.request"
    )]
    Root(RootAction),
    /// Propose the next root with a new key in every seat of an old one
    #[command(
        after_help = "Example:\n  dunlin keys rotate bob bob-2027.pub --dir keys --out root.request"
    )]
    Rotate(RotateArgs),
    /// Propose the next root without a key that is lost or stolen
    #[command(after_help = "\
Examples:
  dunlin keys revoke carol --dir keys --out root.request
  dunlin keys revoke 0a1b2c3d --replace-with dave.pub --dir keys --out root.request")]
    Revoke(RevokeArgs),
    /// Show what a signing request would change, and whose signatures it still needs
    #[command(after_help = "Example:\n  dunlin keys inspect root.request")]
    Inspect {
        /// The request
        #[arg(value_name = "REQUEST")]
        request: PathBuf,
    },
    /// Show what a request changes, ask, and sign it
    ///
    /// Needs no network. What is shown is read from the very bytes that are signed. The signature goes
    /// to a file of its own, to be brought back to whoever combines them.
    #[command(after_help = "\
Examples:
  dunlin keys sign root.request --key alice.pem --dir keys
  dunlin keys sign targets.request --key bob.pem --dir keys --yes --passphrase-file p")]
    Sign(SignRequestArgs),
    /// Merge signature files into a request; once there are enough, write the metadata
    ///
    /// Refuses signatures by keys that are not asked, and over other content. Exit status 1 while
    /// signatures are missing: it says how many, and whose would count.
    #[command(
        visible_alias = "add-signature",
        after_help = "Example:\n  dunlin keys combine root.request root.request.alice.sig root.request.bob.sig --dir keys"
    )]
    Combine(CombineArgs),
    /// Hand a model family to a team: from then on its keys sign the family's versions
    ///
    /// Proposes the next targets metadata; the holders of the targets keys sign them, as every list.
    #[command(after_help = "\
Example:
  dunlin keys delegate --family vision --to dana.pub --to erik.pub --threshold 1 --dir keys --out targets.request
then, as every list of targets: dunlin keys sign, combine; dunlin bundle publish --targets 4.targets.json
and the team: dunlin bundle sign packed --role vision --keys keys --request vision.request")]
    Delegate(DelegateArgs),
    /// Take a family back from a team
    #[command(
        after_help = "Example:\n  dunlin keys undelegate vision --dir keys --out targets.request"
    )]
    Undelegate(UndelegateArgs),
    /// Show or renew the keys with which the server signs snapshot and timestamp
    #[command(
        subcommand,
        after_help = "Example:\n  dunlin keys server rotate --out next-server.json"
    )]
    Server(ServerAction),
    /// Show each role's version, expiry and thresholds, and warn; for use in cron
    ///
    /// Exit status 0: all is well. 2: something expires within --warn-days (or the server does not sign
    /// anew). 3: something has expired.
    #[command(after_help = "\
Examples:
  dunlin keys status                     # of the fleet server
  dunlin keys status --dir keys          # of a folder's root, and of the fleet server
  dunlin keys status --dir keys --offline --warn-days 60 || mail -s 'keys' ops@example.org")]
    Status(StatusArgs),
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

/// Where a private key's passphrase comes from.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Passphrase")]
pub struct PassphraseFrom {
    /// Its first line is the passphrase (`-`: standard input) [env: DUNLIN_PASSPHRASE_FILE=] [default: ask on the terminal]
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// Open file descriptor whose first line is the passphrase
    #[arg(long, value_name = "N", conflicts_with = "passphrase_file")]
    pub passphrase_fd: Option<u32>,
}

impl PassphraseFrom {
    /// Option, then environment, then the terminal.
    #[must_use]
    pub fn source(&self) -> Source {
        match (&self.passphrase_file, self.passphrase_fd) {
            (Some(file), _) => Source::File(file.clone()),
            (None, Some(n)) => Source::Descriptor(n),
            (None, None) => Source::from_environment(),
        }
    }
}

/// `dunlin keys init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// New folder for the keys
    #[arg(long, default_value = "keys")]
    pub dir: PathBuf,
    /// Root keys that must sign a new root
    #[arg(long, default_value_t = 2)]
    pub root_threshold: u32,
    /// Root keys to make
    #[arg(long, default_value_t = 3)]
    pub root_keys: u32,
    /// Targets keys that must sign what may be installed
    #[arg(long, default_value_t = 2)]
    pub targets_threshold: u32,
    /// Targets keys to make
    #[arg(long, default_value_t = 3)]
    pub targets_keys: u32,
    /// Validity of the root metadata
    #[arg(long, default_value = "730d", value_parser = duration)]
    pub expires_in: Duration,
    /// JSON with the server's `online_keys` instead of asking the server
    #[arg(long, value_name = "FILE")]
    pub server_keys: Option<PathBuf>,
    /// Encrypt every key, all with one passphrase
    #[arg(long)]
    pub encrypt: bool,
    /// Passphrase.
    #[command(flatten)]
    pub passphrase: PassphraseFrom,
}

/// `dunlin keys generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// Who holds it: the files are named after it, and root lists it beside the key
    pub name: String,
    /// Folder for both files
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub dir: PathBuf,
    /// Leave the private key unencrypted
    #[arg(long, conflicts_with_all = ["passphrase_file", "passphrase_fd"])]
    pub no_passphrase: bool,
    /// Passphrase.
    #[command(flatten)]
    pub passphrase: PassphraseFrom,
}

/// `dunlin keys import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Ed25519 private key in PKCS #8 PEM, plain or encrypted; it stays as it is
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Who holds it
    #[arg(long)]
    pub name: String,
    /// Folder for both files
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub dir: PathBuf,
    /// Leave the copy unencrypted
    #[arg(long)]
    pub no_passphrase: bool,
    /// File with the passphrase of FILE, if it is another than the copy's
    #[arg(long, value_name = "FILE", help_heading = "Passphrase")]
    pub old_passphrase_file: Option<PathBuf>,
    /// Passphrase.
    #[command(flatten)]
    pub passphrase: PassphraseFrom,
}

/// `dunlin keys public`.
#[derive(Debug, Args)]
pub struct PublicArgs {
    /// The private key
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Who holds it [default: the file's name]
    #[arg(long)]
    pub name: Option<String>,
    /// Where to write it [default: beside the key, as .pub]
    #[arg(long, value_name = "PUB")]
    pub out: Option<PathBuf>,
    /// Passphrase.
    #[command(flatten)]
    pub passphrase: PassphraseFrom,
}

/// `dunlin keys passphrase`.
#[derive(Debug, Args)]
pub struct PassphraseArgs {
    /// The private key
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Take the passphrase away: the key is left unencrypted
    #[arg(long, conflicts_with = "new_passphrase_file")]
    pub remove: bool,
    /// File with the new passphrase [default: ask on the terminal]
    #[arg(long, value_name = "FILE", help_heading = "Passphrase")]
    pub new_passphrase_file: Option<PathBuf>,
    /// Passphrase as it is now.
    #[command(flatten)]
    pub passphrase: PassphraseFrom,
}

/// `dunlin keys sign`.
#[derive(Debug, Args)]
pub struct SignRequestArgs {
    /// The signing request
    #[arg(value_name = "REQUEST")]
    pub request: PathBuf,
    /// Private key file
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// Folder with the root metadata you trust: the request must rest on its newest [default: the key's folder, if it has any]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Where to write the signature [default: REQUEST.NAME.sig]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Passphrase.
    #[command(flatten)]
    pub passphrase: PassphraseFrom,
}

/// `dunlin keys combine`.
#[derive(Debug, Args)]
pub struct CombineArgs {
    /// The signing request; signatures are kept in it
    #[arg(value_name = "REQUEST")]
    pub request: PathBuf,
    /// Signature files
    #[arg(value_name = "SIGNATURE", required = true)]
    pub signatures: Vec<PathBuf>,
    /// Folder for the signed metadata, under their own name (2.root.json) [default: the request's]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// File for the signed metadata
    #[arg(long, value_name = "FILE", conflicts_with = "dir")]
    pub out: Option<PathBuf>,
}

/// What `dunlin keys server` does.
#[derive(Debug, Subcommand)]
pub enum ServerAction {
    /// Write the public keys with which the server signs now
    #[command(after_help = "Example:\n  dunlin keys server show --out server.json")]
    Show {
        /// File for the public keys, as --server-keys takes it
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Have the server make its next keys, and write their public halves
    ///
    /// They wait until a root lists them: dunlin keys root edit --server-keys FILE. With that root the
    /// server signs by the new keys, deletes the old ones, and devices drop what the old ones signed.
    #[command(after_help = "\
Example:
  dunlin keys server rotate --out next-server.json
  dunlin keys root edit --dir keys --server-keys next-server.json --out root.request")]
    Rotate {
        /// File for the public keys
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

/// `dunlin keys status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Folder with root metadata to look at as well
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Look at --dir alone, without a server
    #[arg(long, requires = "dir")]
    pub offline: bool,
    /// Warn of what people sign this many days before it expires
    #[arg(long, default_value_t = 30, value_name = "N")]
    pub warn_days: u32,
}
