//! The command line, one file a noun.

mod alert;
mod capture;
mod consumer;
mod export;
mod fleet;
mod keys;
mod rollout;
mod values;

pub use alert::{
    AlertAction, AlertArgs, QuantileArg, RuleArgs, WebhookAction, WebhookArgs, WhenArgs,
};
pub use capture::{CaptureAction, CaptureArgs, CaptureRequestArgs, WhichCaptures};
pub use consumer::{ConsumerAction, ConsumerArgs, ConsumerFiles};
pub use export::{DataAction, DataArgs, SelectionArgs};
pub use fleet::{DeviceAction, DeviceArgs, TokenAction, TokenArgs};
pub use keys::{
    CombineArgs, DelegateArgs, GenerateArgs, ImportArgs, InitArgs, KeysAction, KeysArgs, NextRoot,
    NextTargets, PassphraseArgs, PassphraseFrom, PublicArgs, RevokeArgs, RootAction, RootEditArgs,
    RootNewArgs, RotateArgs, ServerAction, SignRequestArgs, StatusArgs, UndelegateArgs,
};
pub use rollout::{CreateArgs, DriftArgs, RolloutAction, RolloutArgs};
pub use values::{duration, label, whole_ms};

use clap::{Args, Parser, Subcommand};
use dunlin_protocol::id::Family;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Ships signed ONNX models to fleets of edge devices, runs them there, and watches how they do.
#[derive(Debug, Parser)]
#[command(
    name = "dunlin",
    version,
    arg_required_else_help = true,
    after_help = "\
Example: from a model to a fleet
  dunlin login --server https://fleet.example:8080 --ca admin-ca.pem --token-file token
  dunlin keys init --dir keys && dunlin keys upload-root --dir keys
  dunlin bundle pack tests/models/digits/v1 --out packed
  dunlin bundle sign packed --keys keys --key targets-1 --key targets-2 --out targets.json
  dunlin bundle publish packed --targets targets.json
  dunlin token create --keys keys --uses 12
  dunlin rollout create digits 1 --stage rest --no-gate --soak 0s   # the first: nothing to compare with

Exit status
  0 done   1 refused or failed   64 bad command line   69 fleet server unreachable
  with `rollout show --watch`: 0 finished   2 stopped   3 paused   4 aborted
  with `keys status`: 0 well   2 something expires soon   3 something has expired

Environment: DUNLIN_SERVER, DUNLIN_TOKEN_FILE, DUNLIN_TOKEN, DUNLIN_CA, DUNLIN_CONTEXT"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The nouns.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the whole of Dunlin at work: a fleet of real processes on this machine
    Demo(crate::demo::DemoArgs),
    /// Remember a fleet server, its CA and a token
    Login(LoginArgs),
    /// The offline keys: make, sign together, rotate, revoke, delegate, watch
    Keys(KeysArgs),
    /// Pack, sign, publish and inspect bundles
    Bundle(BundleArgs),
    /// Issue the right to enrol devices
    Token(TokenArgs),
    /// List, show and revoke devices
    Device(DeviceArgs),
    /// Let programs of your own read what devices send
    Consumer(ConsumerArgs),
    /// Give a version to the fleet in stages
    Rollout(RolloutArgs),
    /// Show how far live data are from the reference
    Drift(DriftArgs),
    /// Fetch the inputs that devices keep, sealed to a key of yours
    Capture(CaptureArgs),
    /// Write telemetry as Parquet files, for pandas, DuckDB and the like
    Export(DataArgs),
    /// Say what to be told of, and see what is so
    Alert(AlertArgs),
    /// Say who is told of alerts
    Webhook(WebhookArgs),
    /// Run the fleet server (as dunlin-server)
    #[command(disable_help_flag = true)]
    Server(Passed),
    /// Run the device agent (as dunlin-agent)
    #[command(disable_help_flag = true)]
    Agent(Passed),
    /// Print a completion script for a shell
    #[command(
        after_help = "Example:\n  dunlin completion bash > ~/.local/share/bash-completion/completions/dunlin"
    )]
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Arguments of another program.
#[derive(Debug, Args)]
pub struct Passed {
    /// Arguments, passed on as they are
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<OsString>,
}

/// Which server, as whom, and how to print.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Fleet server")]
pub struct Shared {
    /// Base URL of the admin API
    #[arg(long, global = true, env = "DUNLIN_SERVER", value_name = "URL")]
    pub server: Option<String>,
    /// File with the admin token (`-`: standard input); a token itself is never an argument
    #[arg(long, global = true, env = "DUNLIN_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// PEM of the CA that vouches for the admin API
    #[arg(long, global = true, env = "DUNLIN_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Where `dunlin login` keeps all this [default: ~/.config/dunlin/context.toml]
    #[arg(long, global = true, env = "DUNLIN_CONTEXT", value_name = "FILE")]
    pub context: Option<PathBuf>,
    /// Print JSON for machines
    #[arg(long, global = true, help_heading = "Output")]
    pub json: bool,
}

/// `dunlin login`.
#[derive(Debug, Args)]
#[command(after_help = "\
The fleet CA that the server shows is pinned: later commands refuse another one.

Example:
  dunlin login --server http://127.0.0.1:8080 --token-file - < token")]
pub struct LoginArgs {
    /// Which server, as whom.
    #[command(flatten)]
    pub shared: Shared,
}

/// `dunlin bundle`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  dunlin bundle pack tests/models/digits/v1 --out packed")]
pub struct BundleArgs {
    /// Which server, as whom.
    #[command(flatten)]
    pub shared: Shared,
    /// What to do.
    #[command(subcommand)]
    pub action: BundleAction,
}

/// What `dunlin bundle` does.
#[derive(Debug, Subcommand)]
pub enum BundleAction {
    /// Check a model with the device's own engine and pack it
    ///
    /// Golden outputs come from the training runtime; packing only checks that the device's engine
    /// meets them, and refuses with the case that it does not meet. A graph that the engine does not
    /// take as it is, is mended if it can be, as on every device, and the mends are told; if none
    /// helps, packing refuses and names the operator, its node and what was tried (docs/models.md).
    #[command(after_help = "Example:\n  dunlin bundle pack tests/models/digits/v1 --out packed")]
    Pack(PackArgs),
    /// Make the reference profile that devices are compared with, from rows of data
    ///
    /// Runs the model over the rows with the device's own engine, and freezes bins and counts of
    /// inputs, classes, confidence and entropy. Small tensors are looked at element by element, images
    /// and sound by statistics (mean, contrast, sharpness, loudness), texts by category. Use rows that
    /// the model was not trained on, a few thousand or more.
    #[command(after_help = "\
Examples:
  dunlin bundle profile model --data reference.csv --label species -o model/profile.json
  dunlin bundle profile model --data images/ --segment-key camera --segment north --segment south")]
    Profile(crate::profile::ProfileArgs),
    /// List bundles in new targets metadata and sign it, or add a signature to it
    ///
    /// Builds on the newest targets metadata that the server has (or --targets FILE), after checking
    /// that root's keys signed it. Run it with --add-signature where the other keys are.
    #[command(after_help = "\
Examples:
  dunlin bundle sign packed --keys keys --key targets-1 --out targets.json
  dunlin bundle sign packed --keys keys --request targets.request   # then: dunlin keys sign, combine
  dunlin bundle sign --renew --keys keys --request targets.request
  dunlin bundle sign --add-signature --targets targets.json --keys keys --key targets-2 --out targets.json")]
    Sign(SignArgs),
    /// Upload blobs, then the signed targets
    #[command(after_help = "Example:\n  dunlin bundle publish packed --targets targets.json")]
    Publish {
        /// Packed bundles; none if the list names only what is published already
        #[arg(value_name = "DIR")]
        bundles: Vec<PathBuf>,
        /// Targets metadata with all its signatures
        #[arg(long, value_name = "FILE")]
        targets: PathBuf,
        /// The delegated role whose list it is
        #[arg(long, value_name = "ROLE")]
        role: Option<String>,
        /// Earlier versions of the family to make patches from, the newest first; 0 makes none
        #[arg(long, value_name = "N", default_value_t = crate::patch::EARLIER_VERSIONS)]
        patches: usize,
    },
    /// Write the patch between two models, as `publish` makes it
    ///
    /// A model is an ONNX file or a packed bundle. Any two files will do.
    #[command(after_help = "Example:\n  dunlin bundle patch packed-1 packed-2 -o 1-2.patch")]
    Patch {
        /// The model that devices have
        #[arg(value_name = "OLD")]
        old: PathBuf,
        /// The model that they get
        #[arg(value_name = "NEW")]
        new: PathBuf,
        /// Where to write the patch
        #[arg(short, long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Rebuild a model from an old one and a patch, as devices do
    ///
    /// Nothing vouches for the result here; a device checks it against the signed hash.
    #[command(after_help = "Example:\n  dunlin bundle apply packed-1 1-2.patch -o model.onnx")]
    Apply {
        /// The model that devices have
        #[arg(value_name = "OLD")]
        old: PathBuf,
        /// The patch
        #[arg(value_name = "PATCH")]
        patch: PathBuf,
        /// Where to write the model
        #[arg(short, long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Show a packed or a published bundle
    #[command(after_help = "\
Examples:
  dunlin bundle inspect packed
  dunlin bundle inspect --published digits/2")]
    Inspect {
        /// A packed bundle
        #[arg(value_name = "DIR", required_unless_present = "published")]
        dir: Option<PathBuf>,
        /// A bundle on the server
        #[arg(long, value_name = "FAMILY/VERSION", conflicts_with = "dir")]
        published: Option<String>,
    },
    /// List what is published
    #[command(after_help = "Example:\n  dunlin bundle list")]
    List,
    /// Write everything a device needs for a bundle into one file, for a USB stick
    ///
    /// The file holds what the server publishes, nothing secret, and is verified by the device like
    /// a download. It is of use until the timestamp in it expires.
    #[command(after_help = "\
Example:
  dunlin bundle export --family digits -o digits.tar
On the device:
  dunlin-agent install digits.tar")]
    Export(ExportArgs),
}

/// `dunlin bundle export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The model family
    #[arg(long)]
    pub family: Family,
    /// The version; without it the newest that top-level targets list
    #[arg(long = "bundle-version", value_name = "N")]
    pub version: Option<u64>,
    /// The archive to write
    #[arg(short, long, value_name = "FILE")]
    pub out: PathBuf,
    /// A folder or archive with a repository's layout, instead of the server
    #[arg(long, value_name = "PATH")]
    pub from: Option<PathBuf>,
    /// Add the patch from this version too (repeatable)
    #[arg(long, value_name = "N")]
    pub patch_from: Vec<u64>,
}

/// `dunlin bundle pack`.
#[derive(Debug, Args)]
pub struct PackArgs {
    /// bundle.toml, or the folder it is in
    pub spec: PathBuf,
    /// New folder for the packed bundle
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Golden cases instead of those the spec names
    #[arg(long, value_name = "FILE")]
    pub golden: Option<PathBuf>,
    /// Reference profile instead of the one the spec names
    #[arg(long, value_name = "FILE")]
    pub profile: Option<PathBuf>,
    /// Version instead of the spec's
    #[arg(long, value_name = "N")]
    pub bundle_version: Option<u64>,
    /// Rollback floor instead of the spec's
    #[arg(long, value_name = "N")]
    pub rollback_floor: Option<u64>,
}

/// `dunlin bundle sign`.
#[derive(Debug, Args)]
pub struct SignArgs {
    /// Packed bundles to list
    #[arg(value_name = "DIR", required_unless_present_any = ["add_signature", "renew"])]
    pub bundles: Vec<PathBuf>,
    /// Folder with the keys and root metadata
    #[arg(long, value_name = "DIR", default_value = "keys")]
    pub keys: PathBuf,
    /// Key to sign with, by name; may be given again
    #[arg(long = "key", value_name = "NAME", required_unless_present = "request")]
    pub key_names: Vec<String>,
    /// Targets metadata to build on (or to add to) instead of the server's newest
    #[arg(long, value_name = "FILE")]
    pub targets: Option<PathBuf>,
    /// Start with no earlier targets metadata: the fleet's first
    #[arg(long, conflicts_with_all = ["targets", "add_signature", "renew"])]
    pub first: bool,
    /// Only add signatures to --targets FILE
    #[arg(long, requires = "targets", conflicts_with_all = ["bundles", "renew"])]
    pub add_signature: bool,
    /// List the same again with a new expiry: before it runs out, or after keys were rotated
    #[arg(long, conflicts_with = "bundles")]
    pub renew: bool,
    /// Validity of the new metadata
    #[arg(long, default_value = "365d", value_parser = duration)]
    pub expires_in: Duration,
    /// Where to write it
    #[arg(long, value_name = "FILE", required_unless_present = "request")]
    pub out: Option<PathBuf>,
    /// Write a signing request instead of signing: for `dunlin keys sign` on the holders' machines
    #[arg(long, value_name = "REQUEST", conflicts_with_all = ["key_names", "out", "add_signature"])]
    pub request: Option<PathBuf>,
    /// Sign the list of this delegated role instead of the top-level one
    #[arg(long, value_name = "ROLE")]
    pub role: Option<String>,
    /// Top-level targets metadata that delegate to --role, instead of the server's newest
    #[arg(long, value_name = "FILE", requires = "role")]
    pub delegator: Option<PathBuf>,
    /// Passphrase of the keys.
    #[command(flatten)]
    pub passphrase: PassphraseFrom,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_an_example() {
        fn check(command: &clap::Command, path: &str) {
            for child in command.get_subcommands() {
                let path = format!("{path} {}", child.get_name());
                let passed_on = ["server", "agent", "demo", "help"].contains(&child.get_name());
                let help = child.get_after_help().map(ToString::to_string);
                let help = help.unwrap_or_default();
                assert!(passed_on || help.contains("Example"), "{path}");
                check(child, &path);
            }
        }
        check(&Cli::command(), "dunlin");
    }

    #[test]
    fn durations_and_labels_are_read() {
        let ms = |text: &str| duration(text).map(whole_ms);
        assert_eq!(ms("60s"), Ok(60_000));
        assert_eq!(ms("1h30m"), Ok(5_400_000));
        assert_eq!(ms("250ms"), Ok(250));
        for bad in [
            "",
            "5",
            "s",
            "5x",
            "-1s",
            "99999999999999999999d",
            "400000000000000d",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(label("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(label("=b").is_err());
    }

    #[test]
    fn lines_of_the_manual_parse() {
        for line in [
            "dunlin keys init --dir keys --root-threshold 2 --root-keys 3 --targets-threshold 2 --targets-keys 3",
            "dunlin bundle pack x --out y --golden g --profile p",
            "dunlin bundle sign a b --keys keys --key targets-1 --key targets-2 --out t.json",
            "dunlin bundle sign --add-signature --targets t.json --key targets-3 --out t.json",
            "dunlin bundle inspect --published digits/2",
            "dunlin token create --keys keys --uses 3 --expires-in 24h --label k=v --json",
            "dunlin device list --label a=b --online",
            "dunlin rollout create digits 2 --stage 3 --stage 50% --stage rest --soak 60s --seed 7 \
             --label k=v --probation-inferences 50 --probation-time 60s --slow-permille-max 10 \
             --errors-permille-max 5 --retry-rolled-back",
            "dunlin rollout show r --watch --server http://127.0.0.1:1",
            "dunlin drift digits --version 2 --rollout r",
            "dunlin export windows --family digits --version 2 --last 7d --out w.parquet",
            "dunlin export histograms --family digits --cohort canary --rollout ro-1 --out h.parquet",
            "dunlin export reference --family digits --from 2026-03-01T00:00:00Z -o r.parquet",
            "dunlin login --server http://127.0.0.1:1 --token-file -",
            "dunlin completion fish",
        ] {
            let parsed = Cli::try_parse_from(line.split_whitespace());
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
        }
        for line in [
            "dunlin rollout create digits",
            "dunlin bundle sign --add-signature --key k --out t",
            "dunlin bundle inspect",
            "dunlin export windows --family digits",
            "dunlin export windows --family digits --last 1h --from 2026-03-01T00:00:00Z -o w",
            "dunlin login --token secret",
        ] {
            assert!(
                Cli::try_parse_from(line.split_whitespace()).is_err(),
                "{line}"
            );
        }
    }
}
