//! Samples of the inputs that a model answers, kept where bundle and owner both allow it, and sealed
//! before they leave this process.
//!
//! A request offers its input after it was counted; only one that is drawn is copied. When its window
//! closes, or a detector saw a change, what was drawn is sealed in a thread of its own.

mod reservoir;
mod telling;
mod unusual;

use super::api::binary;
use super::engine::{Engine, Inference};
use super::observe::Observation;
use super::tensor::Values;
use base64::Engine as _;
use dunlin_protocol::bundle::Profile;
use dunlin_protocol::capture::samples::{Entry, FEATURES_MAX, FeatureName, Index, TensorEntry};
use dunlin_protocol::capture::seal::{Cause, Header, seal};
use dunlin_protocol::capture::{CaptureRules, OwnerRules, Stage, Standing, standing};
use dunlin_protocol::id::{DeviceId, FleetId};
use reservoir::Reservoir;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::str::FromStr;
pub(crate) use telling::tell_samples;
use unusual::Reference;

/// Most batches that wait to be sealed; then the oldest go, counted.
const CLOSED_MAX: usize = 4;

/// What the worker has to know to keep inputs at all; it is told only where the owner allows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureCharge {
    /// The fleet.
    pub fleet: FleetId,
    /// This device.
    pub device: DeviceId,
    /// What its owner allows.
    pub owner: OwnerRules,
}

impl FromStr for CaptureCharge {
    type Err = serde_json::Error;

    /// Reads JSON, as an argument of the worker.
    fn from_str(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }
}

/// Begin and end of a window, in milliseconds since 1970.
pub(crate) type Span = (i64, i64);

/// A drawn request.
#[derive(Debug)]
struct Sample {
    entry: Entry,
    tensors: Vec<u8>,
}

/// What was drawn in a window so far.
#[derive(Debug)]
struct Open {
    span: Span,
    drawn: Reservoir<Sample>,
    considered: u64,
    too_large: u64,
}

impl Open {
    fn new(span: Span, rules: &CaptureRules, seed: u64) -> Self {
        let room = usize::try_from(rules.samples).unwrap_or(usize::MAX);
        Self {
            span,
            drawn: Reservoir::new(room, seed),
            considered: 0,
            too_large: 0,
        }
    }
}

/// The drawn samples of a window that has closed, not sealed yet.
#[derive(Debug)]
pub(crate) struct Batch {
    header: Header,
    index: Index,
    samples: Vec<Sample>,
}

/// Draws samples for one active bundle.
#[derive(Debug)]
pub(crate) struct Recorder {
    rules: CaptureRules,
    reference: Option<Reference>,
    /// What every batch of it says; times and counts are filled in.
    header: Header,
    index: Index,
    open: Option<Open>,
    closed: VecDeque<Batch>,
    lost: u64,
}

impl Recorder {
    /// A recorder, if bundle and owner allow it.
    pub(crate) fn allowed(engine: &Engine, charge: Option<&CaptureCharge>) -> Option<Self> {
        let charge = charge?;
        let manifest = engine.manifest();
        let rules = manifest.capture.as_ref()?;
        if standing(Some(rules), &charge.owner) != Standing::Kept {
            return None;
        }
        let profile = engine.profile().map(|(_, profile)| profile);
        let mut index = Index::new(rules.stage, manifest.lineage.clone());
        index.labels.clone_from(&manifest.labels);
        index.features = profile.map_or_else(Vec::new, |p| names(p, rules.stage));
        Some(Self {
            rules: rules.clone(),
            reference: profile.map(Reference::new),
            header: Header {
                fleet: charge.fleet.clone(),
                device: charge.device.clone(),
                family: manifest.family.clone(),
                version: manifest.version,
                bundle: engine.bundle(),
                recipient: rules.recipient,
                start_ms: 0,
                end_ms: 0,
                cause: Cause::Window,
                samples: 0,
                considered: 0,
                too_large: 0,
            },
            index,
            open: None,
            closed: VecDeque::new(),
            lost: 0,
        })
    }

    /// Offers an answered request of the window with this span.
    pub(crate) fn offer(
        &mut self,
        now_ms: i64,
        span: Span,
        seen: &Observation,
        engine: &Engine,
        sent: &[Values],
        inference: &Inference<'_>,
    ) {
        // A request that was counted before another thread's and comes after it is of a window that
        // has closed: it goes with the next one.
        if self.open.as_ref().is_some_and(|o| span.0 >= o.span.1) {
            self.close(Cause::Window);
        }
        let open = self
            .open
            .get_or_insert_with(|| Open::new(span, &self.rules, seed()));
        if overlap(open.span, span) {
            open.span = (open.span.0.min(span.0), open.span.1.max(span.1));
        }
        open.considered += 1;
        let kept = match self.rules.stage {
            Stage::Sent => sent,
            Stage::Graph => inference.graph_inputs(),
        };
        let scores = inference.observed();
        let bytes = kept.iter().chain(scores).map(binary::length);
        let bytes = bytes.fold(0_usize, usize::saturating_add);
        if u64::try_from(bytes).unwrap_or(u64::MAX) > self.rules.sample_max_bytes {
            open.too_large += 1;
            return;
        }
        let weight = self.reference.as_ref().map_or(1.0, |r| r.weight(seen));
        let stage = self.rules.stage;
        open.drawn.offer(weight, || {
            let mut tensors = Vec::with_capacity(bytes);
            let inputs = entries(engine, stage, kept, &mut tensors);
            let outputs = scores.map(|scores| scored(scores, &mut tensors));
            let entry = Entry {
                time_ms: now_ms,
                weight,
                confidence: Some(seen.confidence()).filter(|c| c.is_finite()),
                class: seen.class().and_then(|c| u64::try_from(c).ok()),
                inputs,
                outputs: outputs.into_iter().collect(),
            };
            Sample { entry, tensors }
        });
    }

    /// Closes what is open if its window is not `open_span`, or in any case for want of one.
    pub(crate) fn settle(&mut self, open_span: Option<Span>) {
        let goes_on = |open: &Open| open_span.is_some_and(|span| overlap(open.span, span));
        if self.open.as_ref().is_some_and(|open| !goes_on(open)) {
            self.close(Cause::Window);
        }
    }

    /// Closes what is open now.
    pub(crate) fn close(&mut self, cause: Cause) {
        let Some(open) = self.open.take() else {
            return;
        };
        let samples = open.drawn.into_kept();
        if samples.is_empty() {
            return;
        }
        let header = Header {
            start_ms: open.span.0,
            end_ms: open.span.1,
            cause,
            considered: open.considered,
            too_large: open.too_large,
            ..self.header.clone()
        };
        if self.closed.len() == CLOSED_MAX {
            self.closed.pop_front();
            self.lost += 1;
        }
        self.closed.push_back(Batch {
            header,
            index: self.index.clone(),
            samples,
        });
    }

    /// Takes what has closed, oldest first, and how many batches were lost before.
    pub(crate) fn take(&mut self) -> (Vec<Batch>, u64) {
        (
            self.closed.drain(..).collect(),
            std::mem::take(&mut self.lost),
        )
    }
}

impl Batch {
    /// The sealed batch in Base64, as it goes to the supervisor.
    ///
    /// # Errors
    /// It cannot be sealed.
    pub(crate) fn seal(mut self, random: [u8; 32]) -> Result<String, String> {
        let plain = loop {
            self.index.samples = self.samples.iter().map(|s| s.entry.clone()).collect();
            let tensors: Vec<u8> = self
                .samples
                .iter()
                .flat_map(|s| &s.tensors)
                .copied()
                .collect();
            match self.index.encode(&tensors) {
                Ok(plain) => break plain,
                // Many small tensors make a long index; the largest keys stay.
                Err(_) if self.samples.len() > 1 => self.samples.truncate(self.samples.len() / 2),
                Err(error) => return Err(error.to_string()),
            }
        };
        self.header.samples = u32::try_from(self.samples.len()).unwrap_or(u32::MAX);
        let sealed = seal(&self.header, &plain, random).map_err(|e| e.to_string())?;
        Ok(base64::engine::general_purpose::STANDARD.encode(sealed))
    }
}

/// 32 random bytes.
///
/// # Errors
/// The system gives none.
pub(crate) fn random() -> Result<[u8; 32], String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|e| e.to_string())?;
    Ok(bytes)
}

/// What the draw begins with. Were there no randomness, samples would be drawn alike in every window.
fn seed() -> u64 {
    let bytes = random().unwrap_or_default();
    let (seed, _) = bytes.split_first_chunk::<8>().unwrap_or((&[0; 8], &[]));
    u64::from_be_bytes(*seed)
}

fn overlap(a: Span, b: Span) -> bool {
    a.0 < b.1 && b.0 < a.1
}

fn names(profile: &Profile, stage: Stage) -> Vec<FeatureName> {
    let after_steps = stage == Stage::Graph;
    let named = profile
        .features
        .iter()
        .filter(|f| f.after_steps == after_steps);
    let named = named.take(FEATURES_MAX).map(|f| FeatureName {
        name: f.name.clone(),
        tensor: f.tensor.clone(),
        index: f.index,
    });
    named.collect()
}

fn entries(
    engine: &Engine,
    stage: Stage,
    kept: &[Values],
    tensors: &mut Vec<u8>,
) -> Vec<TensorEntry> {
    let specs: Vec<_> = match stage {
        Stage::Sent => engine.plan().inputs().iter().map(|i| &i.spec).collect(),
        Stage::Graph => engine.manifest().inputs.iter().collect(),
    };
    let mut entry = |(spec, values): (&dunlin_protocol::bundle::TensorSpec, &Values)| {
        binary::write(values, tensors);
        TensorEntry {
            name: spec.name.clone(),
            dtype: values.dtype(),
            shape: spec.shape.clone(),
            bytes: binary::length(values),
        }
    };
    specs.into_iter().zip(kept).map(&mut entry).collect()
}

fn scored(scores: &Values, tensors: &mut Vec<u8>) -> TensorEntry {
    binary::write(scores, tensors);
    TensorEntry {
        name: "scores".to_owned(),
        dtype: scores.dtype(),
        shape: vec![scores.len()],
        bytes: binary::length(scores),
    }
}
