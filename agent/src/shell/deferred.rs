//! Events that wait for the state machine, also while the ledger cannot be written.

use crate::device::Event;
use std::collections::VecDeque;

/// Most events kept.
const EVENTS_MAX: usize = 256;

/// A bounded queue that keeps what counts: ticks and consent come again by themselves, of totals only the
/// newest matters, and the front, which is next, is never dropped.
#[derive(Debug, Default)]
pub(super) struct Deferred {
    events: VecDeque<Event>,
}

impl Deferred {
    /// Takes an event in; gives back one that is lost for want of room.
    pub(super) fn push(&mut self, event: Event) -> Option<Event> {
        match &event {
            Event::Tick | Event::Consent(_) if !self.events.is_empty() => return None,
            Event::Shadowed { digest, .. } => {
                let same =
                    |e: &Event| matches!(e, Event::Shadowed { digest: d, .. } if d == digest);
                if let Some(held) = self.events.back_mut().filter(|e| same(e)) {
                    *held = event;
                    return None;
                }
            }
            // Looked for again and again as well.
            Event::Install { .. } if self.events.contains(&event) => return None,
            Event::Counted { digest, .. } => {
                let same = |e: &Event| matches!(e, Event::Counted { digest: d, .. } if d == digest);
                // Not past a death, after which totals begin anew.
                let since_death = |e: &Event| !matches!(e, Event::WorkerDied { .. });
                let newest = self.events.iter_mut().rev().take_while(|e| since_death(e));
                for held in newest {
                    if same(held) {
                        *held = event;
                        return None;
                    }
                }
            }
            _ => {}
        }
        let dropped = if self.events.len() < EVENTS_MAX {
            None
        } else {
            match self.least() {
                Some(least) => self.events.remove(least),
                None => return Some(event),
            }
        };
        self.events.push_back(event);
        dropped
    }

    /// What is missed least: totals, then what the server or the next worker says again.
    fn least(&self) -> Option<usize> {
        let first = |wanted: fn(&Event) -> bool| {
            let found = self.events.iter().skip(1).position(wanted);
            found.map(|i| i + 1)
        };
        first(|e| matches!(e, Event::Counted { .. })).or_else(|| {
            first(|e| {
                matches!(
                    e,
                    Event::WorkerDied { .. } | Event::Desired(_) | Event::Activated { .. }
                )
            })
        })
    }

    /// The next event.
    pub(super) fn pop(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The event just taken could not be dealt with: it is next again.
    pub(super) fn put_back(&mut self, event: Event) {
        if !matches!(event, Event::Tick | Event::Consent(_)) {
            self.events.push_front(event);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::device::Count;
    use dunlin_protocol::id::Digest;

    fn counted(of: &[u8], inferences: u64) -> Event {
        let (digest, errors) = (Digest::of(of), 0);
        let count = Count {
            inferences,
            errors,
            slow: 0,
        };
        Event::Counted { digest, count }
    }

    fn died() -> Event {
        Event::WorkerDied {
            detail: String::new(),
            listened: true,
            killed: false,
            at_work: None,
        }
    }

    #[test]
    fn of_totals_the_newest_is_kept_and_ticks_wait_for_nobody() {
        let mut queue = Deferred::default();
        queue.push(Event::Started);
        for n in 0..1_000 {
            assert_eq!(queue.push(counted(b"a", n)), None);
            assert_eq!(queue.push(counted(b"b", n)), None);
            assert_eq!(queue.push(Event::Tick), None);
        }
        queue.push(died());
        queue.push(counted(b"a", 1));
        let all: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        let expected = [
            Event::Started,
            counted(b"a", 999),
            counted(b"b", 999),
            died(),
            counted(b"a", 1),
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn when_full_the_front_stays() {
        let mut queue = Deferred::default();
        queue.put_back(Event::Started);
        assert_eq!(queue.push(counted(b"a", 1)), None);
        for _ in 2..EVENTS_MAX {
            assert_eq!(queue.push(died()), None);
        }
        assert_eq!(queue.push(died()), Some(counted(b"a", 1)));
        assert_eq!(queue.push(Event::Started), Some(died()));
        assert_eq!(queue.events.len(), EVENTS_MAX);
        assert_eq!(queue.pop(), Some(Event::Started));
        queue.put_back(Event::Tick);
        assert_eq!(queue.pop(), Some(died()));
    }
}
