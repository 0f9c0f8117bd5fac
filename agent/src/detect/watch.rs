//! What is watched of a model: both detectors on each of its signals.

use super::adwin::Adwin;
use super::page_hinkley::PageHinkley;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Values are held to this: what is larger says no more, and its square stays finite.
const VALUE_MAX: f64 = 1e9;

/// What of an answer is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    /// Entropy of the observed scores, in nats.
    Entropy,
    /// The largest of the observed scores: top-1 confidence, or the one score that the manifest observes,
    /// such as a reconstruction error.
    Confidence,
}

/// Which detector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Detector {
    /// Adaptive windowing.
    Adwin,
    /// Page–Hinkley.
    PageHinkley,
}

/// A change.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Detection {
    /// Who saw it.
    pub detector: Detector,
    /// In what.
    pub signal: Signal,
    /// Mean of the values that the detector holds, since the change where it can tell.
    pub estimate: f64,
    /// How many values these are.
    pub width: u64,
}

impl fmt::Display for Detection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let detector = match self.detector {
            Detector::Adwin => "adwin",
            Detector::PageHinkley => "page_hinkley",
        };
        let signal = match self.signal {
            Signal::Entropy => "entropy",
            Signal::Confidence => "confidence",
        };
        let (estimate, width) = (self.estimate, self.width);
        write!(
            f,
            "detector={detector} signal={signal} estimate={estimate:.6} width={width}"
        )
    }
}

/// An answer's signals; what is not finite is not watched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seen {
    /// Entropy in nats.
    pub entropy: f64,
    /// The largest of the observed scores.
    pub confidence: f64,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct Pair {
    adwin: Adwin,
    page_hinkley: PageHinkley,
}

/// The detectors of one bundle.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Watch {
    entropy: Pair,
    confidence: Pair,
    answers: u64,
}

impl Watch {
    /// Takes an answer's signals; the changes that they show.
    pub fn take(&mut self, seen: Seen) -> Vec<Detection> {
        self.answers = self.answers.saturating_add(1);
        let mut found = Vec::new();
        for (signal, pair, value) in [
            (Signal::Entropy, &mut self.entropy, seen.entropy),
            (Signal::Confidence, &mut self.confidence, seen.confidence),
        ] {
            if value.is_finite() {
                pair.take(signal, value.clamp(-VALUE_MAX, VALUE_MAX), &mut found);
            }
        }
        found
    }

    /// Answers taken, those before a restart included.
    #[must_use]
    pub fn answers(&self) -> u64 {
        self.answers
    }

    /// Whether a state from elsewhere can be one of these.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        [&self.entropy, &self.confidence]
            .iter()
            .all(|pair| pair.adwin.is_sound() && pair.page_hinkley.is_sound())
    }
}

impl Pair {
    fn take(&mut self, signal: Signal, value: f64, found: &mut Vec<Detection>) {
        if self.adwin.update(value) {
            found.push(Detection {
                detector: Detector::Adwin,
                signal,
                estimate: self.adwin.estimate(),
                width: self.adwin.width(),
            });
        }
        if self.page_hinkley.update(value) {
            found.push(Detection {
                detector: Detector::PageHinkley,
                signal,
                estimate: self.page_hinkley.estimate(),
                width: self.page_hinkley.width(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Confidence of about .95 that falls to about .5 at `change`.
    fn seen(at: u64, change: u64) -> Seen {
        #[allow(clippy::cast_precision_loss)]
        let noise = (at * 7919 % 101) as f64 / 1010.0;
        let confidence = if at < change { 0.9 } else { 0.45 } + noise;
        Seen {
            entropy: f64::NAN,
            confidence,
        }
    }

    #[test]
    fn a_fall_of_confidence_is_told_by_both_and_nan_by_none() {
        let mut watch = Watch::default();
        let found: Vec<Detection> = (0..2000)
            .flat_map(|at| watch.take(seen(at, 1000)))
            .collect();
        for detector in [Detector::Adwin, Detector::PageHinkley] {
            let first = found.iter().find(|d| d.detector == detector).unwrap();
            assert_eq!(first.signal, Signal::Confidence);
            assert!(first.width > 0 && first.estimate < 0.96, "{first}");
        }
        assert!((0..1000).all(|at| Watch::default().take(seen(at, 1000)).is_empty()));
        assert_eq!(watch.answers(), 2000);
        let text = found[0].to_string();
        assert!(
            text.starts_with("detector=adwin signal=confidence estimate=0."),
            "{text}"
        );
    }

    #[test]
    fn kept_over_a_restart_it_detects_at_the_same_answer() {
        let run = |restart_at: Option<u64>| {
            let mut watch = Watch::default();
            let mut found = Vec::new();
            for at in 0..2000 {
                if Some(at) == restart_at {
                    let json = serde_json::to_vec(&watch).unwrap();
                    assert!(json.len() < 32 << 10, "{} bytes", json.len());
                    watch = serde_json::from_slice(&json).unwrap();
                    assert!(watch.is_sound());
                }
                let new = watch.take(seen(at, 1000));
                found.extend(new.into_iter().map(|d| (at, d)));
            }
            found
        };
        assert!(!run(None).is_empty());
        assert_eq!(run(None), run(Some(1010)));
        assert_eq!(run(None), run(Some(3)));
    }

    #[test]
    fn what_is_beyond_all_measure_breaks_nothing() {
        let mut watch = Watch::default();
        for at in 0..5000 {
            let value = if at % 2 == 0 { f64::MAX } else { f64::MIN };
            watch.take(Seen {
                entropy: value,
                confidence: f64::INFINITY,
            });
        }
        assert!(watch.is_sound());
    }
}
