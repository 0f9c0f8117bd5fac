//! A repository over MQTT, block by block.
//!
//! [`BlockLink`] joins the device's MQTT connection, which the supervisor owns, to whoever fetches:
//! requests go out on `fetch`, and the supervisor hands in what comes on `block`. One file is fetched
//! at a time. What to ask for, and when, is decided by the pure `window`.

mod window;

use super::BlockProblem;
use crate::throttle::Throttle;
use bytes::Bytes;
use dunlin_protocol::block::{Answer, BlockError, Request};
use dunlin_protocol::repository::RepositoryFile;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use window::{End, REQUESTS_MAX, Window};

/// Answers waiting to be taken; beyond that they are dropped, and asked for again.
const ANSWERS_MAX: usize = 2 * REQUESTS_MAX;
/// A transfer's number is the upper half of its requests' ids, a block's the lower.
const TRANSFER_BITS: u32 = 32;

/// Publishes a request; `false`: not now.
type Publish = dyn Fn(Vec<u8>) -> bool + Send + Sync;

/// The device's connection, as fetching needs it; clones share it.
#[derive(Clone)]
pub struct BlockLink {
    shared: Arc<Shared>,
}

struct Shared {
    send: Box<Publish>,
    throttle: Throttle,
    /// Longest time without a useful answer.
    stall: Duration,
    /// Number of the connection that lives; 0: none does.
    connection: watch::Sender<u64>,
    /// Who waits for answers.
    port: Mutex<Port>,
}

#[derive(Default)]
struct Port {
    transfer: u32,
    to: Option<mpsc::Sender<Arrived>>,
}

struct Arrived {
    at: Instant,
    id: u64,
    answer: Answer,
}

impl fmt::Debug for BlockLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockLink")
            .field("connection", &*self.shared.connection.borrow())
            .finish_non_exhaustive()
    }
}

impl BlockLink {
    /// A link over `send`, which publishes a payload on channel `fetch`; not connected yet. A
    /// transfer is given up after `stall` without a useful answer.
    pub fn new(
        send: impl Fn(Vec<u8>) -> bool + Send + Sync + 'static,
        throttle: Throttle,
        stall: Duration,
    ) -> Self {
        let mut random = [0; 4];
        // Without randomness a late answer to the agent's life before may be taken for one of this:
        // the hash over the whole file then says so.
        let _ = getrandom::fill(&mut random);
        let port = Port {
            transfer: u32::from_be_bytes(random),
            to: None,
        };
        Self {
            shared: Arc::new(Shared {
                send: Box::new(send),
                throttle,
                stall,
                connection: watch::Sender::new(0),
                port: Mutex::new(port),
            }),
        }
    }

    /// A connection begins: what was asked on the one before is asked again.
    pub fn connected(&self) {
        self.shared
            .connection
            .send_modify(|n| *n = (*n).saturating_add(1).max(1));
    }

    /// There is no connection any more.
    pub fn disconnected(&self) {
        self.shared.connection.send_replace(0);
    }

    pub(super) fn is_connected(&self) -> bool {
        *self.shared.connection.borrow() != 0
    }

    /// Hands in a message of channel `block`. One that nobody waits for is dropped.
    ///
    /// # Errors
    /// Not an answer, or damaged.
    pub fn deliver(&self, payload: &[u8]) -> Result<(), BlockError> {
        let (id, answer) = Answer::decode(payload)?;
        let port = self.port();
        if id >> TRANSFER_BITS == u64::from(port.transfer)
            && let Some(to) = &port.to
        {
            let at = Instant::now();
            // A full queue is a slow reader: it asks again.
            let _ = to.try_send(Arrived { at, id, answer });
        }
        Ok(())
    }

    fn port(&self) -> std::sync::MutexGuard<'_, Port> {
        self.shared
            .port
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers to anything asked before go to nobody from here on.
    fn open_port(&self) -> (u64, mpsc::Receiver<Arrived>) {
        let (to, answers) = mpsc::channel(ANSWERS_MAX);
        let mut port = self.port();
        port.transfer = port.transfer.wrapping_add(1);
        port.to = Some(to);
        (u64::from(port.transfer) << TRANSFER_BITS, answers)
    }
}

/// A file that is being fetched in blocks.
pub(super) struct BlockDownload {
    link: BlockLink,
    file: RepositoryFile,
    window: Window,
    /// Upper half of the requests' ids.
    transfer: u64,
    answers: mpsc::Receiver<Arrived>,
    connection: watch::Receiver<u64>,
    offset: u64,
    begun: Instant,
    /// When the last useful answer was taken.
    useful: Instant,
}

impl BlockDownload {
    /// Asks for the first block, and so whether there is such a file and how long it is.
    pub(super) async fn open(
        link: &BlockLink,
        file: &RepositoryFile,
        offset: u64,
    ) -> Result<Self, BlockProblem> {
        let (transfer, answers) = link.open_port();
        let now = Instant::now();
        let mut connection = link.shared.connection.subscribe();
        connection.mark_unchanged();
        let mut download = Self {
            window: Window::new(offset, link.shared.throttle.bytes_s()),
            link: link.clone(),
            file: file.clone(),
            transfer,
            answers,
            connection,
            offset,
            begun: now,
            useful: now,
        };
        while download.window.total().is_none() {
            download.advance().await?;
        }
        Ok(download)
    }

    /// Length of the whole file.
    pub(super) fn total_bytes(&self) -> u64 {
        self.window.total().unwrap_or(self.offset)
    }

    /// The next piece; `None` at the end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, BlockProblem> {
        // Time in which nothing was wanted is no time waited.
        self.useful = Instant::now();
        loop {
            if let Some(bytes) = self.window.take() {
                self.link.shared.throttle.take(bytes.len()).await;
                return Ok(Some(bytes.into()));
            }
            if self.window.is_done() {
                return Ok(None);
            }
            self.advance().await?;
        }
    }

    /// Takes what has come, asks for what is due, and waits for the next thing to happen.
    async fn advance(&mut self) -> Result<(), BlockProblem> {
        // What lies in the queue already must not be asked for again.
        let mut useful = false;
        while let Ok(arrived) = self.answers.try_recv() {
            useful |= self.take(arrived)?;
        }
        if useful {
            return Ok(());
        }
        self.ask();
        let look =
            self.begun + Duration::from_millis(self.window.next_look_ms().max(0).unsigned_abs());
        let given_up = self.useful + self.link.shared.stall;
        tokio::select! {
            arrived = self.answers.recv() => match arrived {
                Some(arrived) => { self.take(arrived)?; }
                // Another transfer has taken the port: this one is over.
                None => return Err(self.stalled()),
            },
            // The sender lives in `self.link`.
            _ = self.connection.changed() => {
                if *self.connection.borrow_and_update() != 0 {
                    self.window.reconnected(self.now_ms());
                }
            }
            () = tokio::time::sleep_until(look.max(Instant::now() + Duration::from_millis(1))) => {}
            () = tokio::time::sleep_until(given_up) => return Err(self.stalled()),
        }
        Ok(())
    }

    fn ask(&mut self) {
        for ask in self.window.asks(self.now_ms()) {
            let request = Request {
                id: self.transfer | self.window.number(ask.offset),
                file: self.file.clone(),
                offset: ask.offset,
                length: ask.length,
            };
            // What is not sent is due again later, as if it had been lost.
            let json = serde_json::to_vec(&request).unwrap_or_default();
            let _ = (self.link.shared.send)(json);
        }
    }

    /// Whether the answer was of use.
    fn take(&mut self, arrived: Arrived) -> Result<bool, BlockProblem> {
        let offset = self.window.offset(arrived.id & u64::from(u32::MAX));
        let at_ms = self.ms(arrived.at);
        match self.window.answer(offset, arrived.answer, at_ms) {
            Ok(useful) => {
                if useful {
                    self.useful = Instant::now();
                }
                Ok(useful)
            }
            Err(End::Absent) => Err(BlockProblem::Absent),
            Err(End::Changed) => Err(BlockProblem::Changed),
            Err(End::TooShort { total_bytes }) => Err(BlockProblem::BeyondEnd {
                offset: self.offset,
                total_bytes,
            }),
        }
    }

    fn stalled(&self) -> BlockProblem {
        let after_ms = self.link.shared.stall.as_millis();
        BlockProblem::Stalled {
            after_ms: u64::try_from(after_ms).unwrap_or(u64::MAX),
        }
    }

    fn now_ms(&self) -> i64 {
        self.ms(Instant::now())
    }

    fn ms(&self, at: Instant) -> i64 {
        i64::try_from(at.saturating_duration_since(self.begun).as_millis()).unwrap_or(i64::MAX)
    }
}
