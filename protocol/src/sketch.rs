//! Histograms over frozen bins, and sums in fixed point: merging is addition of integers, so it is
//! exact, in any order, over any number of devices.

use crate::distinct::Distinct;
use crate::id::Digest;
use serde::{Deserialize, Serialize};

/// Most bins a histogram may have.
pub const MAX_BINS: usize = 1024;

/// Fixed-point unit of sums: one millionth.
pub const MICRO: f64 = 1e6;

/// Why edges or counts make no histogram, or two histograms cannot be merged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SketchError {
    /// Too few or too many edges.
    #[error("2 to {} edges, got {got}", MAX_BINS + 1)]
    EdgeCount {
        /// Edges found.
        got: usize,
    },
    /// Not finite, or not above the edge before.
    #[error("edge {at} is not finite or not above the edge before it")]
    EdgeOrder {
        /// Index of the bad edge.
        at: usize,
    },
    /// Histograms over different numbers of bins.
    #[error("expected {expected} bins, got {got}")]
    Bins {
        /// Bins expected.
        expected: usize,
        /// Bins found.
        got: usize,
    },
    /// A count that no honest device reaches.
    #[error("a count overflows 64 bits")]
    Overflow,
}

/// E strictly increasing finite edges: E−1 left-closed bins `[eᵢ, eᵢ₊₁)`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<f64>", into = "Vec<f64>")]
pub struct Edges(Vec<f64>);

/// One bin, from 0 to 1.
impl Default for Edges {
    fn default() -> Self {
        Self(vec![0.0, 1.0])
    }
}

impl TryFrom<Vec<f64>> for Edges {
    type Error = SketchError;

    fn try_from(edges: Vec<f64>) -> Result<Self, SketchError> {
        if edges.len() < 2 || edges.len() > MAX_BINS + 1 {
            return Err(SketchError::EdgeCount { got: edges.len() });
        }
        let rising = |at: usize| edges[at].is_finite() && (at == 0 || edges[at] > edges[at - 1]);
        match (0..edges.len()).find(|&at| !rising(at)) {
            Some(at) => Err(SketchError::EdgeOrder { at }),
            None => Ok(Self(edges)),
        }
    }
}

impl From<Edges> for Vec<f64> {
    fn from(edges: Edges) -> Self {
        edges.0
    }
}

impl Edges {
    /// Number of bins.
    #[must_use]
    pub fn bins(&self) -> usize {
        self.0.len() - 1
    }

    /// The edges.
    #[must_use]
    pub fn as_slice(&self) -> &[f64] {
        &self.0
    }

    /// Identity of the binning: SHA-256 over the edges' big-endian IEEE 754 bits.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let bytes: Vec<u8> = self.0.iter().flat_map(|e| e.to_be_bytes()).collect();
        Digest::of(&bytes)
    }
}

/// Counts over frozen bins. The edges live in the signed bundle, not here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Histogram {
    /// By bin.
    pub counts: Vec<u64>,
    /// Below the first edge.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub under: u64,
    /// At or above the last edge.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub over: u64,
    /// Not a number.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub nan: u64,
    /// +∞.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub pos_inf: u64,
    /// −∞.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub neg_inf: u64,
    /// Not there at all.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub missing: u64,
    /// How many different values were none of a feature's categories; they are counted as `over`. Only
    /// of features that are categories, and not from every device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distinct: Option<Distinct>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Histogram {
    /// An empty histogram of `bins` bins.
    #[must_use]
    pub fn new(bins: usize) -> Self {
        Self {
            counts: vec![0; bins],
            ..Self::default()
        }
    }

    /// Counts one value. `edges` must be those the histogram was made for; a bin beyond its end
    /// is counted as `over`.
    pub fn add(&mut self, edges: &Edges, value: f64) {
        let slot = if value.is_nan() {
            &mut self.nan
        } else if value == f64::INFINITY {
            &mut self.pos_inf
        } else if value == f64::NEG_INFINITY {
            &mut self.neg_inf
        } else {
            match edges.0.partition_point(|&e| e <= value) {
                0 => &mut self.under,
                n => self.counts.get_mut(n - 1).unwrap_or(&mut self.over),
            }
        };
        *slot = slot.saturating_add(1);
    }

    /// Every value counted, wherever it fell.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.specials()
            .iter()
            .chain(&self.counts)
            .fold(0, |sum, &n| sum.saturating_add(n))
    }

    /// Counts with the open tails folded into the outermost bins, as scores use them.
    #[must_use]
    pub fn with_tails(&self) -> Vec<u64> {
        let mut counts = self.counts.clone();
        if let Some(first) = counts.first_mut() {
            *first = first.saturating_add(self.under);
        }
        if let Some(last) = counts.last_mut() {
            *last = last.saturating_add(self.over);
        }
        counts
    }

    fn specials(&self) -> [u64; 6] {
        [
            self.under,
            self.over,
            self.nan,
            self.pos_inf,
            self.neg_inf,
            self.missing,
        ]
    }

    /// Adds another histogram over the same bins.
    ///
    /// # Errors
    /// Another number of bins, or a sum beyond 64 bits; `self` is unchanged then.
    pub fn merge(&mut self, other: &Self) -> Result<(), SketchError> {
        let mut sum = self.clone();
        add_counts(&mut sum.counts, &other.counts)?;
        let pairs = [
            (&mut sum.under, other.under),
            (&mut sum.over, other.over),
            (&mut sum.nan, other.nan),
            (&mut sum.pos_inf, other.pos_inf),
            (&mut sum.neg_inf, other.neg_inf),
            (&mut sum.missing, other.missing),
        ];
        for (slot, n) in pairs {
            *slot = slot.checked_add(n).ok_or(SketchError::Overflow)?;
        }
        if let Some(new) = &other.distinct {
            sum.distinct.get_or_insert_default().merge(new);
        }
        *self = sum;
        Ok(())
    }
}

/// Adds counts bin by bin.
///
/// # Errors
/// Another number of bins, or a sum beyond 64 bits.
pub fn add_counts(sum: &mut [u64], other: &[u64]) -> Result<(), SketchError> {
    if sum.len() != other.len() {
        return Err(SketchError::Bins {
            expected: sum.len(),
            got: other.len(),
        });
    }
    for (slot, n) in sum.iter_mut().zip(other) {
        *slot = slot.checked_add(*n).ok_or(SketchError::Overflow)?;
    }
    Ok(())
}

/// Latencies in an exponential histogram of scale 3 (OpenTelemetry data model, "ExponentialHistogram"):
/// bucket `i` holds values in `(2^(i/8), 2^((i+1)/8)]` microseconds, so a quantile is off by less
/// than 9.1 %.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Latency {
    /// Counts by bucket index, from bucket 0 (1 µs and less) upwards; trailing zeros left out.
    pub buckets: Vec<u64>,
}

impl Latency {
    /// Most buckets: 2^(240/8) µs is 17 minutes; longer is counted in the last.
    pub const MAX_BUCKETS: usize = 240;

    /// Counts one latency.
    pub fn add_us(&mut self, latency_us: u64) {
        let index = bucket_of(latency_us);
        if self.buckets.len() <= index {
            self.buckets.resize(index + 1, 0);
        }
        self.buckets[index] = self.buckets[index].saturating_add(1);
    }

    /// Values counted.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, &n| sum.saturating_add(n))
    }

    /// Adds another histogram.
    ///
    /// # Errors
    /// More buckets than allowed, or a sum beyond 64 bits; `self` is unchanged then.
    pub fn merge(&mut self, other: &Self) -> Result<(), SketchError> {
        if other.buckets.len() > Self::MAX_BUCKETS {
            return Err(SketchError::Bins {
                expected: Self::MAX_BUCKETS,
                got: other.buckets.len(),
            });
        }
        let mut sum = self.buckets.clone();
        sum.resize(sum.len().max(other.buckets.len()), 0);
        for (slot, n) in sum.iter_mut().zip(&other.buckets) {
            *slot = slot.checked_add(*n).ok_or(SketchError::Overflow)?;
        }
        self.buckets = sum;
        Ok(())
    }

    /// Upper bound of the bucket that holds the `q`-quantile (0 < q ≤ 1), in microseconds;
    /// `None` when empty.
    #[must_use]
    pub fn quantile_us(&self, q: f64) -> Option<f64> {
        let total = self.total();
        if total == 0 {
            return None;
        }
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss
        )]
        let rank = ((q * total as f64).ceil() as u64).clamp(1, total);
        let mut seen = 0_u64;
        for (index, n) in self.buckets.iter().enumerate() {
            seen = seen.saturating_add(*n);
            if seen >= rank {
                #[allow(clippy::cast_precision_loss)]
                return Some(((index as f64 + 1.0) / 8.0).exp2());
            }
        }
        None
    }
}

fn bucket_of(latency_us: u64) -> usize {
    if latency_us <= 1 {
        return 0;
    }
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )]
    let index = ((latency_us as f64).log2() * 8.0).ceil() as usize;
    index.saturating_sub(1).min(Latency::MAX_BUCKETS - 1)
}

/// A value of `[0, ∞)` in fixed point, units of one millionth, half away from zero; not finite or
/// negative values count as 0, values beyond 1e12 as 1e12.
#[must_use]
pub fn to_micro(value: f64) -> u64 {
    if !value.is_finite() || value <= 0.0 {
        return 0;
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    {
        (value.min(1e12) * MICRO).round() as u64
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn edges() -> Edges {
        Edges::try_from(vec![0.0, 1.0, 2.0_f64.next_up(), 5.0]).unwrap()
    }

    #[test]
    fn bins_are_left_closed_and_everything_is_counted() {
        let mut h = Histogram::new(edges().bins());
        for x in [-0.1, 0.0, 0.99, 1.0, 2.0, 2.5, 5.0, f64::NAN, f64::INFINITY] {
            h.add(&edges(), x);
        }
        h.add(&edges(), f64::NEG_INFINITY);
        assert_eq!(h.counts, [2, 2, 1]);
        assert_eq!((h.under, h.over, h.nan), (1, 1, 1));
        assert_eq!((h.pos_inf, h.neg_inf, h.total()), (1, 1, 10));
        assert_eq!(h.with_tails(), [3, 2, 2]);
    }

    #[test]
    fn bad_edges_are_refused() {
        for bad in [
            vec![],
            vec![1.0],
            vec![1.0, 1.0],
            vec![2.0, 1.0],
            vec![0.0, f64::NAN],
            vec![0.0, f64::INFINITY],
        ] {
            assert!(Edges::try_from(bad.clone()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn latency_buckets_hold_their_values() {
        for us in [0_u64, 1, 2, 3, 10, 1000, 123_456] {
            let mut l = Latency::default();
            l.add_us(us);
            let top = l.quantile_us(0.5).unwrap();
            #[allow(clippy::cast_precision_loss)]
            let v = (us as f64).max(1.0);
            assert!(top >= v * 0.999 && top <= v * 1.1, "{us}: {top}");
        }
        let mut l = Latency::default();
        l.add_us(u64::MAX);
        assert_eq!(l.buckets.len(), Latency::MAX_BUCKETS);
    }

    proptest! {
        #[test]
        fn any_partition_in_any_order_merges_to_the_same(
            values in prop::collection::vec(-1.0_f64..7.0, 0..200),
            cuts in prop::collection::vec(0_usize..5, 200),
        ) {
            let whole = values.iter().fold(Histogram::new(3), |mut h, &v| { h.add(&edges(), v); h });
            let mut parts = vec![Histogram::new(3); 5];
            for (v, &p) in values.iter().zip(&cuts) {
                parts[p].add(&edges(), *v);
            }
            parts.rotate_left(cuts[0]);
            let mut merged = Histogram::new(3);
            for p in &parts {
                merged.merge(p).unwrap();
            }
            prop_assert_eq!(merged, whole);
        }
    }

    #[test]
    fn different_values_merge_with_the_counts() {
        let with = |values: &[&str]| {
            let mut sketch = Distinct::default();
            let hashes = values.iter().map(|v| crate::distinct::hash(v.as_bytes()));
            hashes.for_each(|hash| sketch.add(hash));
            Histogram {
                over: values.len() as u64,
                distinct: Some(sketch),
                ..Histogram::new(2)
            }
        };
        let parts = [with(&["a", "b"]), Histogram::new(2), with(&["b", "c", "b"])];
        for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0]] {
            let mut merged = Histogram::new(2);
            order
                .iter()
                .for_each(|at| merged.merge(&parts[*at]).unwrap());
            assert_eq!(merged.over, 5);
            assert_eq!(merged.distinct, with(&["a", "b", "c"]).distinct);
        }
        // A device of the release before says nothing of it.
        let before: Histogram = serde_json::from_str(r#"{"counts":[1,2],"over":3}"#).unwrap();
        assert_eq!(before.distinct, None);
    }

    #[test]
    fn a_merge_that_fails_changes_nothing() {
        let mut h = Histogram::new(2);
        h.counts = vec![u64::MAX, 0];
        let before = h.clone();
        let mut one = Histogram::new(2);
        one.counts = vec![1, 1];
        assert_eq!(h.merge(&one), Err(SketchError::Overflow));
        assert_eq!(h, before);
        assert!(h.merge(&Histogram::new(3)).is_err());
    }
}
