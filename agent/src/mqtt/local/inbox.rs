//! What a connection brought and nobody has taken yet.
//!
//! The connection never waits for whoever takes messages: it must ping, acknowledge and see its own
//! end while they wait. What is held is bounded all the same, whether or not the broker keeps to
//! the Receive Maximum: beyond the bounds a message at `QoS` 1 is neither held nor acknowledged, so
//! that it stays with the broker, and so do all after it, which keeps their order. Brokers send such
//! messages again at the next connection only: once all that was held is acknowledged, this one is
//! spent. At `QoS` 0 there is nobody to leave a message with: it is dropped and counted.

use super::Message;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Most messages held of each kind, unless a larger Receive Maximum is agreed.
const HELD_MAX: usize = 4096;
/// Most bytes held of each kind; a single larger message still fits if there is no other.
const HELD_MAX_BYTES: usize = 16 << 20;

/// What whoever takes messages is given.
#[derive(Debug)]
pub enum Heard {
    /// A message.
    Message(Message),
    /// So many messages at `QoS` 0 were dropped.
    Dropped(u64),
}

/// What became of a message offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offered {
    Held,
    Dropped,
    /// It stays with the broker, as the first of its connection.
    LeftFirst,
    Left,
}

/// Messages of one kind that are held.
#[derive(Debug, Default)]
struct Share {
    messages: usize,
    bytes: usize,
}

impl Share {
    fn has_room(&self, bytes: usize, messages_max: usize) -> bool {
        let fits = self.bytes.saturating_add(bytes) <= HELD_MAX_BYTES;
        self.messages == 0 || (self.messages < messages_max && fits)
    }

    fn add(&mut self, bytes: usize) {
        self.messages += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: usize) {
        self.messages = self.messages.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

struct Waiting<T> {
    item: T,
    bytes: usize,
    /// At `QoS` 1: its connection acknowledges it.
    certain: bool,
}

/// The decisions: touches nothing.
struct Held<T> {
    messages_max: usize,
    waiting: VecDeque<Waiting<T>>,
    certain: Share,
    uncertain: Share,
    /// The connection whose messages are taken.
    connection: u64,
    /// Whether that connection's messages are left with the broker by now.
    leaves: bool,
    /// Messages of that connection that were held and are not acknowledged yet.
    unacknowledged: usize,
    /// Messages that were dropped and not told yet.
    dropped: u64,
}

impl<T> Held<T> {
    fn new(receive_max: usize) -> Self {
        Self {
            messages_max: receive_max.max(HELD_MAX),
            waiting: VecDeque::new(),
            certain: Share::default(),
            uncertain: Share::default(),
            connection: 0,
            leaves: false,
            unacknowledged: 0,
            dropped: 0,
        }
    }

    /// A connection begins, or none is there (0): what another brought at `QoS` 1 comes again.
    fn begin(&mut self, connection: u64) {
        self.waiting.retain(|waiting| !waiting.certain);
        self.certain = Share::default();
        self.connection = connection;
        self.leaves = false;
        self.unacknowledged = 0;
    }

    fn offer(&mut self, connection: u64, item: T, bytes: usize, certain: bool) -> Offered {
        if connection != self.connection {
            return Offered::Left;
        }
        if certain {
            if self.leaves {
                return Offered::Left;
            }
            if !self.certain.has_room(bytes, self.messages_max) {
                self.leaves = true;
                return Offered::LeftFirst;
            }
            self.certain.add(bytes);
            self.unacknowledged += 1;
        } else {
            if !self.uncertain.has_room(bytes, self.messages_max) {
                self.dropped += 1;
                return Offered::Dropped;
            }
            self.uncertain.add(bytes);
        }
        self.waiting.push_back(Waiting {
            item,
            bytes,
            certain,
        });
        Offered::Held
    }

    fn take(&mut self) -> Option<T> {
        let first = self.waiting.pop_front()?;
        let share = if first.certain {
            &mut self.certain
        } else {
            &mut self.uncertain
        };
        share.remove(first.bytes);
        Some(first.item)
    }

    fn acknowledged(&mut self) {
        self.unacknowledged = self.unacknowledged.saturating_sub(1);
    }

    fn is_spent(&self) -> bool {
        self.leaves && self.unacknowledged == 0
    }
}

/// The messages held, between the connection's tasks and whoever takes them.
pub struct Inbox {
    held: Mutex<Held<Message>>,
    more: Notify,
}

impl Inbox {
    pub(super) fn new(receive_max: u16) -> Self {
        Self {
            held: Mutex::new(Held::new(usize::from(receive_max))),
            more: Notify::new(),
        }
    }

    fn held(&self) -> MutexGuard<'_, Held<Message>> {
        // No step in between leaves it half changed.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What comes next. Nothing is lost if the wait is given up.
    pub async fn next(&self) -> Heard {
        loop {
            let more = self.more.notified();
            tokio::pin!(more);
            more.as_mut().enable();
            {
                let mut held = self.held();
                let dropped = std::mem::take(&mut held.dropped);
                if dropped > 0 {
                    return Heard::Dropped(dropped);
                }
                if let Some(message) = held.take() {
                    return Heard::Message(message);
                }
            }
            more.await;
        }
    }

    pub(super) fn begin(&self, connection: u64) {
        self.held().begin(connection);
    }

    pub(super) fn offer(&self, message: Message) -> Offered {
        let connection = message.connection;
        let certain = message.acknowledge.is_some();
        let bytes = message.payload.len() + message.topic.len();
        let offered = self.held().offer(connection, message, bytes, certain);
        self.more.notify_one();
        offered
    }

    pub(super) fn acknowledged(&self) {
        self.held().acknowledged();
    }

    /// Whether a new connection is due: this one left messages with the broker, and all that it
    /// held is acknowledged.
    pub(super) fn is_spent(&self) -> bool {
        self.held().is_spent()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_stays_with_the_broker_until_all_else_is_acknowledged() {
        let mut held = Held::new(10);
        held.begin(1);
        for n in 0..HELD_MAX {
            assert_eq!(held.offer(1, n, 1, true), Offered::Held);
        }
        assert_eq!(held.offer(1, 9000, 1, true), Offered::LeftFirst);
        // Room again: but what comes after what was left must not overtake it.
        assert_eq!(held.take(), Some(0));
        assert_eq!(held.offer(1, 9001, 1, true), Offered::Left);
        for n in 1..HELD_MAX {
            assert!(!held.is_spent());
            held.acknowledged();
            assert_eq!(held.take(), Some(n));
        }
        assert!(!held.is_spent());
        held.acknowledged();
        assert!(held.is_spent());
        held.begin(2);
        assert!(!held.is_spent());
        assert_eq!(held.offer(1, 9002, 1, true), Offered::Left);
        assert_eq!(held.offer(2, 9000, 1, true), Offered::Held);
        assert_eq!(held.take(), Some(9000));
    }

    #[test]
    fn a_larger_receive_maximum_is_kept() {
        let mut held = Held::new(HELD_MAX + 2);
        held.begin(1);
        for n in 0..HELD_MAX + 2 {
            assert_eq!(held.offer(1, n, 1, true), Offered::Held);
        }
        assert_eq!(held.offer(1, 0, 1, true), Offered::LeftFirst);
    }

    #[test]
    fn bytes_are_bounded_and_one_large_message_passes_alone() {
        let mut held = Held::new(10);
        held.begin(1);
        assert_eq!(held.offer(1, 0, HELD_MAX_BYTES + 1, true), Offered::Held);
        assert_eq!(held.offer(1, 1, 1, true), Offered::LeftFirst);
        assert_eq!(held.offer(1, 2, HELD_MAX_BYTES, false), Offered::Held);
        assert_eq!(held.offer(1, 3, 1, false), Offered::Dropped);
        assert_eq!(held.dropped, 1);
        assert_eq!((held.take(), held.take()), (Some(0), Some(2)));
        assert_eq!(held.offer(1, 4, 1, false), Offered::Held);
    }

    #[test]
    fn a_lost_connection_takes_back_what_comes_again() {
        let mut held = Held::new(10);
        held.begin(1);
        held.offer(1, 0, 1, true);
        held.offer(1, 1, 1, false);
        held.begin(0);
        assert_eq!(held.offer(1, 2, 1, true), Offered::Left);
        assert_eq!((held.take(), held.take()), (Some(1), None));
        assert_eq!((held.certain.messages, held.uncertain.bytes), (0, 0));
    }
}
