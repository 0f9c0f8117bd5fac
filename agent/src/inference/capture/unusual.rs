//! How little an input looks like the reference of its bundle. Pure.
//!
//! For each feature, the share of reference rows whose bin is at most as frequent as this value's:
//! the p-value of the value against the histogram, 1/(n+1) for what the reference never saw. For the
//! confidence, the share of rows that were at most as confident. They are combined by R. J. Simes'
//! test (Biometrika 73, 1986), which one very odd value moves as well as many that are a little odd.

use super::super::observe::Observation;
use dunlin_protocol::bundle::Profile;
use dunlin_protocol::sketch::Edges;

/// Largest weight: what is less likely than one in so many counts as that.
pub(crate) const WEIGHT_MAX: f64 = 1000.0;

/// A reference, made ready.
#[derive(Debug)]
pub(crate) struct Reference {
    features: Vec<Bins>,
    confidence: Bins,
}

#[derive(Debug)]
struct Bins {
    edges: Edges,
    /// p-value by bin.
    p: Vec<f64>,
    /// Of a value in no bin.
    p_outside: f64,
}

impl Bins {
    /// `less` says whether the second bin counts for the first one's p-value.
    fn new(edges: &Edges, counts: &[u64], less: impl Fn(usize, usize) -> bool) -> Self {
        let rows = counts.iter().fold(0_u64, |n, c| n.saturating_add(*c));
        let share = |bin: usize| {
            let tail = counts
                .iter()
                .enumerate()
                .filter(|(other, _)| less(bin, *other));
            let tail = tail.fold(0_u64, |n, (_, c)| n.saturating_add(*c));
            ratio(tail, rows)
        };
        Self {
            edges: edges.clone(),
            p: (0..counts.len()).map(share).collect(),
            p_outside: ratio(0, rows),
        }
    }

    fn p(&self, value: f64) -> f64 {
        let edge = self.edges.as_slice().partition_point(|e| *e <= value);
        let bin = edge.checked_sub(1).filter(|_| !value.is_nan());
        bin.and_then(|bin| self.p.get(bin))
            .copied()
            .unwrap_or(self.p_outside)
    }
}

/// (tail + 1)/(rows + 1): never 0, and 1 without a reference.
#[allow(clippy::cast_precision_loss)] // a weight, not a count
fn ratio(tail: u64, rows: u64) -> f64 {
    (tail as f64 + 1.0) / (rows as f64 + 1.0)
}

impl Reference {
    pub(crate) fn new(profile: &Profile) -> Self {
        let feature = |f: &dunlin_protocol::bundle::FeatureProfile| {
            Bins::new(&f.edges, &f.counts, |own, other| {
                f.counts[other] <= f.counts[own]
            })
        };
        let confidence = &profile.confidence;
        Self {
            features: profile.features.iter().map(feature).collect(),
            confidence: Bins::new(&confidence.edges, &confidence.counts, |own, other| {
                other <= own
            }),
        }
    }

    /// 1 for an ordinary input, up to [`WEIGHT_MAX`] the less it looks like the reference.
    pub(crate) fn weight(&self, seen: &Observation) -> f64 {
        let values = self.features.iter().zip(seen.features());
        let mut all: Vec<f64> = values.map(|(bins, value)| bins.p(*value)).collect();
        // A model that has no scores is not for that an odd one.
        if !seen.confidence().is_nan() {
            all.push(self.confidence.p(seen.confidence()));
        }
        (1.0 / simes(&mut all)).clamp(1.0, WEIGHT_MAX)
    }
}

/// min over i of m·p₍ᵢ₎/i; 1 of nothing.
#[allow(clippy::cast_precision_loss)] // at most 4097 of them
fn simes(all: &mut [f64]) -> f64 {
    all.sort_unstable_by(f64::total_cmp);
    let m = all.len() as f64;
    let ranked = all.iter().enumerate();
    ranked.fold(1.0, |least, (at, p)| (m * p / (at as f64 + 1.0)).min(least))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use dunlin_protocol::bundle::{ClassProfile, FeatureProfile, OutputProfile};

    fn edges(values: &[f64]) -> Edges {
        Edges::try_from(values.to_vec()).unwrap()
    }

    fn reference(features: usize) -> Reference {
        let feature = |n: usize| FeatureProfile {
            name: format!("f{n}"),
            tensor: "x".to_owned(),
            after_steps: false,
            statistic: None,
            axis: None,
            categories: None,
            index: n,
            edges: edges(&[0.0, 1.0, 2.0, 3.0]),
            counts: vec![990, 9, 0],
        };
        let output = |counts: &[u64]| OutputProfile {
            edges: edges(&[0.0, 0.5, 1.1]),
            counts: counts.to_vec(),
        };
        Reference::new(&Profile {
            schema: String::new(),
            rows: 999,
            features: (0..features).map(feature).collect(),
            outputs: ClassProfile {
                classes: Vec::new(),
                counts: Vec::new(),
            },
            confidence: output(&[9, 990]),
            entropy: output(&[0, 999]),
            calibration: None,
            segments: None,
        })
    }

    fn seen(features: &[f64], confidence: f64) -> Observation {
        Observation::seen(features.to_vec(), confidence)
    }

    #[test]
    fn p_values_are_shares_of_the_reference() {
        let bins = &reference(1).features[0];
        assert_eq!(bins.p(0.5), 1.0);
        assert_eq!(bins.p(1.5), 10.0 / 1000.0);
        for never in [2.5, -1.0, 3.0, f64::NAN, f64::INFINITY] {
            assert_eq!(bins.p(never), 1.0 / 1000.0, "{never}");
        }
        let confidence = &reference(1).confidence;
        assert_eq!(confidence.p(0.9), 1.0);
        assert_eq!(confidence.p(0.4), 10.0 / 1000.0);
    }

    #[test]
    fn the_odder_the_heavier() {
        let reference = reference(4);
        let weight = |features: &[f64], confidence| reference.weight(&seen(features, confidence));
        assert_eq!(weight(&[0.5; 4], 0.9), 1.0);
        assert_eq!(weight(&[0.5; 4], f64::NAN), 1.0);
        // One of five: 5 · 10/1000, all five: 10/1000.
        assert!((weight(&[0.5, 0.5, 1.5, 0.5], 0.9) - 20.0).abs() < 1e-9);
        assert!((weight(&[0.5; 4], 0.4) - 20.0).abs() < 1e-9);
        assert!((weight(&[1.5; 4], 0.4) - 100.0).abs() < 1e-9);
        assert_eq!(weight(&[f64::NAN; 4], 0.4), 800.0);
        assert_eq!(weight(&[9.0; 4], -1.0), WEIGHT_MAX);
    }

    #[test]
    fn without_rows_nothing_is_odd() {
        let none = Bins::new(&edges(&[0.0, 1.0]), &[0], |_, _| true);
        assert_eq!((none.p(0.5), none.p(7.0)), (1.0, 1.0));
    }
}
