//! What supervisor and inference worker say to each other: one JSON document a line on the
//! worker's standard input and output.
//!
//! Only closed windows and counters cross it, so that the telemetry buffer is never on a
//! request's path.

use crate::detect::watch::{Detection, Watch};
use crate::inference::confine::Confinement;
use dunlin_protocol::command::Shadow;
use dunlin_protocol::id::{Digest, Family};
use dunlin_protocol::report::ShadowReport;
use dunlin_protocol::telemetry::Window;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Longest line either side accepts, in bytes.
pub const LINE_MAX_BYTES: usize = 4 << 20;

/// Supervisor to worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToWorker {
    /// These families follow: until they are loaded, requests to them may come again.
    Expect {
        /// What served before the worker was started.
        families: Vec<Family>,
    },
    /// Load the bundle staged in this folder and serve it instead of the present one of its family,
    /// which serves until the new one is ready.
    Activate {
        /// Folder with `manifest.json`, `model.onnx`, …
        slot: PathBuf,
        /// Digest of the manifest that has to be there.
        bundle: Digest,
    },
    /// Load the bundle staged in this folder and run it in the shadow of the one of its family that
    /// serves, now or later, instead of another one in its shadow.
    Shadow {
        /// Folder with `manifest.json`, `model.onnx`, …
        slot: PathBuf,
        /// Digest of the manifest that has to be there.
        bundle: Digest,
        /// How.
        rules: Shadow,
    },
    /// Drop what runs in the shadow of this family.
    EndShadow {
        /// The family.
        family: Family,
    },
    /// Serve nothing of this family any more; requests in flight are answered.
    Deactivate {
        /// The family.
        family: Family,
    },
    /// What the detectors of a bundle knew before a restart; said once it is activated.
    Resume {
        /// Digest of its manifest.
        bundle: Digest,
        /// Their state.
        state: Box<Watch>,
    },
    /// Close the current windows now.
    Flush,
    /// Finish the requests in flight, close windows, say [`FromWorker::Drained`] and exit.
    Drain,
}

/// Worker to supervisor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromWorker {
    /// Sockets are open; nothing is served yet.
    Listening {
        /// Loopback address, if configured.
        tcp: Option<std::net::SocketAddr>,
        /// What the kernel keeps the worker from; unknown in one that was not confined.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        confinement: Option<Confinement>,
        /// Loopback address of gRPC, if it has one.
        #[serde(default)]
        grpc: Option<std::net::SocketAddr>,
    },
    /// This bundle serves now.
    Activated {
        /// Digest of its manifest.
        bundle: Digest,
    },
    /// The bundle in this folder could not be loaded; what served before still does.
    ActivateFailed {
        /// The folder.
        slot: PathBuf,
        /// The bundle that was asked for.
        bundle: Digest,
        /// Why.
        detail: String,
    },
    /// These bundles are being loaded or computed on right now, by as many requests as they are named
    /// here; said at every change, before it
    /// takes effect, by a worker that was started after another one's death.
    AtWork {
        /// Digests of their manifests.
        bundles: Vec<Digest>,
    },
    /// Totals since this bundle was activated in this worker, sent about once a second when they changed.
    Progress {
        /// Digest of its manifest.
        bundle: Digest,
        /// Requests answered.
        inferences: u64,
        /// Requests failed by the model (a client's bad request does not count).
        errors: u64,
        /// Of those answered, how many the model took longer for than its latency budget.
        #[serde(default)]
        slow: u64,
    },
    /// What a bundle in the shadow did since it was loaded, sent about once a second when that changed.
    Shadowed {
        /// Digest of its manifest.
        bundle: Digest,
        /// Its totals.
        so_far: ShadowReport,
    },
    /// A detector saw a change; at most one a minute of each detector and signal.
    Detected {
        /// Digest of the bundle's manifest.
        bundle: Digest,
        /// What it saw.
        detection: Detection,
        /// Changes of the same kind since the last one told, which were not.
        untold: u64,
    },
    /// What the detectors know, to be kept; said before windows.
    Detectors {
        /// Digest of the bundle's manifest.
        bundle: Digest,
        /// Their state.
        state: Box<Watch>,
    },
    /// A window closed.
    Window(Box<Window>),
    /// What an open window has counted so far.
    Open(Box<Window>),
    /// These were all that closed, and all that are open now. Said whenever one of both has changed.
    Counted,
    /// Samples of a window's inputs, sealed.
    Captured {
        /// The batch in Base64, see [`dunlin_protocol::capture::seal`].
        sealed: String,
        /// Batches since the last one that could not be sealed, or not be told in time.
        #[serde(default)]
        lost: u64,
    },
    /// All requests answered, all windows sent; the worker exits now.
    Drained,
}

/// What a trial run found (`dunlin-agent infer --trial DIR` prints one and exits).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum TrialReport {
    /// Loaded, and every golden case met.
    Passed {
        /// Number of cases.
        cases: usize,
        /// Largest absolute difference from an expected output.
        difference_max: f64,
        /// Median time of a case, in microseconds.
        latency_median_us: u64,
    },
    /// Not fit to serve.
    Failed {
        /// `load`, `golden` or `latency`; of a trial that did not get that far: `staged` (the slot is
        /// not whole), `trial_start`, `trial_died`, `trial_timeout`, `trial_output`.
        code: String,
        /// What, where, expected and got.
        detail: String,
    },
}
