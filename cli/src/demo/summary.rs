//! What the demo showed, for people and as JSON (`docs/demo-summary.schema.json`).

use crate::table::Table;
use dunlin_server::drift::gate::Verdict;
use serde::Serialize;

/// One thing that had to happen.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Check {
    /// What.
    pub(super) what: String,
    /// What had to come out.
    pub(super) expected: String,
    /// What came out.
    pub(super) got: String,
    /// Whether they agree.
    pub(super) passed: bool,
}

/// A rollout and how it ended.
#[derive(Debug, Clone, Serialize)]
pub(super) struct RolloutSummary {
    pub(super) id: String,
    pub(super) version: u64,
    /// `finished`, `stopped`, …
    pub(super) outcome: String,
    /// Devices drawn as canaries.
    pub(super) canaries: Vec<String>,
    pub(super) duration_ms: u64,
    /// Each look of the gate.
    pub(super) verdicts: Vec<Verdict>,
}

/// A version as the devices' own applications saw it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct VersionSummary {
    pub(super) version: u64,
    /// Answers given by it.
    pub(super) inferences: u64,
    /// Share of right answers, by the samples' labels, which Dunlin never sees.
    pub(super) accuracy: f64,
}

/// A bundle put in a device's way.
#[derive(Debug, Clone, Serialize)]
pub(super) struct RefusalSummary {
    pub(super) attack: String,
    pub(super) device: String,
    /// The device's code.
    pub(super) code: String,
    /// The device's words.
    pub(super) detail: String,
    /// What the server itself said when asked the ordinary way.
    pub(super) server_said: String,
}

/// The whole.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Summary {
    /// `dunlin.demo-summary/1`.
    pub(super) schema: String,
    pub(super) seed: u64,
    pub(super) devices: u16,
    pub(super) duration_ms: u64,
    pub(super) passed: bool,
    pub(super) checks: Vec<Check>,
    pub(super) rollouts: Vec<RolloutSummary>,
    pub(super) versions: Vec<VersionSummary>,
    pub(super) refusals: Vec<RefusalSummary>,
    /// Requests that applications sent and that failed.
    pub(super) requests_failed: u64,
}

impl Summary {
    pub(super) fn passed(&self) -> bool {
        self.passed
    }

    /// Prints the closing tables.
    pub(super) fn print(&self) {
        let mut versions = Table::new(&["version", "inferences", "right answers"]);
        for v in &self.versions {
            versions.row([
                v.version.to_string(),
                v.inferences.to_string(),
                format!("{:.1} %", v.accuracy * 100.0),
            ]);
        }
        println!("\n{}", versions.to_text());
        let mut checks = Table::new(&["", "what", "expected", "got"]);
        for c in &self.checks {
            checks.row([
                if c.passed { "ok" } else { "WRONG" },
                c.what.as_str(),
                c.expected.as_str(),
                c.got.as_str(),
            ]);
        }
        println!("{}", checks.to_text());
        #[allow(clippy::cast_precision_loss)]
        let seconds = self.duration_ms as f64 / 1000.0;
        println!(
            "{} of {} as expected, {} devices, seed {}, {seconds:.0} s",
            self.checks.iter().filter(|c| c.passed).count(),
            self.checks.len(),
            self.devices,
            self.seed
        );
    }
}
