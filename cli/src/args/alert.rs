//! `dunlin alert` and `dunlin webhook`.

use super::{Shared, duration, label};
use clap::{Args, Subcommand, ValueEnum};
use dunlin_protocol::id::Family;
use std::time::Duration;

/// `dunlin alert`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example: tell the on-call channel when inputs drift, and have the model trained anew
  dunlin webhook add on-call https://hooks.example/dunlin
  dunlin alert rule pump-drift --for 10m --retrain drift pump --margin 0.2
  dunlin alert list")]
pub struct AlertArgs {
    /// Which server, as whom.
    #[command(flatten)]
    pub shared: Shared,
    /// What to do.
    #[command(subcommand)]
    pub action: AlertAction,
}

/// What `dunlin alert` does.
#[derive(Debug, Subcommand)]
pub enum AlertAction {
    /// Put a rule in, or in the place of the one of that name
    #[command(
        after_help = "Example:\n  dunlin alert rule silent --critical silence --after 15m --label site=pier"
    )]
    Rule(Box<RuleArgs>),
    /// List the rules
    #[command(after_help = "Example:\n  dunlin alert rules")]
    Rules,
    /// Remove a rule; its alerts end, and nobody is told
    #[command(after_help = "Example:\n  dunlin alert remove pump-drift")]
    Remove {
        /// Its name
        name: String,
    },
    /// List alerts that go on
    #[command(after_help = "Example:\n  dunlin alert list --all")]
    List {
        /// Also those that are over
        #[arg(long)]
        all: bool,
    },
    /// Tell nobody for a while; alerts begin and end as ever
    #[command(
        after_help = "Example:\n  dunlin alert silence --rule pump-drift --for 2h --reason 'sensor is being replaced'"
    )]
    Silence {
        /// Of this rule; of all without
        #[arg(long)]
        rule: Option<String>,
        /// Of this device or FAMILY/VERSION; of all without
        #[arg(long)]
        subject: Option<String>,
        /// For so long, at most 30d
        #[arg(long = "for", value_parser = duration)]
        time: Duration,
        /// Why; colleagues see it
        #[arg(long)]
        reason: String,
    },
    /// List silences that hold
    #[command(after_help = "Example:\n  dunlin alert silences")]
    Silences,
    /// End a silence
    #[command(after_help = "Example:\n  dunlin alert unsilence 1")]
    Unsilence {
        /// Its number, as `dunlin alert silences` shows it
        id: i64,
    },
}

/// A rule.
#[derive(Debug, Args)]
pub struct RuleArgs {
    /// Its name: a-z, 0-9 and -
    pub name: String,
    /// Only this segment of the family's requests, such as one camera; not with silence
    #[arg(long, value_name = "NAME")]
    pub segment: Option<String>,
    /// How far back telemetry counts
    #[arg(long, default_value = "1h", value_parser = duration)]
    pub look_back: Duration,
    /// It is told once it has been so for this long
    #[arg(long = "for", default_value = "0s", value_parser = duration)]
    pub time: Duration,
    /// It is over once it has not been so for this long
    #[arg(long, default_value = "5m", value_parser = duration)]
    pub clear: Duration,
    /// Get up, rather than look at it today
    #[arg(long)]
    pub critical: bool,
    /// Tell this webhook; may be given again; all without
    #[arg(long = "webhook", value_name = "NAME")]
    pub webhooks: Vec<String>,
    /// Also ask the webhooks to have the model trained anew
    #[arg(long)]
    pub retrain: bool,
    /// What counts.
    #[command(subcommand)]
    pub when: WhenArgs,
}

/// What counts.
#[derive(Debug, Subcommand)]
pub enum WhenArgs {
    /// Inputs or outputs are far from the reference: beyond what sampling explains and a margin
    #[command(
        after_help = "Example:\n  dunlin alert rule pump-drift --for 10m --retrain drift pump --margin 0.2"
    )]
    Drift {
        /// The model family
        family: Family,
        /// Practical margin of the population-stability index
        #[arg(long, default_value_t = 0.1)]
        margin: f64,
        /// Practical margin of the share of values outside the reference's range, beyond what it
        /// allows itself (.02 if left out); 1 leaves such values aside
        #[arg(long, value_name = "SHARE")]
        out_of_range_margin: Option<f64>,
        /// Only this feature, or confidence, entropy, output_mix; may be given again
        #[arg(long = "signal", value_name = "NAME")]
        signals: Vec<String>,
        /// As many of them must have drifted
        #[arg(long, default_value_t = 1)]
        signals_min: u32,
    },
    /// The mean top-1 confidence is low
    #[command(after_help = "Example:\n  dunlin alert rule pump-unsure confidence pump --below 0.6")]
    Confidence {
        /// The model family
        family: Family,
        /// Below this, 0 to 1
        #[arg(long)]
        below: f64,
    },
    /// The accuracy estimated without labels is low (needs a bundle with a calibration)
    #[command(after_help = "Example:\n  dunlin alert rule pump-wrong accuracy pump --below 0.9")]
    Accuracy {
        /// The model family
        family: Family,
        /// Below this, 0 to 1
        #[arg(long)]
        below: f64,
    },
    /// Requests fail
    #[command(
        after_help = "Example:\n  dunlin alert rule pump-errors errors pump --above-permille 10"
    )]
    Errors {
        /// The model family
        family: Family,
        /// More of a thousand than this
        #[arg(long, default_value_t = 10)]
        above_permille: u32,
    },
    /// Answers are slow
    #[command(
        after_help = "Example:\n  dunlin alert rule pump-slow latency pump --quantile p99 --above-ms 20"
    )]
    Latency {
        /// The model family
        family: Family,
        /// Which part of the answers
        #[arg(long, value_enum, default_value_t = QuantileArg::P99)]
        quantile: QuantileArg,
        /// Slower than this, in milliseconds
        #[arg(long, value_name = "MS")]
        above_ms: f64,
    },
    /// A version serves, and its devices send too little
    #[command(
        after_help = "Example:\n  dunlin alert rule pump-quiet missing-data pump --inferences-min 100"
    )]
    MissingData {
        /// The model family
        family: Family,
        /// Fewer inferences than this within the look back
        #[arg(long, default_value_t = 1)]
        inferences_min: u64,
    },
    /// A device is not heard of
    #[command(
        after_help = "Example:\n  dunlin alert rule silent silence --after 15m --label site=pier"
    )]
    Silence {
        /// For longer than this
        #[arg(long, default_value = "15m", value_parser = duration)]
        after: Duration,
        /// Only devices with this label; may be given again
        #[arg(long = "label", value_name = "K=V", value_parser = label)]
        labels: Vec<(String, String)>,
    },
}

/// A quantile.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum QuantileArg {
    /// The median
    P50,
    /// Nine of ten
    P90,
    /// Ninety-nine of a hundred
    P99,
}

/// `dunlin webhook`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  dunlin webhook add on-call https://hooks.example/dunlin")]
pub struct WebhookArgs {
    /// Which server, as whom.
    #[command(flatten)]
    pub shared: Shared,
    /// What to do.
    #[command(subcommand)]
    pub action: WebhookAction,
}

/// What `dunlin webhook` does.
#[derive(Debug, Subcommand)]
pub enum WebhookAction {
    /// Make a webhook; its secret is printed once
    #[command(after_help = "Example:\n  dunlin webhook add on-call https://hooks.example/dunlin")]
    Add {
        /// Its name: a-z, 0-9 and -
        name: String,
        /// Where it listens: https://…, or http:// of the server's own machine
        url: String,
    },
    /// List webhooks, and how many messages wait or were given up
    #[command(after_help = "Example:\n  dunlin webhook list")]
    List,
    /// Remove a webhook and what it was still to be told
    #[command(after_help = "Example:\n  dunlin webhook remove on-call")]
    Remove {
        /// Its name
        name: String,
    },
    /// List messages that were given up
    #[command(after_help = "Example:\n  dunlin webhook dead")]
    Dead,
    /// Try a message that was given up once more
    #[command(after_help = "Example:\n  dunlin webhook redeliver 17")]
    Redeliver {
        /// Its number, as `dunlin webhook dead` shows it
        id: i64,
    },
}
