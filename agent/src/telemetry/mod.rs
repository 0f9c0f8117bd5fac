//! The telemetry buffer: records in, numbered segments out, deleted when the server says so.
//!
//! `push → gather (segment) → seal → journal → store (buffer) → next_batch → MQTT → ack → delete`.
//! One thread of its own does all file work, so that nothing else ever waits for the disk.
//! A record is durable (written and fdatasynced) within [`SYNC_MS`] and the time of one sync.

pub mod age;
pub mod boot;
pub mod buffer;
pub mod evict;
pub mod journal;
pub mod journaled;
mod keeper;
pub mod segment;
pub mod store;
pub mod sync;

pub use evict::{Ages, Limits};
pub use keeper::{OpenReport, Stats};
pub use store::StoreError;
pub use sync::Outgoing;

use dunlin_protocol::command::Ack;
use dunlin_protocol::telemetry::Record;
use keeper::{Complaint, Keeper};
use segment::{Gatherer, Prepared, RecordError};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// Records are sealed into segments and written this long after they came in, in milliseconds.
pub const SEAL_MS: u64 = 200;
/// Records are fdatasynced this long after they came in, in milliseconds.
pub const SYNC_MS: u64 = 700;

const HOUSEKEEPING_MS: u64 = 5_000;
const QUEUE_REQUESTS: usize = 256;
const QUEUE_KIB: u32 = 4096;

/// Why the buffer does not take or give.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The record is not one the server could read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Records are taken, but not durable for now.
    #[error("telemetry is not durable: {problem}")]
    NotDurable {
        /// What keeps them from it.
        problem: String,
    },
    /// The buffer's thread cannot be started.
    #[error("telemetry thread: {0}")]
    Thread(std::io::Error),
    /// The buffer has been closed.
    #[error("the telemetry buffer is closed")]
    Closed,
}

enum Request {
    Push(Prepared, OwnedSemaphorePermit),
    Windows {
        closed: Vec<Prepared>,
        open: Vec<Prepared>,
        _room: OwnedSemaphorePermit,
    },
    Batch(usize, oneshot::Sender<Vec<Outgoing>>),
    Ack(Ack, oneshot::Sender<usize>),
    ResetInflight,
    Flush(oneshot::Sender<Result<(), String>>),
    Stats(oneshot::Sender<Stats>),
    Close(oneshot::Sender<()>),
}

/// The way to the buffer; clones share it. When the last one is dropped, the buffer is closed in
/// order, in the background.
#[derive(Debug, Clone)]
pub struct TelemetryHandle {
    requests: mpsc::Sender<Request>,
    room: Arc<Semaphore>,
    changed: Arc<Notify>,
}

impl TelemetryHandle {
    /// Opens the buffer in `dir` (made if missing) on a thread of its own, which reads the heads
    /// of all that is buffered (well under a second for 64 MiB).
    ///
    /// # Errors
    /// Another process has the folder, or the medium refuses at the very first start. A damaged
    /// store is no error: it is set aside, see [`OpenReport::set_aside`].
    pub async fn open(dir: &Path, limits: Limits) -> Result<(Self, OpenReport), TelemetryError> {
        let (requests, incoming) = mpsc::channel(QUEUE_REQUESTS);
        let changed = Arc::new(Notify::new());
        let notify = Arc::clone(&changed);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(TelemetryError::Thread)?;
        let dir = dir.to_owned();
        let (opened, report) = oneshot::channel();
        let work = move || match Keeper::open(&dir, limits, wall_ms()) {
            Ok((keeper, report)) => {
                let _ = opened.send(Ok(report));
                runtime.block_on(Worker::new(keeper, notify).run(incoming));
            }
            Err(e) => {
                let _ = opened.send(Err(e));
            }
        };
        std::thread::Builder::new()
            .name("telemetry".to_owned())
            .spawn(work)
            .map_err(TelemetryError::Thread)?;
        let report = report.await.map_err(|_| TelemetryError::Closed)??;
        let handle = Self {
            requests,
            room: Arc::new(Semaphore::new(QUEUE_KIB as usize)),
            changed,
        };
        Ok((handle, report))
    }

    /// Takes a record in; waits while 256 requests or 4 MiB are queued before it. The record is
    /// durable within a second, or after [`TelemetryHandle::flush`].
    ///
    /// # Errors
    /// The record is unfit, or the buffer is closed.
    pub async fn push(&self, record: Record) -> Result<(), TelemetryError> {
        let prepared = Prepared::new(&record)?;
        let kib = u32::try_from(prepared.len() / 1024 + 1).unwrap_or(QUEUE_KIB);
        let room = Arc::clone(&self.room).acquire_many_owned(kib.min(QUEUE_KIB));
        let room = room.await.map_err(|_| TelemetryError::Closed)?;
        self.send(Request::Push(prepared, room)).await
    }

    /// Takes windows that have closed, and the state of all that are open now, as one step: both are
    /// durable within a second. Those that were open when the power went are sent as if they had closed
    /// then.
    ///
    /// # Errors
    /// One of them is unfit (the others are taken), or the buffer is closed.
    pub async fn windows(
        &self,
        closed: Vec<Record>,
        open: Vec<Record>,
    ) -> Result<(), TelemetryError> {
        let mut unfit = None;
        let mut fit = |records: Vec<Record>| -> Vec<Prepared> {
            let all = records.iter().map(Prepared::new);
            all.filter_map(|one| one.map_err(|e| unfit = Some(e)).ok())
                .collect()
        };
        let (closed, open) = (fit(closed), fit(open));
        let bytes: usize = closed.iter().chain(&open).map(Prepared::len).sum();
        let kib = u32::try_from(bytes / 1024 + 1).unwrap_or(QUEUE_KIB);
        let room = Arc::clone(&self.room).acquire_many_owned(kib.min(QUEUE_KIB));
        let _room = room.await.map_err(|_| TelemetryError::Closed)?;
        self.send(Request::Windows {
            closed,
            open,
            _room,
        })
        .await?;
        unfit.map_or(Ok(()), |e| Err(e.into()))
    }

    /// The segments to send now, at most 16 under way at once, events first. A segment that is
    /// not acknowledged is given out again after ten seconds. Empty when closed.
    pub async fn next_batch(&self) -> Vec<Outgoing> {
        let batch = |reply| Request::Batch(sync::WINDOW_SEGMENTS, reply);
        self.ask(batch).await.unwrap_or_default()
    }

    /// Deletes exactly the segments that the server names; another boot's ack and unknown numbers
    /// are ignored. Returns how many were there; 0 when closed.
    pub async fn ack(&self, ack: Ack) -> usize {
        let removed = self.ask(|reply| Request::Ack(ack, reply)).await;
        removed.unwrap_or_default()
    }

    /// To be called at each new connection: what is not acknowledged is sent again at once.
    pub async fn reset_inflight(&self) {
        // A closed buffer has nothing under way.
        let _ = self.send(Request::ResetInflight).await;
    }

    /// Returns when all that was pushed before is durable.
    ///
    /// # Errors
    /// The disk refuses for now (the records wait in memory, bounded), or the buffer is closed.
    pub async fn flush(&self) -> Result<(), TelemetryError> {
        let flushed = self.ask(Request::Flush).await?;
        flushed.map_err(|problem| TelemetryError::NotDurable { problem })
    }

    /// What is buffered; all zero when closed.
    pub async fn stats(&self) -> Stats {
        self.ask(Request::Stats).await.unwrap_or_default()
    }

    /// Ends in order: all durable, files closed, the folder free. What cannot be made durable is
    /// logged; [`TelemetryHandle::flush`] before tells it to the caller. Other clones get
    /// [`TelemetryError::Closed`] afterwards.
    pub async fn close(self) {
        // An answer that does not come means that it is closed already.
        let _ = self.ask(Request::Close).await;
    }

    /// Waits until [`TelemetryHandle::next_batch`] may have something new to give: segments were
    /// sealed, or one that was not acknowledged is due again. Remembers one change while nobody
    /// waits; for one waiting task.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    async fn send(&self, request: Request) -> Result<(), TelemetryError> {
        let sent = self.requests.send(request).await;
        sent.map_err(|_| TelemetryError::Closed)
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T, TelemetryError> {
        let (reply, answer) = oneshot::channel();
        self.send(request(reply)).await?;
        answer.await.map_err(|_| TelemetryError::Closed)
    }
}

struct Worker {
    keeper: Keeper,
    gatherer: Gatherer,
    began: Instant,
    sync_due_ms: Option<u64>,
    housekeeping_due_ms: u64,
    notify: Arc<Notify>,
    /// Whether a batch was not asked for since it was told that there may be one.
    told: bool,
    complaint: Complaint,
}

impl Worker {
    fn new(keeper: Keeper, notify: Arc<Notify>) -> Self {
        Self {
            keeper,
            gatherer: Gatherer::default(),
            began: Instant::now(),
            sync_due_ms: None,
            housekeeping_due_ms: HOUSEKEEPING_MS,
            notify,
            told: false,
            complaint: Complaint::default(),
        }
    }

    async fn run(mut self, mut incoming: mpsc::Receiver<Request>) {
        let closing = loop {
            let wait = Duration::from_millis(self.due_ms().saturating_sub(self.clock_ms()));
            match tokio::time::timeout(wait, incoming.recv()).await {
                Ok(Some(Request::Close(reply))) => break Some(reply),
                Ok(Some(request)) => self.handle(request),
                Ok(None) => break None,
                Err(_) => {}
            }
            self.do_due();
        };
        self.seal();
        let closed = self.keeper.close(wall_ms());
        if let Err(problem) = &closed {
            tracing::error!(problem, "the last telemetry is not durable");
        }
        // Those who still hold a handle learn of the end only now that the folder is free.
        drop(incoming);
        if let Some(reply) = closing {
            let _ = reply.send(());
        }
    }

    fn handle(&mut self, request: Request) {
        self.keeper.see_clocks(wall_ms(), self.clock_ms());
        // A receiver that has gone away no longer wants its answer.
        match request {
            Request::Push(record, room) => {
                let now_ms = self.clock_ms();
                self.gatherer.push(record, now_ms);
                self.sync_due_ms.get_or_insert(now_ms + SYNC_MS);
                drop(room);
                if self.gatherer.is_full() {
                    self.seal();
                }
            }
            Request::Windows { closed, open, .. } => {
                self.keeper.windows(&closed, open, wall_ms());
                let now_ms = self.clock_ms();
                self.sync_due_ms.get_or_insert(now_ms + SYNC_MS);
                if !closed.is_empty() {
                    self.tell();
                }
            }
            Request::Batch(max, reply) => {
                self.told = false;
                let batch = self.keeper.next_batch(self.clock_ms(), max, wall_ms());
                let _ = reply.send(batch);
            }
            Request::Ack(ack, reply) => {
                let _ = reply.send(self.keeper.ack(&ack, wall_ms()));
            }
            Request::ResetInflight => {
                self.keeper.reset_inflight();
                self.tell();
            }
            Request::Flush(reply) => {
                self.seal();
                let _ = reply.send(self.sync());
            }
            Request::Stats(reply) => {
                let _ = reply.send(self.keeper.stats());
            }
            Request::Close(_) => {}
        }
    }

    fn due_ms(&self) -> u64 {
        let seal = self.gatherer.since_ms().map(|since| since + SEAL_MS);
        let send = self.keeper.next_due_ms().filter(|_| !self.told);
        let due = [Some(self.housekeeping_due_ms), seal, self.sync_due_ms, send];
        due.into_iter().flatten().min().unwrap_or_default()
    }

    fn do_due(&mut self) {
        let now_ms = self.clock_ms();
        self.keeper.see_clocks(wall_ms(), now_ms);
        let seal = self.gatherer.since_ms().map(|since| since + SEAL_MS);
        let sync = self.sync_due_ms.is_some_and(|due| due <= now_ms);
        if sync || seal.is_some_and(|due| due <= now_ms) {
            self.seal();
        }
        if sync {
            match self.sync() {
                Ok(()) if self.complaint.end() => tracing::info!("telemetry is durable again"),
                Ok(()) => {}
                Err(problem) if self.complaint.is_due(self.clock_ms()) => {
                    tracing::warn!(problem, "telemetry is not durable yet");
                }
                Err(_) => {}
            }
        }
        if self.housekeeping_due_ms <= now_ms {
            self.keeper.housekeeping(wall_ms());
            self.housekeeping_due_ms = self.clock_ms() + HOUSEKEEPING_MS;
        }
        if self.keeper.is_dirty() {
            self.sync_due_ms.get_or_insert(now_ms + SYNC_MS);
        }
        let send = self.keeper.next_due_ms();
        if !self.told && send.is_some_and(|due| due <= now_ms) {
            self.tell();
        }
    }

    fn seal(&mut self) {
        let gathered = self.gatherer.take();
        if !gathered.is_empty() {
            self.keeper.seal(gathered, wall_ms());
            self.tell();
        }
    }

    fn sync(&mut self) -> Result<(), String> {
        self.sync_due_ms = None;
        self.keeper.sync(wall_ms())
    }

    fn tell(&mut self) {
        self.told = true;
        self.notify.notify_one();
    }

    fn clock_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}
