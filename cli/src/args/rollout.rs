//! Arguments of `dunlin rollout` and `dunlin drift`.

use super::{Shared, duration, label};
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

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
    Create(Box<CreateArgs>),
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
    /// Look at no outcomes before the soak is over: a version that does great harm stays as long
    #[arg(long)]
    pub no_early: bool,
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
    /// Most inferences of the probation that may take longer than the bundle's latency budget, in
    /// per mille (default: 500, the median keeps the budget)
    #[arg(long, value_name = "PERMILLE", value_parser = clap::value_parser!(u64).range(..=1000))]
    pub slow_permille_max: Option<u64>,
    /// Most failed inferences of the probation, in per mille (default: none may fail)
    #[arg(long, value_name = "PERMILLE", value_parser = clap::value_parser!(u64).range(..=1000))]
    pub errors_permille_max: Option<u64>,
    /// Before it is activated it runs in the shadow of the version that serves, until so many of its
    /// answers were compared with that one's
    #[arg(long, value_name = "N")]
    pub shadow: Option<u64>,
    /// Least answers in the shadow that must agree, in per mille (default: counted only)
    #[arg(long, value_name = "PERMILLE", requires = "shadow", value_parser = clap::value_parser!(u64).range(..=1000))]
    pub shadow_agreement: Option<u64>,
    /// Most labelled answers in the shadow that it may lose, less those that it wins (default:
    /// counted only)
    #[arg(long, value_name = "N", requires = "shadow")]
    pub shadow_losses: Option<u64>,
    /// Share of requests that are compared in the shadow, in per mille (default: 100)
    #[arg(long, value_name = "PERMILLE", requires = "shadow", value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub shadow_sample: Option<u64>,
    /// Also devices on which this version did not hold before shall try it again
    #[arg(long)]
    pub retry_rolled_back: bool,
}

/// `dunlin drift`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dunlin drift digits --version 2
  dunlin drift digits --version 2 --plot confidence --out confidence.svg")]
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
    /// Only this segment, such as one site or camera
    #[arg(long, value_name = "NAME")]
    pub segment: Option<String>,
    /// Also features and metrics that are quiet
    #[arg(long)]
    pub all: bool,
    /// Every score of what is shown, not only those that decide
    #[arg(long)]
    pub scores: bool,
    /// Draw this signal, reference against live, as SVG: a feature's name, confidence, entropy or
    /// output_mix
    #[arg(long, value_name = "SIGNAL", requires = "out", conflicts_with_all = ["all", "scores"])]
    pub plot: Option<String>,
    /// Only this cohort, of --rollout or else of the family's newest rollout
    #[arg(long, value_name = "canary|control", value_parser = ["canary", "control"])]
    pub cohort: Option<String>,
    /// Where the picture goes
    #[arg(short, long, value_name = "FILE", requires = "plot")]
    pub out: Option<PathBuf>,
}
