//! `/metrics`: what Prometheus scrapes, as text or as protocol buffers.
//!
//! The text format cannot carry native histograms; a scraper that asks for protocol buffers gets the
//! fleet's latencies in the very buckets that devices count in, others get classic buckets of the same
//! counts. All else is what the recorder renders.

mod names;
mod protobuf;
mod text;

pub use names::describe;

use crate::store::VersionTotals;
use dunlin_protocol::sketch::Latency;
use http::HeaderValue;

/// Resolution of the native histograms: eight buckets to a power of two, as [`Latency`] has them.
const SCHEMA: i32 = 3;
/// Classic buckets end at 2⁵ µs, 2⁶ µs … 2²⁹ µs, which are ends of native buckets too. A device's last
/// bucket, which ends at 2³⁰ µs, holds whatever took longer as well: its classic end is +∞.
const CLASSIC_POWERS: std::ops::RangeInclusive<usize> = 5..=29;
/// Native buckets to a power of two.
const PER_POWER: usize = 8;

/// A format that scrapers ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `text/plain; version=0.0.4`.
    Text,
    /// Length-delimited `io.prometheus.client.MetricFamily`.
    Protobuf,
}

impl Format {
    /// What an `Accept` header asks for: protocol buffers if they are named with a weight at least as
    /// great as any text's, else text.
    #[must_use]
    pub fn of(accept: Option<&HeaderValue>) -> Self {
        let accept = accept.and_then(|value| value.to_str().ok()).unwrap_or("");
        let (mut protobuf, mut text) = (0.0_f64, 0.0_f64);
        for range in accept.split(',') {
            let mut parts = range
                .split(';')
                .map(|part| part.trim().to_ascii_lowercase());
            let kind = parts.next().unwrap_or_default();
            let parameters: Vec<String> = parts.collect();
            let weight = parameters
                .iter()
                .find_map(|p| p.strip_prefix("q=")?.parse().ok());
            let weight = weight.unwrap_or(1.0_f64);
            let has = |wanted: &str| parameters.iter().any(|p| p == wanted);
            match kind.as_str() {
                "application/vnd.google.protobuf"
                    if has("proto=io.prometheus.client.metricfamily")
                        && has("encoding=delimited") =>
                {
                    protobuf = protobuf.max(weight);
                }
                "text/plain" => text = text.max(weight),
                _ => {}
            }
        }
        if protobuf > 0.0 && protobuf >= text {
            Self::Protobuf
        } else {
            Self::Text
        }
    }

    /// Its media type.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
            }
        }
    }
}

/// What a family's samples are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Summary,
    Untyped,
    Histogram,
}

/// Labels in their order.
type Labels = Vec<(String, String)>;

#[derive(Debug, Clone, PartialEq)]
struct Sample {
    labels: Labels,
    value: Value,
}

#[derive(Debug, Clone, PartialEq)]
enum Value {
    Number(f64),
    Summary {
        quantiles: Vec<(f64, f64)>,
        sum: f64,
        count: u64,
    },
    Latency(Latency),
}

/// Samples of one name.
#[derive(Debug, Clone, PartialEq)]
struct Family {
    name: String,
    help: String,
    kind: Kind,
    samples: Vec<Sample>,
}

/// Renders what the recorder rendered as text, and the fleet's totals, in a format.
#[must_use]
pub fn render(recorded: &str, totals: &[VersionTotals], format: Format) -> Vec<u8> {
    let fleet = of_totals(totals);
    match format {
        Format::Text => {
            let mut out = recorded.to_owned();
            text::write(&mut out, &fleet);
            out.into_bytes()
        }
        Format::Protobuf => {
            let mut families = text::parse(recorded);
            families.extend(fleet);
            protobuf::encode(&families)
        }
    }
}

#[allow(
    clippy::cast_precision_loss,
    reason = "counters are floats in this format"
)]
fn of_totals(totals: &[VersionTotals]) -> Vec<Family> {
    let family = |name: &str, kind, value: fn(&VersionTotals) -> Value| {
        let samples = totals.iter().map(|total| Sample {
            labels: vec![
                ("family".to_owned(), total.family.to_string()),
                ("version".to_owned(), total.version.to_string()),
            ],
            value: value(total),
        });
        Family {
            name: name.to_owned(),
            help: names::help(name).to_owned(),
            kind,
            samples: samples.collect(),
        }
    };
    let families = vec![
        family(names::INFERENCES, Kind::Counter, |t| {
            Value::Number(t.inferences as f64)
        }),
        family(names::ERRORS, Kind::Counter, |t| {
            Value::Number(t.errors as f64)
        }),
        family(names::LATENCY, Kind::Histogram, |t| {
            Value::Latency(t.latency.clone())
        }),
    ];
    families
        .into_iter()
        .filter(|f| !f.samples.is_empty())
        .collect()
}

/// Cumulative counts at the ends of the classic buckets, which are whole powers of two.
fn classic(latency: &Latency) -> Vec<(f64, u64)> {
    let below = |power: usize| {
        let buckets = latency.buckets.iter().take(power * PER_POWER);
        buckets.fold(0_u64, |sum, n| sum.saturating_add(*n))
    };
    CLASSIC_POWERS
        .map(|power| {
            #[allow(clippy::cast_precision_loss, reason = "at most 29")]
            let end = (power as f64).exp2();
            (end, below(power))
        })
        .collect()
}

/// Sum of what was counted, each value taken as the geometric middle of its bucket: devices keep no
/// sums. Off by less than 4.5 %, and it never falls where no count does.
#[allow(clippy::cast_precision_loss, reason = "an estimate")]
fn estimated_sum(latency: &Latency) -> f64 {
    let values = latency.buckets.iter().enumerate();
    values
        .map(|(at, n)| *n as f64 * ((at as f64 + 0.5) / PER_POWER as f64).exp2())
        .sum()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
