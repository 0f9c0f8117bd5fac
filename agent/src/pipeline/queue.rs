//! A bounded queue that says what becomes of every record offered to it.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Most bytes that wait in one queue; a single larger record still fits an empty one.
pub const QUEUE_MAX_BYTES: usize = 32 << 20;

/// What a full queue does with the next record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// The source waits.
    #[default]
    Block,
    /// What waited longest makes room.
    DropOldest,
    /// The record offered is dropped.
    DropNewest,
}

impl WhenFull {
    /// Reads `block`, `drop_oldest` or `drop_newest`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "block" => Some(Self::Block),
            "drop_oldest" => Some(Self::DropOldest),
            "drop_newest" => Some(Self::DropNewest),
            _ => None,
        }
    }
}

/// What became of records since the queue was made. At any moment `received` is the sum of all
/// others and of the records in work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Records that the source gave, each once.
    pub received: u64,
    /// Results that the sink has.
    pub answered: u64,
    /// Records that could not be read, or that the model refused.
    pub failed: u64,
    /// Dropped from the queue for newer ones.
    pub dropped_oldest: u64,
    /// Dropped since the queue was full.
    pub dropped_newest: u64,
    /// Given back to a broker with a lost connection; it sends them again.
    pub returned: u64,
    /// In the queue now.
    pub waiting: u64,
}

/// What became of a record offered.
#[derive(Debug, PartialEq, Eq)]
pub enum Offered<T> {
    /// It waits; these were dropped for it, oldest first.
    Taken(Vec<T>),
    /// There is no room: offer it again once there is.
    Full(T),
    /// It was dropped.
    Dropped(T),
}

/// The queue.
#[derive(Debug)]
pub struct Queue<T> {
    items: VecDeque<(T, usize)>,
    bytes: usize,
    places: usize,
    bytes_max: usize,
    when_full: WhenFull,
    counts: Counts,
}

impl<T> Queue<T> {
    /// An empty queue of at least one place.
    #[must_use]
    pub fn new(places: usize, bytes_max: usize, when_full: WhenFull) -> Self {
        Self {
            items: VecDeque::new(),
            bytes: 0,
            places: places.max(1),
            bytes_max,
            when_full,
            counts: Counts::default(),
        }
    }

    /// Offers a record of so many bytes.
    pub fn offer(&mut self, item: T, bytes: usize) -> Offered<T> {
        let mut dropped = Vec::new();
        while !self.has_room(bytes) {
            match self.when_full {
                WhenFull::Block => return Offered::Full(item),
                WhenFull::DropNewest => {
                    self.counts.received += 1;
                    self.counts.dropped_newest += 1;
                    return Offered::Dropped(item);
                }
                WhenFull::DropOldest => {
                    let oldest = self.pop();
                    self.counts.dropped_oldest += oldest.iter().count() as u64;
                    dropped.extend(oldest);
                }
            }
        }
        self.counts.received += 1;
        self.bytes += bytes;
        self.items.push_back((item, bytes));
        Offered::Taken(dropped)
    }

    /// Takes what waited longest.
    pub fn take(&mut self) -> Option<T> {
        self.pop()
    }

    /// Takes out what its source takes back.
    pub fn withdraw(&mut self, mut is_taken_back: impl FnMut(&T) -> bool) -> Vec<T> {
        let (gone, kept): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.items)
            .into_iter()
            .partition(|(item, _)| is_taken_back(item));
        self.items = kept;
        self.bytes = self.items.iter().map(|(_, bytes)| bytes).sum();
        self.counts.returned += gone.len() as u64;
        gone.into_iter().map(|(item, _)| item).collect()
    }

    /// Counts a record that was taken.
    pub fn settled(&mut self, answered: bool) {
        if answered {
            self.counts.answered += 1;
        } else {
            self.counts.failed += 1;
        }
    }

    /// Counts a record that its source could not even give whole.
    pub fn refused(&mut self) {
        self.counts.received += 1;
        self.counts.failed += 1;
    }

    /// Counts records that were dropped before they could be offered.
    pub fn overrun(&mut self, records: u64) {
        self.counts.received += records;
        self.counts.dropped_newest += records;
    }

    /// What became of records until now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            waiting: self.items.len() as u64,
            ..self.counts
        }
    }

    fn has_room(&self, bytes: usize) -> bool {
        let fits = self.bytes.saturating_add(bytes) <= self.bytes_max;
        self.items.is_empty() || (self.items.len() < self.places && fits)
    }

    fn pop(&mut self) -> Option<T> {
        let (item, bytes) = self.items.pop_front()?;
        self.bytes = self.bytes.saturating_sub(bytes);
        Some(item)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Step {
        Offer(usize),
        Take,
        Withdraw(u32),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0_usize..40).prop_map(Step::Offer),
            3 => Just(Step::Take),
            1 => (1_u32..4).prop_map(Step::Withdraw),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        /// Every record is in exactly one place, order is kept, no bound is passed, and only the
        /// policy's own counter moves.
        #[test]
        fn nothing_is_lost_or_counted_twice(
            places in 1_usize..8,
            bytes_max in 1_usize..100,
            when_full in prop_oneof![
                Just(WhenFull::Block), Just(WhenFull::DropOldest), Just(WhenFull::DropNewest)
            ],
            steps in steps(),
        ) {
            let mut queue = Queue::new(places, bytes_max, when_full);
            let mut model: VecDeque<(u32, usize)> = VecDeque::new();
            let (mut next, mut taken, mut oldest, mut newest, mut returned) = (0_u32, 0_u64, 0_u64, 0_u64, 0_u64);
            for step in steps {
                match step {
                    Step::Offer(bytes) => {
                        let n = next;
                        match queue.offer(n, bytes) {
                            Offered::Taken(dropped) => {
                                next += 1;
                                for item in dropped {
                                    prop_assert_eq!(when_full, WhenFull::DropOldest);
                                    prop_assert_eq!(model.pop_front().unwrap().0, item);
                                    oldest += 1;
                                }
                                model.push_back((n, bytes));
                            }
                            Offered::Full(item) => {
                                prop_assert_eq!(when_full, WhenFull::Block);
                                prop_assert_eq!(item, n);
                            }
                            Offered::Dropped(item) => {
                                prop_assert_eq!(when_full, WhenFull::DropNewest);
                                prop_assert_eq!(item, n);
                                next += 1;
                                newest += 1;
                            }
                        }
                    }
                    Step::Take => {
                        let item = queue.take();
                        prop_assert_eq!(item, model.pop_front().map(|(item, _)| item));
                        if item.is_some() {
                            taken += 1;
                            queue.settled(taken % 2 == 0);
                        }
                    }
                    Step::Withdraw(divisor) => {
                        let gone = queue.withdraw(|item| item % divisor == 0);
                        let expected: Vec<u32> = model.iter().map(|(item, _)| *item).filter(|item| item % divisor == 0).collect();
                        prop_assert_eq!(&gone, &expected);
                        returned += gone.len() as u64;
                        model.retain(|(item, _)| item % divisor != 0);
                    }
                }
                let bytes: usize = model.iter().map(|(_, bytes)| bytes).sum();
                prop_assert!(model.len() <= places);
                prop_assert!(bytes <= bytes_max || model.len() == 1);
                let counts = queue.counts();
                prop_assert_eq!(counts.waiting, model.len() as u64);
                prop_assert_eq!(counts.received, u64::from(next));
                prop_assert_eq!(
                    (counts.dropped_oldest, counts.dropped_newest, counts.returned),
                    (oldest, newest, returned)
                );
                prop_assert_eq!(counts.answered + counts.failed, taken);
                prop_assert_eq!(
                    counts.received,
                    counts.answered + counts.failed + oldest + newest + returned + counts.waiting
                );
            }
        }
    }

    #[test]
    fn a_record_larger_than_the_bound_passes_alone() {
        let mut queue = Queue::new(4, 10, WhenFull::Block);
        assert_eq!(queue.offer('a', 50), Offered::Taken(vec![]));
        assert_eq!(queue.offer('b', 1), Offered::Full('b'));
        assert_eq!(queue.take(), Some('a'));
        assert_eq!(queue.offer('b', 1), Offered::Taken(vec![]));
    }
}
