//! Samples of inputs on their way from the worker to the fleet server: kept sealed, sent when somebody
//! asks for them.
//!
//! ```text
//! worker ─ sealed batch ─▶ keep (one thread's work at a time) ─▶ shelf on disk
//! command "capture", every connect ─▶ send: GET /captures ─▶ PUT each batch ─▶ POST done
//!                                           a batch goes from the disk once the server has it
//! ```
//! Nothing here can open a batch. The supervisor's loop waits for none of it.

mod send;
mod shelf;

pub use shelf::{Kept, Shelf, ShelfError, ShelfLimits, surplus};

use crate::bundle::stage::models_dir;
use crate::config::CaptureSettings;
use crate::files::Disk;
use crate::http::{Client, Limits, Proxy};
use crate::identity::Identity;
use crate::throttle::Throttle;
use base64::Engine as _;
use dunlin_protocol::bundle::{MANIFEST_MAX_BYTES, Manifest};
use dunlin_protocol::capture::seal::SEALED_MAX_BYTES;
use dunlin_protocol::capture::{OwnerRules, Standing, standing};
use dunlin_protocol::id::Family;
use dunlin_protocol::report::CaptureReport;
use send::Sending;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

/// Most batches that wait for the disk; further ones are lost, and counted.
const QUEUE: usize = 4;
/// Least time between two events that say what was lost.
const TELL_LOST_EVERY: Duration = Duration::from_secs(3600);

/// For the device's events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Code of the event.
    pub code: &'static str,
    /// For people.
    pub detail: String,
}

/// What is kept, and what was lost; shared by who keeps and who sends.
#[derive(Debug)]
struct Shared {
    owner: OwnerRules,
    /// None where the owner does not allow it, or the disk gives none.
    shelf: Mutex<Option<Shelf>>,
    lost: Mutex<Lost>,
}

/// Batches that were dropped unfetched.
#[derive(Debug, Default)]
struct Lost {
    all: u64,
    untold: u64,
    why: String,
    told: Option<Instant>,
}

impl Shared {
    /// Every step on it leaves it sound.
    fn shelf(&self) -> MutexGuard<'_, Option<Shelf>> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lost(&self) -> MutexGuard<'_, Lost> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts batches that are gone; what is to be said of it, now and then.
    fn lose(&self, batches: u64, why: &str) -> Option<Said> {
        if batches == 0 {
            return None;
        }
        let mut lost = self.lost();
        lost.all = lost.all.saturating_add(batches);
        lost.untold = lost.untold.saturating_add(batches);
        why.clone_into(&mut lost.why);
        if lost.told.is_some_and(|at| at.elapsed() < TELL_LOST_EVERY) {
            return None;
        }
        lost.tell()
    }
}

impl Lost {
    fn tell(&mut self) -> Option<Said> {
        let untold = std::mem::take(&mut self.untold);
        if untold == 0 {
            return None;
        }
        self.told = Some(Instant::now());
        let (all, why) = (self.all, &self.why);
        Some(Said {
            code: "capture_lost",
            detail: format!(
                "batches of samples dropped unfetched={untold} since_start={all}: {why}"
            ),
        })
    }
}

/// The supervisor's end of it; the tasks end when this is dropped.
pub struct Captures {
    shared: Arc<Shared>,
    keep: Option<mpsc::Sender<Batch>>,
    keeping: Option<JoinHandle<()>>,
    nudge: Arc<Notify>,
    sending: JoinHandle<()>,
    said: mpsc::Receiver<Said>,
    say: mpsc::Sender<Said>,
}

struct Batch {
    sealed: String,
    lost: u64,
    now_ms: i64,
}

impl Drop for Captures {
    fn drop(&mut self) {
        self.sending.abort();
    }
}

impl Captures {
    /// Opens the shelf where the owner allows one, removes it where not, and starts both tasks.
    ///
    /// # Errors
    /// What was kept before, and is not allowed any more, cannot be removed.
    pub fn start(
        settings: &CaptureSettings,
        identity: &Identity,
        disk: &Disk,
        state_dir: &Path,
        (limits, proxy): (Limits, Proxy),
    ) -> Result<Self, ShelfError> {
        let (say, said) = mpsc::channel(QUEUE);
        let shelf = if settings.owner.allow {
            open(settings, disk, state_dir, &say)
        } else {
            if Shelf::clear(disk, state_dir)? {
                let detail = "captured samples were removed: the owner allows none any more";
                let _ = say.try_send(Said {
                    code: "capture_cleared",
                    detail: detail.to_owned(),
                });
            }
            None
        };
        let shared = Arc::new(Shared {
            owner: settings.owner.clone(),
            shelf: Mutex::new(shelf),
            lost: Mutex::default(),
        });
        let (keep, batches) = mpsc::channel(QUEUE);
        let keeping = tokio::spawn(keep_all(Arc::clone(&shared), batches, say.clone()));
        let nudge = Arc::new(Notify::new());
        let sending = Sending {
            shared: Arc::clone(&shared),
            identity: identity.clone(),
            limits,
            proxy,
            say: say.clone(),
        };
        let sending = tokio::spawn(sending.run(Arc::clone(&nudge)));
        Ok(Self {
            shared,
            keep: Some(keep),
            keeping: Some(keeping),
            nudge,
            sending,
            said,
            say,
        })
    }

    /// Keeps a sealed batch of the worker's, in Base64; `lost` were lost before it.
    pub fn keep(&self, sealed: String, lost: u64, now_ms: i64) {
        let batch = Batch {
            sealed,
            lost,
            now_ms,
        };
        let kept = self
            .keep
            .as_ref()
            .is_some_and(|keep| keep.try_send(batch).is_ok());
        if !kept {
            self.say(
                self.shared
                    .lose(lost.saturating_add(1), "the disk is too slow for them"),
            );
        }
    }

    /// Somebody may want what is kept.
    pub fn nudge(&self) {
        self.nudge.notify_one();
    }

    /// The next thing worth an event; for ever pending if there is none.
    pub async fn said(&mut self) -> Said {
        match self.said.recv().await {
            Some(said) => said,
            None => std::future::pending().await,
        }
    }

    /// How the device stands, for its report.
    #[must_use]
    pub fn report(&self) -> CaptureReport {
        // Held while a batch is written; the report does not wait for that.
        let size = self.shared.shelf.try_lock().ok();
        let (batches, bytes) = size
            .and_then(|s| s.as_ref().map(Shelf::size))
            .unwrap_or_default();
        CaptureReport {
            allow: self.shared.owner.allow,
            batches,
            bytes,
            lost: self.shared.lost().all,
        }
    }

    /// Waits until all that was given is on disk; what is left to be said.
    pub async fn close(&mut self) -> Vec<Said> {
        self.keep = None;
        if let Some(keeping) = self.keeping.take() {
            let _ = keeping.await;
        }
        let mut left: Vec<Said> = std::iter::from_fn(|| self.said.try_recv().ok()).collect();
        left.extend(self.shared.lost().tell());
        left
    }

    fn say(&self, said: Option<Said>) {
        if let Some(said) = said {
            let _ = self.say.try_send(said);
        }
    }
}

fn open(
    settings: &CaptureSettings,
    disk: &Disk,
    state_dir: &Path,
    say: &mpsc::Sender<Said>,
) -> Option<Shelf> {
    let days = i64::try_from(settings.max_days).unwrap_or(i64::MAX);
    let limits = ShelfLimits {
        max_bytes: settings.max_mib << 20,
        age_ms: days.saturating_mul(86_400_000),
    };
    match Shelf::open(disk, state_dir, limits) {
        Ok(shelf) => Some(shelf),
        // Samples are not worth a device that does not start.
        Err(error) => {
            tracing::error!(%error, "no samples are kept");
            let _ = say.try_send(Said {
                code: "capture_broken",
                detail: format!("no samples are kept: {error}"),
            });
            None
        }
    }
}

async fn keep_all(
    shared: Arc<Shared>,
    mut batches: mpsc::Receiver<Batch>,
    say: mpsc::Sender<Said>,
) {
    while let Some(batch) = batches.recv().await {
        let shared = Arc::clone(&shared);
        let said = tokio::task::spawn_blocking(move || keep_one(&shared, &batch)).await;
        for said in said.unwrap_or_default() {
            let _ = say.try_send(said);
        }
    }
}

fn keep_one(shared: &Shared, batch: &Batch) -> Vec<Said> {
    let mut said = Vec::new();
    said.extend(shared.lose(batch.lost, "the worker could not seal or tell them"));
    let mut shelf = shared.shelf();
    let Some(shelf) = shelf.as_mut() else {
        said.extend(shared.lose(1, "there is no place for them on the disk"));
        return said;
    };
    let sealed = decode(&batch.sealed);
    let kept = sealed.and_then(|sealed| {
        let kept = shelf.keep(batch.now_ms, &sealed);
        kept.map_err(|e| e.to_string())
    });
    match kept {
        Ok(dropped) => said.extend(shared.lose(dropped, "the oldest went for quota or age")),
        Err(problem) => {
            tracing::warn!(%problem, "a batch of samples is not kept");
            said.extend(shared.lose(1, &problem));
        }
    }
    said
}

fn decode(base64: &str) -> Result<Vec<u8>, String> {
    // Four characters for three bytes.
    if base64.len() > SEALED_MAX_BYTES.div_ceil(3) * 4 {
        return Err(format!(
            "a batch of {} characters is too long",
            base64.len()
        ));
    }
    let decoded = base64::engine::general_purpose::STANDARD.decode(base64);
    decoded.map_err(|e| format!("a batch that is not Base64: {e}"))
}

/// Whether inputs of each family that has a version here are kept on this device, and why not.
#[must_use]
pub fn standings(state_dir: &Path, owner: &OwnerRules) -> Vec<(Family, Standing)> {
    let (disk, models) = (Disk::native(), models_dir(state_dir));
    let families = disk.list(&models).unwrap_or_default();
    let families = families
        .iter()
        .filter_map(|(name, _)| name.to_str()?.parse::<Family>().ok());
    let of = |family: Family| {
        let path = models.join(family.as_str()).join("current/manifest.json");
        let limit = u64::try_from(MANIFEST_MAX_BYTES).unwrap_or(u64::MAX);
        let manifest = Manifest::parse(&disk.read_bounded(&path, limit).ok()?).ok()?;
        Some((family, standing(manifest.capture.as_ref(), owner)))
    };
    families.filter_map(of).collect()
}

/// A client that shows the device's certificate.
fn client(identity: &Identity, limits: Limits, proxy: &Proxy) -> Client {
    let throttle = Throttle::new(limits.bandwidth_bytes_s);
    Client::with(
        &identity.rustls_client_config(),
        limits,
        proxy.clone(),
        throttle,
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_told_at_once_and_then_seldom() {
        let shared = Shared {
            owner: OwnerRules::default(),
            shelf: Mutex::new(None),
            lost: Mutex::default(),
        };
        assert_eq!(shared.lose(0, "nothing"), None);
        let said = shared.lose(2, "quota").unwrap();
        assert_eq!(said.code, "capture_lost");
        assert!(
            said.detail.contains("unfetched=2 since_start=2: quota"),
            "{}",
            said.detail
        );
        assert_eq!(shared.lose(3, "quota"), None);
        let left = shared.lost().tell().unwrap();
        assert!(
            left.detail.contains("unfetched=3 since_start=5"),
            "{}",
            left.detail
        );
        assert_eq!(shared.lost().tell(), None);
    }

    #[test]
    fn without_a_shelf_or_base64_a_batch_is_counted_as_lost() {
        let shared = Shared {
            owner: OwnerRules::default(),
            shelf: Mutex::new(None),
            lost: Mutex::default(),
        };
        let batch = Batch {
            sealed: "AAAA".to_owned(),
            lost: 1,
            now_ms: 0,
        };
        assert_eq!(keep_one(&shared, &batch).len(), 1);
        assert_eq!(shared.lost().all, 2);
        assert!(decode("!").is_err());
        assert!(decode(&"A".repeat(SEALED_MAX_BYTES * 2)).is_err());
    }
}
