//! The time of an observation, for a benchmark: nothing else can call what observes.

use super::engine::{Engine, EngineError};
use super::observe::{Observation, Windows};
use super::segment::Segment;
use super::tensor::Values;
use std::path::Path;
use std::time::{Duration, Instant};

/// A loaded bundle whose answers are observed.
#[derive(Debug)]
pub struct ObserveBench {
    engine: Engine,
    inputs: Vec<Values>,
    windows: Windows,
}

impl ObserveBench {
    /// Loads the bundle staged in a folder; its inputs are all the same small number.
    ///
    /// # Errors
    /// It cannot be loaded, or takes no numbers.
    pub fn load(slot: &Path) -> Result<Self, String> {
        let engine = Engine::load(slot).map_err(|e: EngineError| e.to_string())?;
        let inputs = engine.plan().inputs().iter();
        let inputs = inputs
            .map(|input| Values::from_f64(input.spec.dtype, &vec![0.5; input.spec.elements()]))
            .collect::<Result<_, _>>()?;
        let windows = Windows::new(&engine, 60_000);
        Ok(Self {
            engine,
            inputs,
            windows,
        })
    }

    /// Number of features observed of a request.
    #[must_use]
    pub fn features(&self) -> usize {
        self.engine.profile().map_or(0, |(_, p)| p.features.len())
    }

    /// Number of classes.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.engine.manifest().labels.len()
    }

    /// Observes the same answer so many times; the time of all together.
    ///
    /// # Panics
    /// The bundle does not compute.
    #[allow(clippy::expect_used)]
    pub fn run(&mut self, times: usize) -> Duration {
        let inference = self.engine.run(&self.inputs, self.engine.initial_state());
        let (inference, _) = inference.expect("a bundle that was loaded computes");
        let begun = Instant::now();
        for n in 0..times {
            let seen = Observation::of(&self.engine, &self.inputs, &inference);
            let segment = Segment::default();
            self.windows.answered(0, segment, &seen, n as u64);
        }
        begun.elapsed()
    }
}
