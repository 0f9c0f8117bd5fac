//! Golden messages: what goes over the wire is committed, read back, and written again to the same
//! bytes. A change here is a change of the protocol: it may only ever add optional fields.
//!
//! `DUNLIN_WRITE_GOLDEN=1 cargo test -p dunlin-protocol --test messages` writes them anew.

#![allow(clippy::unwrap_used, clippy::panic)]

use dunlin_protocol::block::Request;
use dunlin_protocol::bundle::Manifest;
use dunlin_protocol::command::{Ack, Action, Command, Desired, DesiredBundle, Probation, parse};
use dunlin_protocol::distinct::{Distinct, hash};
use dunlin_protocol::enroll::{EnrollRequest, EnrollResponse};
use dunlin_protocol::id::{BootId, Digest, Revision};
use dunlin_protocol::report::{
    Failure, Hold, Installed, Presence, Progress, Reported, TrustedVersions, Waiting,
};
use dunlin_protocol::repository::RepositoryFile;
use dunlin_protocol::sketch::{Histogram, Latency};
use dunlin_protocol::telemetry::{
    Body, Class, Event, Gap, LogLine, Record, Scalar, Segment, Window,
};
use serde::{Serialize, de::DeserializeOwned};
use std::path::PathBuf;

fn folder() -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("tests/golden/messages")
}

fn compare(name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = folder().join(format!("{name}.json"));
    if std::env::var_os("DUNLIN_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, bytes).unwrap();
    }
    let golden = std::fs::read(&path).unwrap();
    assert_eq!(
        String::from_utf8_lossy(bytes),
        String::from_utf8_lossy(&golden),
        "{name}: the wire format changed"
    );
    golden
}

fn golden<T: Serialize + DeserializeOwned>(name: &'static str, value: &T) {
    let bytes = serde_json::to_vec(value).unwrap();
    let read: T = parse(name, 1 << 20, &compare(name, &bytes)).unwrap();
    assert_eq!(serde_json::to_vec(&read).unwrap(), bytes, "{name}");

    // A newer sender's unknown field is ignored.
    let mut newer: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    newer["field_of_a_later_release"] = 1.into();
    let newer = serde_json::to_vec(&newer).unwrap();
    let read: T = parse(name, 1 << 20, &newer).unwrap();
    assert_eq!(serde_json::to_vec(&read).unwrap(), bytes, "{name}");
}

fn segment(name: &str, class: Class, bodies: Vec<Body>) {
    segment_sent(name, class, false, bodies);
}

fn segment_sent(name: &str, class: Class, backfilled: bool, bodies: Vec<Body>) {
    let segment = Segment {
        boot: BootId([0xb0; 16]),
        segment: 42,
        backfilled,
        records: bodies
            .into_iter()
            .map(|body| Record {
                time_ms: 1_700_000_000_123,
                body,
            })
            .collect(),
    };
    let bytes = segment.encode(class).unwrap();
    let golden = compare(name, &bytes);
    assert_eq!(Segment::decode(class, &golden).unwrap(), segment);
}

fn installed() -> Installed {
    Installed {
        family: "digits".parse().unwrap(),
        version: 2,
        digest: Digest::of(b"manifest"),
    }
}

fn revision() -> Revision {
    Revision {
        epoch: 1,
        generation: 7,
    }
}

#[test]
fn a_request_for_a_block() {
    let request = Request {
        id: 81_604_378_625,
        file: RepositoryFile::Blob(Digest::of(b"model")),
        offset: 65_536,
        length: 65_536,
    };
    golden("fetch", &request);
}

#[test]
fn control_messages() {
    golden(
        "desired",
        &Desired {
            revision: revision(),
            bundles: vec![DesiredBundle {
                family: "digits".parse().unwrap(),
                version: 2,
                target: "digits/2/manifest.json".to_owned(),
                digest: Digest::of(b"manifest"),
                rollout: Some("r-1".parse().unwrap()),
                probation: Probation::default(),
                asked: None,
            }],
        },
    );
    golden(
        "desired-retry",
        &Desired {
            revision: revision(),
            bundles: vec![DesiredBundle {
                family: "digits".parse().unwrap(),
                version: 2,
                target: "digits/2/manifest.json".to_owned(),
                digest: Digest::of(b"manifest"),
                rollout: None,
                probation: Probation {
                    errors_permille_max: Some(10),
                    slow_permille_max: Some(50),
                    retry_rolled_back: true,
                    ..Probation::default()
                },
                asked: None,
            }],
        },
    );
    golden(
        "command",
        &Command {
            revision: revision(),
            action: Action::Report,
        },
    );
    golden(
        "ack",
        &Ack {
            boot: BootId([0xb0; 16]),
            segments: vec![3, 5, 42],
            server_time_ms: None,
        },
    );
    golden(
        "ack-stamped",
        &Ack {
            boot: BootId([0xb0; 16]),
            segments: vec![3, 5, 42],
            server_time_ms: Some(1_700_000_000_456),
        },
    );
}

#[test]
fn reports() {
    golden(
        "presence",
        &Presence {
            online: true,
            connection: "00112233".to_owned(),
            agent_version: "0.1.0".to_owned(),
        },
    );
    let states = [
        ("reported-idle", Progress::Idle),
        (
            "reported-receiving",
            Progress::Receiving {
                done_bytes: 10,
                total_bytes: 100,
            },
        ),
        ("reported-trial", Progress::Trial),
        (
            "reported-probation",
            Progress::Probation {
                inferences: 3,
                needed: 50,
            },
        ),
        ("reported-succeeded", Progress::Succeeded),
        (
            "reported-refused",
            Progress::Refused(Failure::new("threshold", "1 of 2 signatures")),
        ),
        (
            "reported-failed",
            Progress::Failed(Failure::new("golden", "case a: expected 1, got 2")),
        ),
        (
            "reported-rolled-back",
            Progress::RolledBack(Failure::new("errors", "3 of 40")),
        ),
    ];
    for (name, progress) in states {
        golden(
            name,
            &Reported {
                sequence: 9,
                revision: revision(),
                target: Some(installed()),
                rollout: Some("r-1".parse().unwrap()),
                progress,
                waiting: None,
                hold: None,
                active: Some(installed()),
                agent_version: "0.1.0".to_owned(),
                trust: None,
                capture: None,
                models: Vec::new(),
            },
        );
    }
    golden(
        "reported-waiting",
        &Reported {
            sequence: 9,
            revision: revision(),
            target: Some(installed()),
            rollout: Some("r-1".parse().unwrap()),
            progress: Progress::Trial,
            waiting: Some(Waiting {
                code: "hold".to_owned(),
                detail: "held at the device: a test run".to_owned(),
                until_ms: Some(1_700_000_000_000),
            }),
            hold: Some(Hold {
                reason: "a test run".to_owned(),
                since_ms: 1_699_999_000_000,
                until_ms: Some(1_700_000_000_000),
            }),
            active: Some(installed()),
            agent_version: "0.1.0".to_owned(),
            trust: None,
            capture: None,
            models: Vec::new(),
        },
    );
    golden(
        "reported-trust",
        &Reported {
            sequence: 10,
            revision: revision(),
            target: None,
            rollout: None,
            progress: Progress::Idle,
            waiting: None,
            hold: None,
            active: None,
            agent_version: "0.1.0".to_owned(),
            trust: Some(TrustedVersions {
                timestamp: 12,
                snapshot: 9,
            }),
            capture: None,
            models: Vec::new(),
        },
    );
}

#[test]
fn enrolment() {
    golden(
        "enroll-request",
        &EnrollRequest {
            secret: "00".repeat(32),
            device: Some("edge-01".parse().unwrap()),
            csr_pem: "-----BEGIN CERTIFICATE REQUEST-----".to_owned(),
            arch: "aarch64".to_owned(),
            hardware: "generic".to_owned(),
            agent_version: "0.1.0".to_owned(),
        },
    );
    golden(
        "enroll-response",
        &EnrollResponse {
            fleet: "demo".parse().unwrap(),
            device: "edge-01".parse().unwrap(),
            certificate_pem: "-----BEGIN CERTIFICATE-----".to_owned(),
            ca_pem: "-----BEGIN CERTIFICATE-----".to_owned(),
            root_json: "{}".to_owned(),
            mqtt_host: "fleet.example".to_owned(),
            mqtt_port: 8883,
            repository_url: "https://fleet.example:8443".to_owned(),
            labels: [("site".to_owned(), "north".to_owned())].into(),
        },
    );
}

#[test]
fn telemetry() {
    let mut histogram = Histogram::new(3);
    histogram.counts = vec![1, 0, 4];
    histogram.under = 2;
    histogram.nan = 1;
    let window = Window {
        bundle: Digest::of(b"manifest"),
        family: "digits".parse().unwrap(),
        version: 2,
        start_ms: 1_700_000_000_000,
        end_ms: 1_700_000_060_000,
        inferences: 8,
        errors: 1,
        confidence_sum_micro: 7_400_000,
        entropy_sum_micro: 900_000,
        outputs: vec![3, 5],
        confidence: histogram.clone(),
        entropy: histogram.clone(),
        features: vec![histogram],
        profile: Some(Digest::of(b"profile")),
        latency: Latency {
            buckets: vec![0, 0, 8],
        },
        expected_confusion_nano: None,
        segment: None,
        refused: 0,
    };
    segment(
        "sketch",
        Class::Sketch,
        vec![Body::Window(Box::new(window.clone()))],
    );
    let mut species = Histogram::new(2);
    (species.counts, species.over) = (vec![4, 2], 2);
    let mut distinct = Distinct::default();
    for value in ["larch", "yew"] {
        distinct.add(hash(value.as_bytes()));
    }
    species.distinct = Some(distinct);
    let window = Window {
        features: vec![species],
        ..window
    };
    segment(
        "sketch-distinct",
        Class::Sketch,
        vec![Body::Window(Box::new(window))],
    );
    segment(
        "event",
        Class::Event,
        vec![
            Body::Event(Event {
                code: "update_refused".to_owned(),
                detail: "hash: expected a, got b".to_owned(),
                bundle: Some(Digest::of(b"manifest")),
            }),
            Body::Gap(Gap {
                class: Class::Metrics,
                segments: vec![1, 2],
                records: 2,
                reason: "space".to_owned(),
            }),
        ],
    );
    let line = || {
        vec![Body::Log(LogLine {
            level: "warn".to_owned(),
            text: "x".to_owned(),
        })]
    };
    segment("log", Class::Log, line());
    segment_sent("log-backfilled", Class::Log, true, line());
    let values = [
        ("inferences".to_owned(), Scalar::Integer(8)),
        ("latency_p50_us".to_owned(), Scalar::Number(812.5)),
        ("throttled".to_owned(), Scalar::Flag(false)),
        ("family".to_owned(), Scalar::Text("digits".to_owned())),
    ];
    let values = || {
        vec![Body::Metrics {
            values: values.clone().into(),
        }]
    };
    segment("metrics", Class::Metrics, values());
    segment_sent("metrics-backfilled", Class::Metrics, true, values());
}

#[test]
fn the_manifest() {
    for (name, target) in [
        ("manifest.json", "digits/2/manifest.json"),
        ("manifest-image.json", "birds/1/manifest.json"),
        ("manifest-speech.json", "speech/1/manifest.json"),
        ("manifest-table.json", "trees/1/manifest.json"),
    ] {
        let bytes = std::fs::read(folder().join(name)).unwrap();
        let manifest = Manifest::parse(&bytes).unwrap();
        assert_eq!(
            manifest.to_bytes().unwrap(),
            bytes.trim_ascii_end(),
            "{name}"
        );
        assert_eq!(manifest.target_path(), target);
    }
}
