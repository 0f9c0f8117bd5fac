//! Segments at rest, and how records are gathered into them.
//!
//! An entry of the store is the segment's number and
//! `version u8 · kind u8 · records u32 · oldest_ms i64 · json_bytes u32` (all big-endian), then the
//! JSON array of the records, compressed with zstd. The head alone is read when the store is
//! opened, so that opening is quick however much is buffered. Whole segments are compressed, not
//! single records, because the store writes several bytes for each byte of a small entry.

use super::sync::is_backfilled;
use dunlin_protocol::SEGMENT_MAX_BYTES;
use dunlin_protocol::command::MessageError;
use dunlin_protocol::id::BootId;
use dunlin_protocol::telemetry::{Body, Class, FLAT_HEAD, Record, Scalar, Segment};

/// Largest record, in bytes of JSON: room is left for a segment's own fields.
pub const RECORD_MAX_BYTES: usize = SEGMENT_MAX_BYTES - 1024;
/// A class's open segment is sealed when its JSON reaches this many bytes.
pub const SEAL_BYTES: usize = 64 * 1024;
/// A class's open segment is sealed when it holds this many records.
pub const SEAL_RECORDS: usize = 256;

const VERSION: u8 = 1;
const HEAD_BYTES: usize = 18;
const ZSTD_LEVEL: i32 = 3;

/// Why a record cannot be buffered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Larger than a segment may be.
    #[error(
        "record of class {class}: {got} bytes as JSON, at most {RECORD_MAX_BYTES} are accepted"
    )]
    TooLarge {
        /// Class of the record.
        class: &'static str,
        /// Length found.
        got: usize,
    },
    /// JSON has no NaN and no infinity.
    #[error("metric {name:?}: {got} is not a finite number")]
    NotFinite {
        /// Name of the metric.
        name: String,
        /// The number.
        got: String,
    },
    /// A name that the message keeps for itself.
    #[error("metric {name:?}: the names {} belong to the message", FLAT_HEAD.join(", "))]
    Reserved {
        /// Name of the metric.
        name: String,
    },
    /// Not to be written as JSON.
    #[error("record of class {class}: {problem}")]
    Malformed {
        /// Class of the record.
        class: &'static str,
        /// What is wrong.
        problem: String,
    },
}

/// Why an entry of the store cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// Shorter than its head, or of a format this agent does not know.
    #[error("head: expected {HEAD_BYTES} bytes of format {VERSION} and a known kind, got {got}")]
    Head {
        /// What was there instead.
        got: String,
    },
    /// The records do not decompress, or not to the length the head names.
    #[error("records: {problem}")]
    Records {
        /// What is wrong.
        problem: String,
    },
    /// The records cannot be sent as a message of the class.
    #[error(transparent)]
    Message(#[from] MessageError),
}

/// What a segment holds. Gaps travel as events and are kept apart because they are evicted last
/// of all: they are what is left of everything that was evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// Accounts of dropped segments.
    Gap = 0,
    /// Things that happened.
    Event = 1,
    /// Drift windows.
    Sketch = 2,
    /// Flat scalars.
    Metrics = 3,
    /// Log lines.
    Log = 4,
    /// Windows that are still open: never sent, and in no index (`keeper/drafts.rs`).
    Draft = 5,
}

impl Kind {
    /// Every kind that is sent, the most precious first.
    pub const ALL: [Self; 5] = [
        Self::Gap,
        Self::Event,
        Self::Sketch,
        Self::Metrics,
        Self::Log,
    ];

    /// The kind that is written as this number.
    #[must_use]
    pub fn of_byte(byte: u8) -> Option<Self> {
        let mut all = Self::ALL.into_iter().chain([Self::Draft]);
        all.find(|kind| *kind as u8 == byte)
    }

    /// The kind of a class's ordinary segments.
    #[must_use]
    pub fn of(class: Class) -> Self {
        match class {
            Class::Event => Self::Event,
            Class::Sketch => Self::Sketch,
            Class::Metrics => Self::Metrics,
            Class::Log => Self::Log,
        }
    }

    /// The class it travels as.
    #[must_use]
    pub fn class(self) -> Class {
        match self {
            Self::Gap | Self::Event => Class::Event,
            Self::Sketch | Self::Draft => Class::Sketch,
            Self::Metrics => Class::Metrics,
            Self::Log => Class::Log,
        }
    }
}

/// What is known of a segment without reading its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// What it holds.
    pub kind: Kind,
    /// Number of records.
    pub records: u32,
    /// Time of its oldest record, in milliseconds since 1970.
    pub oldest_ms: i64,
    /// Length of its records as JSON, in bytes.
    pub json_bytes: u32,
    /// Length of the entry in the store, in bytes.
    pub entry_bytes: u32,
}

/// A segment as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Its number within the boot.
    pub number: u64,
    /// Its head.
    pub meta: Meta,
    /// Head and compressed records.
    pub entry: Vec<u8>,
}

/// A record that has been found fit, as JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    class: Class,
    time_ms: i64,
    json: Vec<u8>,
}

impl Prepared {
    /// Checks a record and writes it as JSON.
    ///
    /// # Errors
    /// The record is too large, or its metrics could not be read back by the server.
    pub fn new(record: &Record) -> Result<Self, RecordError> {
        let class = record.body.class();
        if let Body::Metrics { values } = &record.body {
            for (name, value) in values {
                if FLAT_HEAD.contains(&name.as_str()) {
                    return Err(RecordError::Reserved { name: name.clone() });
                }
                if let Scalar::Number(got) = value
                    && !got.is_finite()
                {
                    return Err(RecordError::NotFinite {
                        name: name.clone(),
                        got: got.to_string(),
                    });
                }
            }
        }
        let json = serde_json::to_vec(record).map_err(|e| RecordError::Malformed {
            class: class.as_str(),
            problem: e.to_string(),
        })?;
        if json.len() > RECORD_MAX_BYTES {
            return Err(RecordError::TooLarge {
                class: class.as_str(),
                got: json.len(),
            });
        }
        Ok(Self {
            class,
            time_ms: record.time_ms,
            json,
        })
    }

    /// Length as JSON, in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.json.len()
    }

    /// Never: a record has a time and a type.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.json.is_empty()
    }
}

impl Sealed {
    /// Seals records that have been gathered; `number` must never have been used in this boot.
    ///
    /// # Errors
    /// The compressor failed (out of memory).
    pub fn new(number: u64, kind: Kind, records: &[Prepared]) -> std::io::Result<Self> {
        let json_bytes = records.iter().map(|r| r.json.len() + 1).sum::<usize>() + 1;
        let mut json = Vec::with_capacity(json_bytes);
        json.push(b'[');
        for (at, record) in records.iter().enumerate() {
            if at > 0 {
                json.push(b',');
            }
            json.extend_from_slice(&record.json);
        }
        json.push(b']');
        let oldest_ms = records.iter().map(|r| r.time_ms).min().unwrap_or_default();
        let count = u32::try_from(records.len()).unwrap_or(u32::MAX);
        let json_bytes = u32::try_from(json.len()).unwrap_or(u32::MAX);
        let mut entry = vec![VERSION, kind as u8];
        entry.extend_from_slice(&count.to_be_bytes());
        entry.extend_from_slice(&oldest_ms.to_be_bytes());
        entry.extend_from_slice(&json_bytes.to_be_bytes());
        entry.extend_from_slice(&zstd::bulk::compress(&json, ZSTD_LEVEL)?);
        let meta = Meta {
            kind,
            records: count,
            oldest_ms,
            json_bytes,
            entry_bytes: u32::try_from(entry.len()).unwrap_or(u32::MAX),
        };
        Ok(Self {
            number,
            meta,
            entry,
        })
    }

    /// Seals one record, such as a gap.
    ///
    /// # Errors
    /// The record is unfit, or the compressor failed.
    pub fn of_record(number: u64, kind: Kind, record: &Record) -> std::io::Result<Self> {
        let prepared = Prepared::new(record).map_err(std::io::Error::other)?;
        Self::new(number, kind, &[prepared])
    }
}

impl Meta {
    /// Reads an entry's head.
    ///
    /// # Errors
    /// Too short, of an unknown format or kind, or longer than a segment may be.
    pub fn read(entry: &[u8]) -> Result<Self, EntryError> {
        let fail = |got: String| EntryError::Head { got };
        let Some((head, _)) = entry.split_first_chunk::<HEAD_BYTES>() else {
            return Err(fail(format!("{} bytes", entry.len())));
        };
        let [version, kind, r0, r1, r2, r3, t @ .., j0, j1, j2, j3] = *head;
        let kind = Kind::of_byte(kind);
        let (VERSION, Some(kind)) = (version, kind) else {
            return Err(fail(format!("format {version}, kind {}", head[1])));
        };
        let json_bytes = u32::from_be_bytes([j0, j1, j2, j3]);
        if json_bytes as usize > SEGMENT_MAX_BYTES {
            return Err(fail(format!("records of {json_bytes} bytes")));
        }
        Ok(Self {
            kind,
            records: u32::from_be_bytes([r0, r1, r2, r3]),
            oldest_ms: i64::from_be_bytes(t),
            json_bytes,
            entry_bytes: u32::try_from(entry.len()).map_err(|_| fail("over 4 GiB".to_owned()))?,
        })
    }
}

/// Reads an entry's records; nothing beyond [`SEGMENT_MAX_BYTES`] is decompressed.
///
/// # Errors
/// The entry is not what its head says, or its records are not JSON of their shape.
pub fn read_records(entry: &[u8]) -> Result<Vec<Record>, EntryError> {
    let meta = Meta::read(entry)?;
    let fail = |problem: String| EntryError::Records { problem };
    let json = zstd::bulk::decompress(&entry[HEAD_BYTES..], meta.json_bytes as usize)
        .map_err(|e| fail(e.to_string()))?;
    if json.len() != meta.json_bytes as usize {
        return Err(fail(format!(
            "expected {} bytes, got {}",
            meta.json_bytes,
            json.len()
        )));
    }
    serde_json::from_slice(&json).map_err(|e| fail(e.to_string()))
}

/// An entry as the MQTT message of its class, sent at `now_ms` by the wall clock.
///
/// # Errors
/// The entry cannot be read, or its records do not make a message.
pub fn read_message(
    boot: BootId,
    number: u64,
    entry: &[u8],
    now_ms: i64,
) -> Result<Vec<u8>, EntryError> {
    let meta = Meta::read(entry)?;
    let segment = Segment {
        boot,
        segment: number,
        backfilled: is_backfilled(meta.oldest_ms, now_ms),
        records: read_records(entry)?,
    };
    Ok(segment.encode(meta.kind.class())?)
}

/// Records on their way into segments, one open segment a class. Pure: `now_ms` is any clock
/// that does not go back.
#[derive(Debug, Default)]
pub struct Gatherer {
    open: [Vec<Prepared>; Class::ALL.len()],
    full: Vec<(Class, Vec<Prepared>)>,
    bytes: [usize; Class::ALL.len()],
    since_ms: Option<u64>,
}

impl Gatherer {
    /// Takes a record in.
    pub fn push(&mut self, record: Prepared, now_ms: u64) {
        self.since_ms.get_or_insert(now_ms);
        let (class, length) = (record.class, record.len());
        let at = class as usize;
        let alone = class == Class::Metrics;
        if !self.open[at].is_empty()
            && (alone
                || self.bytes[at] + length > SEAL_BYTES
                || self.open[at].len() >= SEAL_RECORDS)
        {
            self.close(class);
        }
        self.open[at].push(record);
        self.bytes[at] += length;
    }

    /// When the oldest record came in, if any is waiting.
    #[must_use]
    pub fn since_ms(&self) -> Option<u64> {
        self.since_ms
    }

    /// Whether enough is waiting to be sealed before its time.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.full.len() >= 16
    }

    /// Hands over all that is waiting, in segments of one class each, the most precious first.
    pub fn take(&mut self) -> Vec<(Class, Vec<Prepared>)> {
        for class in Class::ALL {
            if !self.open[class as usize].is_empty() {
                self.close(class);
            }
        }
        self.since_ms = None;
        let mut full = std::mem::take(&mut self.full);
        full.sort_by_key(|(class, _)| *class);
        full
    }

    fn close(&mut self, class: Class) {
        let records = std::mem::take(&mut self.open[class as usize]);
        self.bytes[class as usize] = 0;
        self.full.push((class, records));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
pub(crate) mod tests {
    use super::*;
    use dunlin_protocol::telemetry::{Event, LogLine};

    pub(crate) fn event(code: &str) -> Record {
        Record {
            time_ms: 1000,
            body: Body::Event(Event {
                code: code.to_owned(),
                detail: "something happened".to_owned(),
                bundle: None,
            }),
        }
    }

    pub(crate) fn log(text: &str) -> Record {
        Record {
            time_ms: 1000,
            body: Body::Log(LogLine {
                level: "info".to_owned(),
                text: text.to_owned(),
            }),
        }
    }

    pub(crate) fn metrics(name: &str, value: Scalar) -> Record {
        Record {
            time_ms: 1000,
            body: Body::Metrics {
                values: [(name.to_owned(), value)].into(),
            },
        }
    }

    #[test]
    fn an_entry_reads_back_as_the_message_of_its_class() {
        let boot = BootId([7; 16]);
        for records in [
            vec![event("a"), event("b")],
            vec![log("x")],
            vec![metrics("n", Scalar::Integer(3))],
        ] {
            let class = records[0].body.class();
            let prepared: Vec<_> = records.iter().map(|r| Prepared::new(r).unwrap()).collect();
            let sealed = Sealed::new(9, Kind::of(class), &prepared).unwrap();
            assert_eq!(Meta::read(&sealed.entry).unwrap(), sealed.meta);
            let wire = read_message(boot, 9, &sealed.entry, 1000).unwrap();
            let read = Segment::decode(class, &wire).unwrap();
            assert_eq!((read.boot, read.segment), (boot, 9));
            assert_eq!(read.records, records);
        }
    }

    #[test]
    fn a_damaged_entry_is_an_error_and_never_a_panic() {
        let sealed = Sealed::of_record(1, Kind::Event, &event("a")).unwrap();
        for cut in 0..sealed.entry.len() {
            assert!(read_records(&sealed.entry[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..sealed.entry.len() {
            let mut bad = sealed.entry.clone();
            bad[at] ^= 0x40;
            let _ = read_message(BootId([0; 16]), 1, &bad, 0);
        }
        let bomb = zstd::bulk::compress(&vec![b' '; 64 << 20], 3).unwrap();
        let mut entry = sealed.entry[..HEAD_BYTES].to_vec();
        entry.extend_from_slice(&bomb);
        assert!(read_records(&entry).is_err());
        entry[14..18].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(matches!(read_records(&entry), Err(EntryError::Head { .. })));
    }

    #[test]
    fn unfit_records_are_refused_with_their_reason() {
        let nan = metrics("loss", Scalar::Number(f64::NAN));
        assert!(matches!(
            Prepared::new(&nan),
            Err(RecordError::NotFinite { .. })
        ));
        let own = metrics("boot", Scalar::Flag(true));
        assert!(matches!(
            Prepared::new(&own),
            Err(RecordError::Reserved { .. })
        ));
        let big = log(&"x".repeat(SEGMENT_MAX_BYTES));
        assert!(matches!(
            Prepared::new(&big),
            Err(RecordError::TooLarge { .. })
        ));
    }

    #[test]
    fn the_largest_record_of_each_class_makes_a_message() {
        let room = |r: &Record| RECORD_MAX_BYTES - serde_json::to_vec(r).unwrap().len();
        let text = "x".repeat(room(&log("")));
        let long = "x".repeat(room(&metrics("n", Scalar::Text(String::new()))));
        for record in [log(&text), metrics("n", Scalar::Text(long))] {
            let kind = Kind::of(record.body.class());
            let sealed = Sealed::of_record(u64::MAX >> 11, kind, &record).unwrap();
            let wire =
                read_message(BootId([255; 16]), sealed.number, &sealed.entry, i64::MAX).unwrap();
            assert!(wire.len() <= SEGMENT_MAX_BYTES);
        }
    }

    #[test]
    fn records_are_gathered_by_class_and_metrics_stay_alone() {
        let mut gatherer = Gatherer::default();
        let number = |n| metrics("n", Scalar::Integer(n));
        for record in [log("1"), number(1), event("e"), number(2), log("2")] {
            gatherer.push(Prepared::new(&record).unwrap(), 5);
        }
        assert_eq!(gatherer.since_ms(), Some(5));
        let taken = gatherer.take();
        let shape: Vec<_> = taken.iter().map(|(c, r)| (*c, r.len())).collect();
        assert_eq!(
            shape,
            [
                (Class::Event, 1),
                (Class::Metrics, 1),
                (Class::Metrics, 1),
                (Class::Log, 2)
            ]
        );
        assert_eq!(gatherer.since_ms(), None);
        assert!(gatherer.take().is_empty());
    }

    #[test]
    fn a_segment_never_outgrows_its_bounds() {
        let mut gatherer = Gatherer::default();
        for at in 0..2000 {
            let text = "y".repeat((at * 37) % 9000);
            gatherer.push(Prepared::new(&log(&text)).unwrap(), 0);
        }
        for (_, records) in gatherer.take() {
            let bytes: usize = records.iter().map(Prepared::len).sum();
            assert!(bytes <= SEAL_BYTES && records.len() <= SEAL_RECORDS);
        }
    }
}
