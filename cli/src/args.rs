//! The command line.

use clap::{Args, Parser, Subcommand};
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
    /// Make and show the fleet's offline keys
    Keys(KeysArgs),
    /// Pack, sign, publish and inspect bundles
    Bundle(BundleArgs),
    /// Issue the right to enrol devices
    Token(TokenArgs),
    /// List, show and revoke devices
    Device(DeviceArgs),
    /// Give a version to the fleet in stages
    Rollout(RolloutArgs),
    /// Show how far live data are from the reference
    Drift(DriftArgs),
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
    /// meets them, and refuses with the case that it does not meet.
    #[command(after_help = "Example:\n  dunlin bundle pack tests/models/digits/v1 --out packed")]
    Pack(PackArgs),
    /// List bundles in new targets metadata and sign it, or add a signature to it
    ///
    /// Builds on the newest targets metadata that the server has (or --targets FILE), after checking
    /// that root's keys signed it. Run it with --add-signature where the other keys are.
    #[command(after_help = "\
Examples:
  dunlin bundle sign packed --keys keys --key targets-1 --out targets.json
  dunlin bundle sign --add-signature --targets targets.json --keys keys --key targets-2 --out targets.json")]
    Sign(SignArgs),
    /// Upload blobs, then the signed targets
    #[command(after_help = "Example:\n  dunlin bundle publish packed --targets targets.json")]
    Publish {
        /// Packed bundles
        #[arg(required = true, value_name = "DIR")]
        bundles: Vec<PathBuf>,
        /// Targets metadata with all its signatures
        #[arg(long, value_name = "FILE")]
        targets: PathBuf,
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
    #[arg(value_name = "DIR", required_unless_present = "add_signature")]
    pub bundles: Vec<PathBuf>,
    /// Folder with the keys and root metadata
    #[arg(long, value_name = "DIR", default_value = "keys")]
    pub keys: PathBuf,
    /// Key to sign with, by name; may be given again
    #[arg(long = "key", value_name = "NAME", required = true)]
    pub key_names: Vec<String>,
    /// Targets metadata to build on (or to add to) instead of the server's newest
    #[arg(long, value_name = "FILE")]
    pub targets: Option<PathBuf>,
    /// Start with no earlier targets metadata: the fleet's first
    #[arg(long, conflicts_with_all = ["targets", "add_signature"])]
    pub first: bool,
    /// Only add signatures to --targets FILE
    #[arg(long, requires = "targets", conflicts_with = "bundles")]
    pub add_signature: bool,
    /// Validity of the new metadata
    #[arg(long, default_value = "365d", value_parser = duration)]
    pub expires_in: Duration,
    /// Where to write it
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

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

/// `dunlin rollout`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  dunlin rollout create digits 2 --stage 3 --stage 50% --soak 60s"
)]
pub struct RolloutArgs {
    /// Which server, as whom.
    #[command(flatten)]
    pub shared: Shared,
    /// What to do.
    #[command(subcommand)]
    pub action: RolloutAction,
}

/// What `dunlin rollout` does.
#[derive(Debug, Subcommand)]
pub enum RolloutAction {
    /// Start a rollout
    #[command(after_help = "\
Examples:
  dunlin rollout create digits 2 --stage 3 --stage 50% --stage rest --soak 60s
  dunlin rollout create digits 1 --stage rest --no-gate --soak 0s   # the first version: nothing to compare with")]
    Create(CreateArgs),
    /// List rollouts
    #[command(after_help = "Example:\n  dunlin rollout list")]
    List,
    /// Show how far a rollout is and why it is not moving
    #[command(after_help = "\
With --watch the exit status tells the end: 0 finished, 2 stopped, 3 paused, 4 aborted.

Example:
  dunlin rollout show r-7 --watch")]
    Show {
        /// Its id
        id: String,
        /// Show it again until it ends
        #[arg(long)]
        watch: bool,
        /// Time between looks
        #[arg(long, default_value = "1s", value_parser = duration, requires = "watch")]
        every: Duration,
    },
    /// Go on with a paused rollout: the same stage is looked at again
    #[command(after_help = "Example:\n  dunlin rollout resume r-7")]
    Resume {
        /// Its id
        id: String,
    },
    /// End a rollout; devices that were given the version go back
    #[command(after_help = "Example:\n  dunlin rollout abort r-7")]
    Abort {
        /// Its id
        id: String,
    },
}

/// `dunlin rollout create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Model family
    pub family: String,
    /// Version
    pub version: u64,
    /// Stage: a number of devices, a share of the fleet, or `rest`; may be given again
    #[arg(long = "stage", value_name = "N|N%|rest")]
    pub stages: Vec<String>,
    /// Fixed wait after a stage's last success
    #[arg(long, value_parser = duration)]
    pub soak: Option<Duration>,
    /// Silence after which a device counts as timed out
    #[arg(long, value_parser = duration)]
    pub silence: Option<Duration>,
    /// Go on by counts alone, without comparing canaries with controls
    #[arg(long)]
    pub no_gate: bool,
    /// Begin even if devices could not go back to what they run now
    #[arg(long)]
    pub no_way_back: bool,
    /// Policy as JSON; other options change what it says
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Seed of the draw [default: random]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Only devices with this label; may be given again
    #[arg(long = "label", value_name = "K=V", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// Live inferences that each device must answer before it keeps the version
    #[arg(long, value_name = "N")]
    pub probation_inferences: Option<u64>,
    /// Time that each device must run it before it keeps the version
    #[arg(long, value_parser = duration)]
    pub probation_time: Option<Duration>,
}

/// `dunlin drift`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  dunlin drift digits --version 2")]
pub struct DriftArgs {
    /// Which server, as whom.
    #[command(flatten)]
    pub shared: Shared,
    /// Model family
    pub family: String,
    /// Only this version
    #[arg(long, value_name = "N")]
    pub version: Option<u64>,
    /// Only this rollout's canaries and controls
    #[arg(long, value_name = "ID")]
    pub rollout: Option<String>,
    /// Also features and metrics that are quiet
    #[arg(long)]
    pub all: bool,
}

/// `90s`, `10m`, `24h`, `365d`, `500ms`, or several in a row: `1h30m`.
///
/// # Errors
/// What was expected, as a sentence.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad =
        || format!("expected a time such as 500ms, 90s, 10m, 24h, 365d or 1h30m, got {text:?}");
    let mut total_ms = 0_u64;
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let unit_ms = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(bad()),
        };
        let number: u64 = number.parse().map_err(|_| bad())?;
        let part = number.checked_mul(unit_ms).ok_or_else(bad)?;
        total_ms = total_ms.checked_add(part).ok_or_else(bad)?;
        rest = tail;
    }
    Ok(Duration::from_millis(total_ms))
}

/// `key=value`.
///
/// # Errors
/// What was expected, as a sentence.
pub fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("expected KEY=VALUE, got {text:?}")),
    }
}

/// A duration in milliseconds.
#[must_use]
pub fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
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
             --label k=v --probation-inferences 50 --probation-time 60s",
            "dunlin rollout show r --watch --server http://127.0.0.1:1",
            "dunlin drift digits --version 2 --rollout r",
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
            "dunlin login --token secret",
        ] {
            assert!(
                Cli::try_parse_from(line.split_whitespace()).is_err(),
                "{line}"
            );
        }
    }
}
