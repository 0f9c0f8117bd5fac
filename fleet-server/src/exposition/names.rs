//! The names of `/metrics`, and what each says.

/// Inferences of a version in all.
pub(super) const INFERENCES: &str = "dunlin_inferences_total";
/// Failed requests of a version in all.
pub(super) const ERRORS: &str = "dunlin_inference_errors_total";
/// Time from request to answer of a version.
pub(super) const LATENCY: &str = "dunlin_inference_latency";

const COUNTERS: [(&str, &str); 12] = [
    (
        "dunlin_blocks_refused_total",
        "Pieces of files that devices asked for over MQTT and did not get, by reason.",
    ),
    (
        "dunlin_blocks_sent_bytes_total",
        "Bytes of files sent over MQTT.",
    ),
    (
        "dunlin_broker_publishes_slowed_total",
        "Messages that the embedded broker held back because their client sent too many.",
    ),
    (
        "dunlin_certificates_refused_total",
        "Certificates that devices asked for and did not get, by reason.",
    ),
    ("dunlin_certificates_total", "Device certificates signed."),
    (
        "dunlin_desired_sent_total",
        "Desired states sent to devices.",
    ),
    (
        "dunlin_http_requests_total",
        "HTTP requests answered, by route, method and status.",
    ),
    (
        "dunlin_ingest_messages_total",
        "Messages of devices taken in hand.",
    ),
    (
        "dunlin_ingest_refused_total",
        "Messages of devices refused, by reason.",
    ),
    (
        "dunlin_ingest_segments_total",
        "Segments that are stored, repeated ones included.",
    ),
    (
        "dunlin_ingest_windows_flagged_total",
        "Windows that no honest device sends, by reason.",
    ),
    (
        "dunlin_mqtt_qos0_dropped_total",
        "Messages of QoS 0 dropped because too many waited.",
    ),
];

const GAUGES: [(&str, &str); 4] = [
    (
        "dunlin_devices",
        "Devices that are enrolled and not revoked.",
    ),
    ("dunlin_devices_online", "Devices that are connected."),
    (
        "dunlin_metadata_expires_seconds",
        "Seconds until metadata of a role expire.",
    ),
    ("dunlin_rollouts_running", "Rollouts that are running."),
];

const HISTOGRAMS: [(&str, &str); 1] = [(
    "dunlin_http_request_seconds",
    "Time from a request's head to its answer's, by route.",
)];

const FLEET: [(&str, &str); 3] = [
    (
        INFERENCES,
        "Inferences of devices' windows that have arrived, by model family and version.",
    ),
    (
        ERRORS,
        "Failed requests of devices' windows that have arrived, by model family and version.",
    ),
    (
        LATENCY,
        "Time from request to answer on devices in microseconds: they count in buckets that end at powers of 2^(1/8) us, the last of which, at 2^30 us, holds longer ones too. The sum is an estimate from the buckets, off by less than 4.5 %.",
    ),
];

/// Tells the recorder what each name says.
pub fn describe() {
    for (name, help) in COUNTERS {
        metrics::describe_counter!(name, help);
    }
    for (name, help) in GAUGES {
        metrics::describe_gauge!(name, help);
    }
    for (name, help) in HISTOGRAMS {
        metrics::describe_histogram!(name, help);
    }
}

/// What a name of the fleet's totals says.
pub(super) fn help(name: &str) -> &'static str {
    let found = FLEET.iter().find(|(known, _)| *known == name);
    found.map_or("", |(_, help)| help)
}
