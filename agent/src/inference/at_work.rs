//! What is being loaded or computed on, said before it is: should the process die of it, its last
//! word tells of what.

use crate::pipe::FromWorker;
use dunlin_protocol::id::Digest;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long it is said: a worker that lived so long does not die of what it does every day, and
/// every word costs time.
const SAID_FOR: Duration = Duration::from_secs(600);

/// Says what is at work, or nothing at all.
#[derive(Debug, Clone)]
pub(crate) struct AtWork(Option<Arc<Said>>);

struct Said {
    until: Instant,
    bundles: Mutex<Vec<Digest>>,
    say: fn(&FromWorker) -> io::Result<()>,
}

impl fmt::Debug for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Said").field("until", &self.until).finish()
    }
}

impl AtWork {
    /// Says nothing.
    pub(crate) fn silent() -> Self {
        Self(None)
    }

    /// Says it by `say`, which returns once it was said.
    pub(crate) fn said_by(say: fn(&FromWorker) -> io::Result<()>) -> Self {
        Self(Some(Arc::new(Said {
            until: Instant::now() + SAID_FOR,
            bundles: Mutex::default(),
            say,
        })))
    }

    /// Work on this bundle begins; it ends when what is given back is dropped.
    pub(crate) fn begin(&self, bundle: Digest) -> Option<Work> {
        let said = self.0.as_ref().filter(|said| Instant::now() < said.until)?;
        said.change(|bundles| bundles.push(bundle));
        Some(Work {
            said: Arc::clone(said),
            bundle,
        })
    }
}

impl Said {
    /// The list and what is said of it change together, so that the last word is true.
    fn change(&self, change: impl FnOnce(&mut Vec<Digest>)) {
        let mut bundles = self.bundles.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut bundles);
        let word = FromWorker::AtWork {
            bundles: bundles.clone(),
        };
        // A supervisor that does not read is gone; the pipe's other end says so too.
        let _ = (self.say)(&word);
    }
}

/// Work that has begun.
#[derive(Debug)]
pub(crate) struct Work {
    said: Arc<Said>,
    bundle: Digest,
}

impl Drop for Work {
    fn drop(&mut self) {
        self.said.change(|bundles| {
            if let Some(at) = bundles.iter().position(|b| *b == self.bundle) {
                bundles.swap_remove(at);
            }
        });
    }
}
