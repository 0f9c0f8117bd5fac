#![allow(clippy::unwrap_used)]

use super::protobuf::MetricFamily;
use super::*;
use proptest::prelude::*;
use prost::Message as _;

fn total(buckets: Vec<u64>) -> VersionTotals {
    let latency = Latency { buckets };
    VersionTotals {
        family: "digits".parse().unwrap(),
        version: 3,
        inferences: latency.total(),
        errors: 2,
        latency,
    }
}

fn decoded(mut bytes: &[u8]) -> Vec<MetricFamily> {
    let mut families = Vec::new();
    while !bytes.is_empty() {
        families.push(MetricFamily::decode_length_delimited(&mut bytes).unwrap());
    }
    families
}

/// Counts by native index, as a reader of spans and deltas gets them.
fn counts(histogram: &super::protobuf::Histogram) -> Vec<(i32, i64)> {
    let (mut index, mut count) = (0, 0);
    let mut deltas = histogram.positive_delta.iter();
    let mut counts = Vec::new();
    for span in &histogram.positive_span {
        index += span.offset.unwrap();
        for _ in 0..span.length.unwrap() {
            count += deltas.next().unwrap();
            counts.push((index, count));
            index += 1;
        }
    }
    assert_eq!(deltas.next(), None);
    counts
}

#[test]
fn prometheus_is_answered_in_what_it_asks_for() {
    let of = |accept: &str| Format::of(Some(&HeaderValue::from_str(accept).unwrap()));
    let with_native = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    assert_eq!(of(with_native), Format::Protobuf);
    let without =
        "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    assert_eq!(of(without), Format::Text);
    assert_eq!(of("application/vnd.google.protobuf"), Format::Text);
    assert_eq!(
        of(
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.2,text/plain"
        ),
        Format::Text
    );
    assert_eq!(of("*/*"), Format::Text);
    assert_eq!(Format::of(None), Format::Text);
}

#[test]
fn classic_buckets_are_sums_of_whole_native_ones() {
    let mut buckets = vec![0; 160];
    // 32 µs is the last value of bucket 39; 33 µs the first of 40.
    (buckets[39], buckets[40], buckets[159]) = (5, 7, 1);
    let text = render("", &[total(buckets)], Format::Text);
    let text = String::from_utf8(text).unwrap();
    for line in [
        "# TYPE dunlin_inference_latency histogram",
        "dunlin_inference_latency_bucket{family=\"digits\",version=\"3\",le=\"32\"} 5",
        "dunlin_inference_latency_bucket{family=\"digits\",version=\"3\",le=\"64\"} 12",
        "dunlin_inference_latency_bucket{family=\"digits\",version=\"3\",le=\"524288\"} 12",
        "dunlin_inference_latency_bucket{family=\"digits\",version=\"3\",le=\"+Inf\"} 13",
        "dunlin_inference_latency_count{family=\"digits\",version=\"3\"} 13",
        "dunlin_inferences_total{family=\"digits\",version=\"3\"} 13",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}: {text}");
    }
}

#[test]
fn values_are_counted_between_the_ends_that_prometheus_gives_their_index() {
    for us in [1_u64, 2, 3, 31, 32, 33, 1000, 123_456] {
        let mut latency = Latency::default();
        latency.add_us(us);
        let families = decoded(&render("", &[total(latency.buckets)], Format::Protobuf));
        let histogram = families.last().unwrap().metric[0]
            .histogram
            .clone()
            .unwrap();
        let [(index, 1)] = counts(&histogram)[..] else {
            panic!("{histogram:?}");
        };
        let (lower, upper) = (f64::from(index - 1) / 8.0, f64::from(index) / 8.0);
        let log = (us as f64).log2();
        assert!((lower < log && log <= upper) || us == 1, "{us}: {index}");
    }
}

#[test]
fn what_the_recorder_renders_is_in_both_formats() {
    let recorded = "# HELP dunlin_devices Devices.\n# TYPE dunlin_devices gauge\ndunlin_devices 12\n\n\
        # TYPE dunlin_http_requests_total counter\n\
        dunlin_http_requests_total{route=\"/a,\\\"}\\\\\",method=\"GET\"} 3\n\n\
        # TYPE dunlin_http_request_seconds summary\n\
        dunlin_http_request_seconds{route=\"/a\",quantile=\"0.5\"} 0.25\n\
        dunlin_http_request_seconds{route=\"/a\",quantile=\"1\"} NaN\n\
        dunlin_http_request_seconds_sum{route=\"/a\"} 1.5\n\
        dunlin_http_request_seconds_count{route=\"/a\"} 6\n";
    let families = decoded(&render(recorded, &[], Format::Protobuf));
    assert_eq!(families.len(), 3);
    let [devices, requests, seconds] = &families[..] else {
        panic!("{families:?}");
    };
    assert_eq!(
        (devices.help.as_deref(), devices.kind),
        (Some("Devices."), Some(1))
    );
    assert_eq!(devices.metric[0].gauge.unwrap().value, Some(12.0));
    assert_eq!(requests.metric[0].counter.unwrap().value, Some(3.0));
    assert_eq!(
        requests.metric[0].label[0].value.as_deref(),
        Some("/a,\"}\\")
    );
    let summary = seconds.metric[0].summary.clone().unwrap();
    assert_eq!(
        (summary.sample_count, summary.sample_sum),
        (Some(6), Some(1.5))
    );
    assert_eq!(summary.quantile[0].value, Some(0.25));
    assert!(summary.quantile[1].value.unwrap().is_nan());
    let text = render(recorded, &[], Format::Text);
    assert_eq!(text, recorded.as_bytes());
}

proptest! {
    #[test]
    fn native_histograms_hold_every_count(buckets in prop::collection::vec(prop_oneof![Just(0), 0..u64::from(u32::MAX)], 0..160)) {
        let families = decoded(&render("", &[total(buckets.clone())], Format::Protobuf));
        let histogram = families.last().unwrap().metric[0].histogram.clone().unwrap();
        let filled = buckets.iter().enumerate().filter(|(_, n)| **n > 0);
        let expected: Vec<(i32, i64)> = filled
            .map(|(at, n)| (i32::try_from(at + 1).unwrap(), i64::try_from(*n).unwrap()))
            .collect();
        prop_assert_eq!(counts(&histogram), expected);
        prop_assert_eq!(histogram.sample_count, Some(buckets.iter().sum()));
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "(.|\n){0,200}") {
        let _ = render(&text, &[], Format::Protobuf);
    }
}
