//! Work beside the supervisor's loop. Every job has a number, so that the last word of one that was
//! given up is told from the present one's.

use crate::device::{Event, Slot};
use dunlin_protocol::command::Shadow;
use dunlin_protocol::id::{Digest, Family};
use tokio::task::AbortHandle;

/// At most one job of a kind at a time.
#[derive(Debug, Default)]
pub(super) struct Job {
    number: u64,
    running: Option<AbortHandle>,
}

impl Job {
    /// Gives up the job under way, if any.
    pub(super) fn cancel(&mut self) {
        self.number += 1;
        if let Some(running) = self.running.take() {
            running.abort();
        }
    }

    /// Gives up the job under way and starts the next; `work` gets its number.
    pub(super) fn start<F>(&mut self, work: impl FnOnce(u64) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.cancel();
        self.running = Some(tokio::spawn(work(self.number)).abort_handle());
    }

    /// Whether the job of this number is the present one.
    pub(super) fn is_present(&self, number: u64) -> bool {
        self.number == number
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// What a job found.
#[derive(Debug)]
pub enum Done {
    /// A fetch or a trial ended.
    Update {
        /// Of this family.
        family: Family,
        /// Of the job.
        number: u64,
        /// What to tell the state machine.
        event: Event,
    },
    /// What a fetch cost.
    Fetched {
        /// The bundle.
        digest: Digest,
        /// In words.
        detail: String,
    },
    /// The slot to be served was read.
    Checked {
        /// Of this family.
        family: Family,
        /// Of the job.
        number: u64,
        /// The slot.
        slot: Slot,
        /// The bundle that should be in it.
        digest: Digest,
        /// How, if it is to run in the shadow.
        shadow: Option<Shadow>,
        /// Or why it is not whole.
        whole: Result<(), String>,
    },
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_job_that_was_given_up_is_not_the_present_one() {
        let mut job = Job::default();
        let (sender, mut numbers) = tokio::sync::mpsc::channel(4);
        for _ in 0..2 {
            let sender = sender.clone();
            job.start(|n| async move { sender.send(n).await.unwrap() });
        }
        let last = numbers.recv().await.unwrap();
        assert!(job.is_present(last) && !job.is_present(last - 1));
        job.cancel();
        assert!(!job.is_present(last));
    }
}
