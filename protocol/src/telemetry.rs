//! Device to server: records in numbered segments, deleted only when the server names them.
//!
//! A segment holds records of one class and travels as one MQTT message on that class's channel.
//! Its identity is (device, boot, segment): ingest is idempotent on it. Segments of the class
//! `metrics` are one flat JSON object of scalars, so that an ordinary MQTT consumer reads them
//! unprepared; the others are `{"boot":…,"segment":…,"records":[…]}`.

use crate::SEGMENT_MAX_BYTES;
use crate::command::{MessageError, parse};
use crate::id::{BootId, Digest, Family};
use crate::sketch::{Histogram, Latency};
use crate::topic::Channel;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a record is about; earlier classes outlive later ones when space is short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Things that happened.
    Event,
    /// Drift windows.
    Sketch,
    /// Flat scalars.
    Metrics,
    /// Log lines.
    Log,
}

impl Class {
    /// Every class, the most precious first.
    pub const ALL: [Self; 4] = [Self::Event, Self::Sketch, Self::Metrics, Self::Log];

    /// The channel its segments travel on.
    #[must_use]
    pub fn channel(self) -> Channel {
        match self {
            Self::Event => Channel::Event,
            Self::Sketch => Channel::Sketch,
            Self::Metrics => Channel::Metrics,
            Self::Log => Channel::Log,
        }
    }

    /// The class that travels on a channel.
    #[must_use]
    pub fn of_channel(channel: Channel) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.channel() == channel)
    }

    /// Stable name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.channel().as_str()
    }
}

/// A scalar of the `metrics` channel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum Scalar {
    /// A whole number.
    Integer(i64),
    /// A finite number.
    Number(f64),
    /// A flag.
    Flag(bool),
    /// A short text.
    Text(String),
}

/// One record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Record {
    /// When, by the device's clock, in milliseconds since 1970.
    pub time_ms: i64,
    /// What.
    #[serde(flatten)]
    pub body: Body,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Body {
    /// A closed drift window.
    Window(Box<Window>),
    /// Something that happened.
    Event(Event),
    /// Records that were dropped before the server had them.
    Gap(Gap),
    /// A log line.
    Log(LogLine),
    /// Flat scalars.
    Metrics {
        /// By name.
        values: BTreeMap<String, Scalar>,
    },
}

/// Counts of one (bundle, time span) on one device. Only integers: merging is exact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Window {
    /// Digest of the bundle that computed the outputs.
    pub bundle: Digest,
    /// Its family.
    pub family: Family,
    /// Its version.
    pub version: u64,
    /// Start of the span, in milliseconds since 1970.
    pub start_ms: i64,
    /// End of the span (exclusive), in milliseconds since 1970.
    pub end_ms: i64,
    /// The profile's segment that was counted; absent: requests that said none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<String>,
    /// Inferences that gave an answer.
    pub inferences: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Requests that were refused because what they sent does not fit the manifest: another type or
    /// shape, a tensor that is missing, a picture that is none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub refused: u64,
    /// Sum of top-1 confidences, in millionths.
    pub confidence_sum_micro: u64,
    /// Sum of output entropies in nats, in millionths.
    pub entropy_sum_micro: u64,
    /// Answers by class, in the order of the manifest's labels.
    pub outputs: Vec<u64>,
    /// Top-1 confidences over the profile's bins.
    pub confidence: Histogram,
    /// Output entropies over the profile's bins.
    pub entropy: Histogram,
    /// Input features over the profile's bins, in the profile's order.
    pub features: Vec<Histogram>,
    /// Digest of the profile that holds the bins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<Digest>,
    /// Time from request to answer.
    pub latency: Latency,
    /// Expected confusion matrix where the profile has a calibration, row by row, in billionths of an
    /// answer: rows are predicted classes, columns true ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_confusion_nano: Option<Vec<u64>>,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Something that happened on a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Event {
    /// Short and stable, such as `update_refused` or `worker_died`.
    pub code: String,
    /// What, where, expected and got; for people.
    pub detail: String,
    /// The bundle it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<Digest>,
}

/// Records dropped for want of space or age.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Gap {
    /// Class of the dropped records.
    pub class: Class,
    /// The dropped segments of this boot.
    pub segments: Vec<u64>,
    /// Number of dropped records.
    pub records: u64,
    /// Why.
    pub reason: String,
}

/// A log line worth sending.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LogLine {
    /// `error`, `warn` or `info`.
    pub level: String,
    /// The text.
    pub text: String,
}

impl Body {
    /// The class of the record.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Window(_) => Class::Sketch,
            Self::Event(_) | Self::Gap(_) => Class::Event,
            Self::Metrics { .. } => Class::Metrics,
            Self::Log(_) => Class::Log,
        }
    }
}

/// Records of one class under one number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Segment {
    /// Life of the telemetry store.
    pub boot: BootId,
    /// Number within the boot; rises with the order in which records were taken in, and is never
    /// used twice.
    pub segment: u64,
    /// Sent well after its oldest record happened, as after a time without a connection. It says
    /// something of this sending alone: the same segment may be sent again with it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub backfilled: bool,
    /// The records, oldest first. Exactly one for `metrics`.
    pub records: Vec<Record>,
}

/// Names that a `metrics` message keeps for itself; no value may have one of them.
pub const FLAT_HEAD: [&str; 4] = ["backfilled", "boot", "segment", "time_ms"];

impl Segment {
    /// The message on the class's channel.
    ///
    /// # Errors
    /// A record that does not belong to the class, or a message beyond [`SEGMENT_MAX_BYTES`].
    pub fn encode(&self, class: Class) -> Result<Vec<u8>, MessageError> {
        let what = class.as_str();
        let malformed = |problem: String| MessageError::Malformed { what, problem };
        if let Some(stray) = self.records.iter().find(|r| r.body.class() != class) {
            return Err(malformed(format!(
                "a record of class {} in a segment of class {what}",
                stray.body.class().as_str()
            )));
        }
        let json = match (class, self.records.as_slice()) {
            (Class::Metrics, [record]) => serde_json::to_vec(&self.flat(record)),
            (Class::Metrics, many) => {
                return Err(malformed(format!("expected 1 record, got {}", many.len())));
            }
            _ => serde_json::to_vec(self),
        };
        let json = json.map_err(|e| malformed(e.to_string()))?;
        if json.len() > SEGMENT_MAX_BYTES {
            return Err(MessageError::TooLarge {
                what,
                max: SEGMENT_MAX_BYTES,
                got: json.len(),
            });
        }
        Ok(json)
    }

    fn flat(&self, record: &Record) -> BTreeMap<String, Scalar> {
        let mut flat = match &record.body {
            Body::Metrics { values } => values.clone(),
            _ => BTreeMap::new(),
        };
        let segment = i64::try_from(self.segment).unwrap_or(i64::MAX);
        if self.backfilled {
            flat.insert("backfilled".to_owned(), Scalar::Flag(true));
        }
        flat.insert("boot".to_owned(), Scalar::Text(self.boot.to_string()));
        flat.insert("segment".to_owned(), Scalar::Integer(segment));
        flat.insert("time_ms".to_owned(), Scalar::Integer(record.time_ms));
        flat
    }

    /// Reads a message of the class's channel.
    ///
    /// # Errors
    /// Too long, not of this shape, or with records of another class.
    pub fn decode(class: Class, bytes: &[u8]) -> Result<Self, MessageError> {
        let what = class.as_str();
        let malformed = |problem: String| MessageError::Malformed { what, problem };
        if class == Class::Metrics {
            let mut flat: BTreeMap<String, Scalar> = parse(what, SEGMENT_MAX_BYTES, bytes)?;
            let head = FLAT_HEAD.map(|name| flat.remove(name));
            let [
                backfilled @ (None | Some(Scalar::Flag(_))),
                Some(Scalar::Text(boot)),
                Some(Scalar::Integer(segment)),
                Some(Scalar::Integer(time_ms)),
            ] = head
            else {
                return Err(malformed(
                    "expected boot (text), segment and time_ms (whole numbers), and backfilled (a flag) if it is there"
                        .to_owned(),
                ));
            };
            let segment = u64::try_from(segment).map_err(|e| malformed(e.to_string()))?;
            return Ok(Self {
                boot: boot
                    .parse()
                    .map_err(|e: crate::id::IdError| malformed(e.to_string()))?,
                segment,
                backfilled: backfilled == Some(Scalar::Flag(true)),
                records: vec![Record {
                    time_ms,
                    body: Body::Metrics { values: flat },
                }],
            });
        }
        let segment: Self = parse(what, SEGMENT_MAX_BYTES, bytes)?;
        match segment.records.iter().find(|r| r.body.class() != class) {
            Some(stray) => Err(malformed(format!(
                "a record of class {}",
                stray.body.class().as_str()
            ))),
            None => Ok(segment),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn metrics() -> Segment {
        let values = [
            ("inferences".to_owned(), Scalar::Integer(7)),
            ("latency_p50_us".to_owned(), Scalar::Number(12.5)),
        ];
        Segment {
            boot: BootId([7; 16]),
            segment: 3,
            backfilled: false,
            records: vec![Record {
                time_ms: 1000,
                body: Body::Metrics {
                    values: values.into(),
                },
            }],
        }
    }

    #[test]
    fn metrics_are_flat_on_the_wire() {
        let wire = metrics().encode(Class::Metrics).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&wire).unwrap();
        let all_scalar = value
            .as_object()
            .unwrap()
            .values()
            .all(|v| !v.is_object() && !v.is_array());
        assert!(all_scalar, "{value}");
        assert_eq!(Segment::decode(Class::Metrics, &wire).unwrap(), metrics());
    }

    #[test]
    fn what_is_sent_late_says_so_and_nothing_else_changes() {
        let late = Segment {
            backfilled: true,
            ..metrics()
        };
        let wire = late.encode(Class::Metrics).unwrap();
        let flat: BTreeMap<String, Scalar> = serde_json::from_slice(&wire).unwrap();
        assert_eq!(flat["backfilled"], Scalar::Flag(true));
        assert_eq!(Segment::decode(Class::Metrics, &wire).unwrap(), late);
        let text = String::from_utf8(wire).unwrap();
        let without = text.replace("\"backfilled\":true,", "");
        assert_eq!(
            without.as_bytes(),
            metrics().encode(Class::Metrics).unwrap()
        );
        let damaged = text.replace("\"backfilled\":true", "\"backfilled\":1");
        assert!(Segment::decode(Class::Metrics, damaged.as_bytes()).is_err());
    }

    #[test]
    fn a_record_on_the_wrong_channel_is_refused() {
        assert!(metrics().encode(Class::Event).is_err());
        let event = Segment {
            records: vec![Record {
                time_ms: 1,
                body: Body::Event(Event {
                    code: "c".to_owned(),
                    detail: String::new(),
                    bundle: None,
                }),
            }],
            ..metrics()
        };
        let wire = event.encode(Class::Event).unwrap();
        assert_eq!(Segment::decode(Class::Event, &wire).unwrap(), event);
        assert!(Segment::decode(Class::Sketch, &wire).is_err());
        assert!(Segment::decode(Class::Metrics, &wire).is_err());
    }

    #[test]
    fn oversized_messages_are_not_parsed() {
        let big = vec![b'['; SEGMENT_MAX_BYTES + 1];
        for class in Class::ALL {
            assert!(matches!(
                Segment::decode(class, &big),
                Err(MessageError::TooLarge { .. })
            ));
        }
    }
}
