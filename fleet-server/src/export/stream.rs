//! A table as a stream of bytes, made while it is read: a thread reads windows by the page and writes
//! row groups into a short channel, so memory is bounded, and a reader who goes away ends it.

use super::windows::Shape;
use super::{ExportError, VersionLineage, about, reference};
use crate::export::table::Table;
use crate::store::{Store, WindowQuery};
use bytes::Bytes;
use dunlin_protocol::id::FleetId;
use futures_util::Stream;
use serde_json::json;
use std::io::{self, Write};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// Exports at once; each holds some 30 MiB and a thread.
pub const EXPORTS_MAX: usize = 4;
/// Windows in memory at once.
const PAGE_ROWS: u32 = 500;
/// Bytes of one piece.
const PIECE_BYTES: usize = 64 << 10;
/// Pieces that wait for the reader.
const PIECES_MAX: usize = 16;
/// Longest wait for a reader who takes nothing.
const READER_TIMEOUT: Duration = Duration::from_secs(60);

/// What to export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Windows, in one shape or the other.
    Windows(Shape),
    /// The reference profiles.
    Reference,
}

/// An export, ready to be streamed.
#[derive(Debug)]
pub struct Export {
    /// Where windows are.
    pub store: Store,
    /// Of which fleet.
    pub fleet: FleetId,
    /// What.
    pub what: What,
    /// Which windows.
    pub query: WindowQuery,
    /// One segment's alone; `None`: all, and what belongs to none.
    pub segment: Option<String>,
    /// Name of the devices' cohort, for the file's metadata.
    pub cohort: String,
    /// What is known of the family's versions.
    pub versions: Vec<VersionLineage>,
}

impl Export {
    /// Begins; the permit is held until the last byte was taken, or the reader has gone.
    pub fn stream(
        self,
        permit: OwnedSemaphorePermit,
    ) -> impl Stream<Item = Result<Bytes, io::Error>> + Send + 'static {
        let (to, from) = mpsc::channel(PIECES_MAX);
        let handle = Handle::current();
        tokio::task::spawn_blocking(move || {
            let pipe = Pipe {
                to: to.clone(),
                handle: handle.clone(),
            };
            if let Err(error) = self.write(pipe, &handle) {
                if !to.is_closed() {
                    tracing::warn!(%error, "an export broke off");
                }
                // So that the reader sees a broken answer, not a short one.
                let _ = to.blocking_send(Err(io::Error::other(error)));
            }
            drop(permit);
        });
        futures_util::stream::unfold(from, |mut from| async move {
            let piece = from.recv().await?;
            Some((piece, from))
        })
    }

    fn write<W: Write + Send>(&self, to: W, handle: &Handle) -> Result<(), ExportError> {
        let (name, fields) = match self.what {
            What::Windows(shape) => (shape.name(), shape.fields()),
            What::Reference => (reference::NAME, reference::fields()),
        };
        let query = json!({
            "version": self.query.version, "cohort": self.cohort, "segment": self.segment,
            "since_ms": self.query.since_ms, "until_ms": self.query.until_ms,
        });
        let about = about(name, &self.fleet, &self.query.family, query, &self.versions);
        let mut table = Table::begin(
            io::BufWriter::with_capacity(PIECE_BYTES, to),
            name,
            &fields,
            about,
        )?;
        match self.what {
            What::Windows(shape) => {
                let scan = self.store.scan_windows(self.query.clone());
                let mut scan = handle.block_on(scan);
                loop {
                    let windows = handle.block_on(scan.page(PAGE_ROWS))?;
                    let is_asked = |segment: &Option<String>| {
                        self.segment.is_none() || self.segment == *segment
                    };
                    let asked = windows.iter().filter(|r| is_asked(&r.window.segment));
                    for received in asked {
                        shape.write(&mut table, received, &self.versions)?;
                    }
                    if windows.len() < PAGE_ROWS as usize {
                        break;
                    }
                }
            }
            What::Reference => {
                for version in &self.versions {
                    reference::write(&mut table, version)?;
                }
            }
        }
        Ok(table.finish()?)
    }
}

/// The writing end: waits for the reader, though not for ever.
struct Pipe {
    to: mpsc::Sender<Result<Bytes, io::Error>>,
    handle: Handle,
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(PIECE_BYTES)];
        let sent = self.to.send(Ok(Bytes::copy_from_slice(piece)));
        let sent = self
            .handle
            .block_on(async { tokio::time::timeout(READER_TIMEOUT, sent).await });
        match sent {
            Ok(Ok(())) => Ok(piece.len()),
            Ok(Err(_)) => Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                "the reader has gone",
            )),
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("the reader took nothing for {READER_TIMEOUT:?}"),
            )),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::IncomingSegment;
    use dunlin_protocol::id::{BootId, Digest};
    use dunlin_protocol::sketch::{Histogram, Latency};
    use dunlin_protocol::telemetry::{Body, Class, Record, Segment, Window};
    use futures_util::StreamExt as _;
    use std::sync::Arc;
    use tokio::sync::Semaphore;

    /// Counts that do not compress.
    fn noise(count: u64, seed: u64) -> Histogram {
        let mix = |n: u64| {
            let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            n ^ (n >> 31)
        };
        Histogram {
            counts: (0..count).map(|at| mix(seed * count + at)).collect(),
            ..Histogram::default()
        }
    }

    async fn filled(windows: u64) -> (Store, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("dunlin.db")).await.unwrap();
        let window = |at: u64| Window {
            bundle: Digest::of(b"1"),
            family: "digits".parse().unwrap(),
            version: 1,
            start_ms: 1_790_000_000_000,
            end_ms: 1_790_000_060_000,
            inferences: at,
            errors: 0,
            confidence_sum_micro: 0,
            entropy_sum_micro: 0,
            outputs: Vec::new(),
            confidence: Histogram::new(1),
            entropy: Histogram::new(1),
            features: vec![noise(1000, at)],
            profile: None,
            latency: Latency::default(),
            expected_confusion_nano: None,
            segment: None,
            refused: 0,
        };
        let records = (0..windows).map(|at| Record {
            time_ms: 0,
            body: Body::Window(Box::new(window(at))),
        });
        let segment = Segment {
            boot: BootId([1; 16]),
            segment: 1,
            backfilled: false,
            records: records.collect(),
        };
        let incoming = IncomingSegment {
            device: "edge-1".parse().unwrap(),
            class: Class::Sketch,
            segment,
            received_ms: 1_790_000_100_000,
        };
        store.ingest(&[incoming]).await.unwrap();
        (store, dir)
    }

    fn export(store: Store) -> Export {
        Export {
            store,
            fleet: "demo".parse().unwrap(),
            what: What::Windows(Shape::Histograms),
            query: WindowQuery {
                family: "digits".parse().unwrap(),
                version: None,
                devices: None,
                since_ms: None,
                until_ms: None,
            },
            segment: None,
            cohort: "all".to_owned(),
            versions: Vec::new(),
        }
    }

    #[tokio::test]
    async fn a_reader_who_takes_nothing_holds_it_and_one_who_goes_ends_it() {
        // Two row groups and more, so that it cannot run ahead to its end.
        let (store, _dir) = filled(3000).await;
        let places = Arc::new(Semaphore::new(1));
        let place = places.clone().try_acquire_owned().unwrap();
        let mut stream = Box::pin(export(store).stream(place));
        assert!(stream.next().await.unwrap().unwrap().starts_with(b"PAR1"));
        assert!(places.try_acquire().is_err(), "it waits for its reader");
        drop(stream);
        let patience = Duration::from_secs(30);
        let ended = tokio::time::timeout(patience, places.acquire()).await;
        assert!(ended.is_ok(), "it ends once its reader has gone");
    }

    #[tokio::test]
    async fn a_database_that_fails_breaks_the_answer_off() {
        let (store, _dir) = filled(3).await;
        let places = Arc::new(Semaphore::new(1));
        let place = places.clone().try_acquire_owned().unwrap();
        store.close().await;
        let pieces: Vec<_> = export(store).stream(place).collect().await;
        assert!(pieces.last().unwrap().is_err(), "{pieces:?}");
    }
}
