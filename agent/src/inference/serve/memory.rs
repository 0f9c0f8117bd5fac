//! Memory that clients can make the worker hold: what they send and what they do not read.

use super::busy;
use crate::inference::api::ApiError;
use bytes::Bytes;
use http::StatusCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Unit of the budgets, in bytes. What is no larger needs no share: connections are counted as well.
pub(super) const UNIT_BYTES: usize = 64 * 1024;

/// A share of the memory for bodies; none for a small one.
pub(super) type Share = Option<OwnedSemaphorePermit>;

/// Two budgets: bodies wait for theirs, answers cannot.
#[derive(Debug)]
pub(super) struct Memory {
    bodies: Arc<Semaphore>,
    answers: Arc<Semaphore>,
    answers_units: usize,
}

impl Memory {
    pub(super) fn new(bodies_max_bytes: usize, answers_max_bytes: usize) -> Self {
        let answers_units = units(answers_max_bytes);
        Self {
            bodies: Arc::new(Semaphore::new(units(bodies_max_bytes))),
            answers: Arc::new(Semaphore::new(answers_units)),
            answers_units,
        }
    }

    /// Takes a share for a body of so many bytes, when there is so much.
    pub(super) async fn share(&self, bytes: usize, limit: Duration) -> Result<Share, ApiError> {
        if bytes <= UNIT_BYTES {
            return Ok(None);
        }
        let permits = u32::try_from(units(bytes)).unwrap_or(u32::MAX);
        let bodies = Arc::clone(&self.bodies);
        let share = timeout(limit, bodies.acquire_many_owned(permits)).await;
        let share = share.ok().and_then(Result::ok);
        share.map(Some).ok_or_else(|| busy("request bodies"))
    }

    /// An answer that has a share until its client has read it. One that is larger than the budget
    /// goes if no other is there.
    ///
    /// # Errors
    /// Clients have so many unread that there is no share: 503.
    pub(super) fn unread(&self, bytes: Vec<u8>) -> Result<Bytes, ApiError> {
        if bytes.len() <= UNIT_BYTES {
            return Ok(Bytes::from(bytes));
        }
        let permits = units(bytes.len()).min(self.answers_units);
        let permits = u32::try_from(permits).unwrap_or(u32::MAX);
        match Arc::clone(&self.answers).try_acquire_many_owned(permits) {
            Ok(share) => Ok(Bytes::from_owner(Unread {
                bytes,
                _share: share,
            })),
            Err(_) => Err(ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                format!(
                    "no memory for an answer of {} bytes: clients have not read others yet; try \
                     again later",
                    bytes.len()
                ),
            )),
        }
    }
}

struct Unread {
    bytes: Vec<u8>,
    _share: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Unread {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn units(bytes: usize) -> usize {
    bytes.div_ceil(UNIT_BYTES).max(1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn unread_answers_are_bounded_and_small_ones_always_go() {
        let memory = Memory::new(MIB, MIB);
        let first = memory.unread(vec![1; MIB / 2]).unwrap();
        let second = memory.unread(vec![2; MIB / 2]).unwrap();
        let refused = memory.unread(vec![3; MIB / 2]).unwrap_err();
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(memory.unread(vec![4; UNIT_BYTES]).is_ok());
        // Whoever still reads a part of it holds all of it.
        let part = first.slice(..1);
        drop(first);
        assert!(memory.unread(vec![5; MIB / 2]).is_err());
        drop(part);
        assert!(memory.unread(vec![6; MIB / 2]).is_ok());
        drop(second);
        assert!(memory.unread(vec![7; 2 * MIB]).is_ok());
    }

    #[tokio::test]
    async fn small_bodies_do_not_wait_for_large_ones() {
        let memory = Memory::new(MIB, MIB);
        let limit = Duration::from_millis(1);
        let large = memory.share(MIB, limit).await.unwrap();
        assert!(large.is_some());
        assert!(memory.share(UNIT_BYTES, limit).await.unwrap().is_none());
        assert!(memory.share(UNIT_BYTES + 1, limit).await.is_err());
        drop(large);
        assert!(memory.share(UNIT_BYTES + 1, limit).await.is_ok());
    }
}
