//! Prometheus' protocol buffers, as `io.prometheus.client` (client_model, `metrics.proto`) has them.

use super::{Family, Kind, PER_POWER, SCHEMA, Sample, Value, classic, estimated_sum};
use dunlin_protocol::sketch::Latency;
use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub(super) struct LabelPair {
    #[prost(string, optional, tag = "1")]
    pub(super) name: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub(super) value: Option<String>,
}

/// `Gauge`, `Counter` and `Untyped` are alike.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Number {
    #[prost(double, optional, tag = "1")]
    pub(super) value: Option<f64>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Quantile {
    #[prost(double, optional, tag = "1")]
    pub(super) quantile: Option<f64>,
    #[prost(double, optional, tag = "2")]
    pub(super) value: Option<f64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Summary {
    #[prost(uint64, optional, tag = "1")]
    pub(super) sample_count: Option<u64>,
    #[prost(double, optional, tag = "2")]
    pub(super) sample_sum: Option<f64>,
    #[prost(message, repeated, tag = "3")]
    pub(super) quantile: Vec<Quantile>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Bucket {
    #[prost(uint64, optional, tag = "1")]
    pub(super) cumulative_count: Option<u64>,
    #[prost(double, optional, tag = "2")]
    pub(super) upper_bound: Option<f64>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct BucketSpan {
    #[prost(sint32, optional, tag = "1")]
    pub(super) offset: Option<i32>,
    #[prost(uint32, optional, tag = "2")]
    pub(super) length: Option<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Histogram {
    #[prost(uint64, optional, tag = "1")]
    pub(super) sample_count: Option<u64>,
    #[prost(double, optional, tag = "2")]
    pub(super) sample_sum: Option<f64>,
    #[prost(message, repeated, tag = "3")]
    pub(super) bucket: Vec<Bucket>,
    #[prost(sint32, optional, tag = "5")]
    pub(super) schema: Option<i32>,
    #[prost(double, optional, tag = "6")]
    pub(super) zero_threshold: Option<f64>,
    #[prost(uint64, optional, tag = "7")]
    pub(super) zero_count: Option<u64>,
    #[prost(message, repeated, tag = "12")]
    pub(super) positive_span: Vec<BucketSpan>,
    #[prost(sint64, repeated, packed = "false", tag = "13")]
    pub(super) positive_delta: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Metric {
    #[prost(message, repeated, tag = "1")]
    pub(super) label: Vec<LabelPair>,
    #[prost(message, optional, tag = "2")]
    pub(super) gauge: Option<Number>,
    #[prost(message, optional, tag = "3")]
    pub(super) counter: Option<Number>,
    #[prost(message, optional, tag = "4")]
    pub(super) summary: Option<Summary>,
    #[prost(message, optional, tag = "5")]
    pub(super) untyped: Option<Number>,
    #[prost(message, optional, tag = "7")]
    pub(super) histogram: Option<Histogram>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct MetricFamily {
    #[prost(string, optional, tag = "1")]
    pub(super) name: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub(super) help: Option<String>,
    /// `MetricType`: 0 counter, 1 gauge, 2 summary, 3 untyped, 4 histogram.
    #[prost(int32, optional, tag = "3")]
    pub(super) kind: Option<i32>,
    #[prost(message, repeated, tag = "4")]
    pub(super) metric: Vec<Metric>,
}

/// Families one after another, each with its length before it.
pub(super) fn encode(families: &[Family]) -> Vec<u8> {
    let families = families.iter().filter(|family| !family.samples.is_empty());
    families
        .flat_map(|f| message(f).encode_length_delimited_to_vec())
        .collect()
}

fn message(family: &Family) -> MetricFamily {
    let kind = match family.kind {
        Kind::Counter => 0,
        Kind::Gauge => 1,
        Kind::Summary => 2,
        Kind::Untyped => 3,
        Kind::Histogram => 4,
    };
    let metrics = family.samples.iter().map(|s| metric(family.kind, s));
    MetricFamily {
        name: Some(family.name.clone()),
        help: Some(family.help.clone()),
        kind: Some(kind),
        metric: metrics.collect(),
    }
}

fn metric(kind: Kind, sample: &Sample) -> Metric {
    let labels = sample.labels.iter().map(|(name, value)| LabelPair {
        name: Some(name.clone()),
        value: Some(value.clone()),
    });
    let mut metric = Metric {
        label: labels.collect(),
        ..Metric::default()
    };
    match &sample.value {
        Value::Number(value) => {
            let number = Some(Number {
                value: Some(*value),
            });
            match kind {
                Kind::Counter => metric.counter = number,
                Kind::Gauge => metric.gauge = number,
                _ => metric.untyped = number,
            }
        }
        Value::Summary {
            quantiles,
            sum,
            count,
        } => {
            let quantiles = quantiles.iter().map(|(quantile, value)| Quantile {
                quantile: Some(*quantile),
                value: Some(*value),
            });
            metric.summary = Some(Summary {
                sample_count: Some(*count),
                sample_sum: Some(*sum),
                quantile: quantiles.collect(),
            });
        }
        Value::Latency(latency) => metric.histogram = Some(histogram(latency)),
    }
    metric
}

fn histogram(latency: &Latency) -> Histogram {
    let classic = classic(latency).into_iter().map(|(end, count)| Bucket {
        cumulative_count: Some(count),
        upper_bound: Some(end),
    });
    let (positive_span, positive_delta) = native(latency);
    Histogram {
        sample_count: Some(latency.total()),
        sample_sum: Some(estimated_sum(latency)),
        bucket: classic.collect(),
        schema: Some(SCHEMA),
        zero_threshold: Some(0.0),
        zero_count: Some(0),
        positive_span,
        positive_delta,
    }
}

/// Filled buckets as spans, and each count's difference to the one before. A device's bucket i ends at
/// 2^((i+1)/8) µs, which is where Prometheus' bucket i+1 ends.
fn native(latency: &Latency) -> (Vec<BucketSpan>, Vec<i64>) {
    let (mut spans, mut deltas) = (Vec::<BucketSpan>::new(), Vec::new());
    let (mut next, mut before) = (0_i32, 0_i64);
    for (index, count) in (1_i32..).zip(&latency.buckets) {
        if *count == 0 {
            continue;
        }
        match spans.last_mut() {
            Some(span) if index == next => span.length = span.length.map(|n| n + 1),
            _ => spans.push(BucketSpan {
                offset: Some(index - next),
                length: Some(1),
            }),
        }
        let count = i64::try_from(*count).unwrap_or(i64::MAX);
        deltas.push(count - before);
        (next, before) = (index + 1, count);
    }
    if spans.is_empty() {
        // Says that it is a native histogram without values.
        spans.push(BucketSpan {
            offset: Some(0),
            length: Some(0),
        });
    }
    debug_assert_eq!(PER_POWER, 1 << SCHEMA);
    (spans, deltas)
}
