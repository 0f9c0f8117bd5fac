//! The queue between a source and its model, shared by two tasks.

use super::progress::Reason;
use super::queue::{Counts, Offered, QUEUE_MAX_BYTES, Queue, WhenFull};
use super::record::{Format, Header, Metadata};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, watch};

/// Most kinds of trouble that are kept to be told.
const REASONS_MAX: usize = 8;

/// How a record ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The sink has its result.
    Answered,
    /// It has none and will have none.
    Failed,
    /// The queue's policy dropped it.
    Dropped,
}

/// Tells a record's source how it ended.
pub type Settle = Box<dyn FnOnce(Outcome) + Send + Sync>;

/// Whom an answer over MQTT is for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AnswerTo {
    /// Where the answer goes besides the sink's topic.
    pub response_topic: Option<String>,
    /// What the answer repeats.
    pub correlation: Option<Bytes>,
}

/// A record on its way.
pub struct Item {
    /// Its bytes.
    pub payload: Bytes,
    /// How they are read.
    pub format: Format,
    /// Columns' names, if its file has them.
    pub header: Option<Arc<Header>>,
    /// Topic, file name, line number: its name in the answer unless it has one of its own.
    pub id: String,
    /// Whom the answer is for.
    pub answer_to: AnswerTo,
    /// The connection that must acknowledge it; with that lost, the broker sends it again.
    pub connection: Option<u64>,
    /// Tells the source how it ended.
    pub settle: Settle,
}

struct State {
    queue: Queue<Item>,
    /// The source has ended.
    closed: bool,
    /// Nothing more is to be taken.
    stopped: bool,
    reasons: BTreeMap<&'static str, Reason>,
}

/// A queue, its counters, and the model's metadata for sources that need it.
pub struct Feed {
    state: Mutex<State>,
    item: Notify,
    room: Notify,
    metadata: watch::Sender<Option<Arc<Metadata>>>,
}

impl Feed {
    /// An empty queue.
    #[must_use]
    pub fn new(places: usize, when_full: WhenFull) -> Self {
        Self {
            state: Mutex::new(State {
                queue: Queue::new(places, QUEUE_MAX_BYTES, when_full),
                closed: false,
                stopped: false,
                reasons: BTreeMap::new(),
            }),
            item: Notify::new(),
            room: Notify::new(),
            metadata: watch::Sender::new(None),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No step in between leaves the queue half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Offers a record and waits for room if the policy says so.
    pub async fn offer(&self, mut item: Item) {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            let bytes = item.payload.len();
            let offered = self.state().queue.offer(item, bytes);
            match offered {
                Offered::Taken(dropped) => {
                    self.item.notify_one();
                    for item in dropped {
                        (item.settle)(Outcome::Dropped);
                    }
                    return;
                }
                Offered::Dropped(item) => return (item.settle)(Outcome::Dropped),
                Offered::Full(back) => item = back,
            }
            room.await;
        }
    }

    /// The next record; `None` once the source has ended and all is taken, or all is to stop.
    pub async fn take(&self) -> Option<Item> {
        loop {
            let more = self.item.notified();
            tokio::pin!(more);
            more.as_mut().enable();
            {
                let mut state = self.state();
                if state.stopped {
                    return None;
                }
                if let Some(item) = state.queue.take() {
                    self.room.notify_one();
                    return Some(item);
                }
                if state.closed {
                    return None;
                }
            }
            more.await;
        }
    }

    /// Counts a record that was taken, and tells its source.
    pub fn settle(&self, item: Item, outcome: Outcome) {
        self.state().queue.settled(outcome == Outcome::Answered);
        (item.settle)(outcome);
    }

    /// Counts a record that the source could not give whole.
    pub fn refused(&self, why: &'static str, detail: String) {
        self.state().queue.refused();
        self.trouble(why, detail);
    }

    /// Counts records that came faster than they could be offered and do not come again.
    pub fn overrun(&self, records: u64, detail: String) {
        self.state().queue.overrun(records);
        self.trouble("source", detail);
    }

    /// Remembers trouble to be told; the last words of each kind count.
    pub fn trouble(&self, code: &'static str, detail: String) {
        tracing::debug!(code, %detail, "pipeline");
        let mut state = self.state();
        if let Some(reason) = state.reasons.get_mut(code) {
            reason.times = reason.times.saturating_add(1);
            reason.detail = detail;
        } else if state.reasons.len() < REASONS_MAX {
            let code_text = code.to_owned();
            let reason = Reason {
                code: code_text,
                detail,
                times: 1,
            };
            state.reasons.insert(code, reason);
        }
    }

    /// What has not been told yet.
    pub fn reasons(&self) -> Vec<Reason> {
        std::mem::take(&mut self.state().reasons)
            .into_values()
            .collect()
    }

    /// Takes back what a lost connection brought: the broker sends it again.
    pub fn withdraw(&self, connection: u64) {
        let back = self
            .state()
            .queue
            .withdraw(|item| item.connection == Some(connection));
        // Their acknowledgements lead nowhere any more.
        drop(back);
        self.room.notify_one();
    }

    /// The source has ended.
    pub fn close(&self) {
        self.state().closed = true;
        self.item.notify_one();
    }

    /// Nothing more is taken; what waits stays with its source.
    pub fn stop(&self) {
        self.state().stopped = true;
        self.item.notify_one();
    }

    /// What became of records until now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.state().queue.counts()
    }

    /// The model's metadata changed.
    pub fn learned(&self, metadata: &Arc<Metadata>) {
        self.metadata.send_replace(Some(Arc::clone(metadata)));
    }

    /// The model's metadata, once there is a model.
    pub async fn metadata(&self) -> Arc<Metadata> {
        let mut known = self.metadata.subscribe();
        loop {
            if let Some(metadata) = known.borrow_and_update().clone() {
                return metadata;
            }
            if known.changed().await.is_err() {
                // The sender lives in `self`.
                std::future::pending::<()>().await;
            }
        }
    }
}
