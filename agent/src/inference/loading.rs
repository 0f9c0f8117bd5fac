//! Loading a bundle while another one answers: requests are to notice it as little as may be.
//!
//! The loading thread is one that the kernel calls idle (sched(7)): whatever answers a request takes the
//! processor from it at once, where a thread that is merely nice keeps it for a slice of some
//! milliseconds. On an idle machine it takes no longer for that. Where requests leave no time at all it
//! would never end, so after [`STARVED`] another thread begins the load again, nice. A family that nobody
//! serves, as after a death of the worker, is loaded like anything else: somebody waits for it.

use super::engine::{Engine, load_manifest};
use dunlin_protocol::id::{Digest, Family};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use thread_priority::{
    NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};
use tokio::sync::mpsc;

/// How long a load may go without the processor before it is begun again at a place that it shares.
const STARVED: Duration = Duration::from_secs(20);
/// The least that a thread may be which is not idle.
const NICE: i32 = 19;
/// As small a stack as loading needs: it counts against the memory limit.
const STACK_BYTES: usize = 2 << 20;

/// What a load gives.
pub(super) enum Loaded {
    /// It serves already.
    Serving,
    /// An engine that answers nobody yet.
    Fresh(Box<Engine>),
}

type Answer = Result<Loaded, String>;

/// Where a loading thread stands once it finds that requests would notice it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    /// Behind everything.
    Idle,
    /// Behind most.
    Nice,
}

/// Runs a load behind requests; its answer is the first that comes. To be called within a runtime.
pub(super) fn beside_requests(
    work: impl Fn(Place) -> Answer + Send + Sync + 'static,
) -> mpsc::Receiver<Answer> {
    beside_requests_until(STARVED, work)
}

fn beside_requests_until(
    starved: Duration,
    work: impl Fn(Place) -> Answer + Send + Sync + 'static,
) -> mpsc::Receiver<Answer> {
    let (done, loading) = mpsc::channel(2);
    let work: Arc<dyn Fn(Place) -> Answer + Send + Sync> = Arc::new(work);
    start(Place::Idle, Arc::clone(&work), done.clone());
    tokio::spawn(async move {
        // Its receiver goes once it has an answer.
        if tokio::time::timeout(starved, done.closed()).await.is_err() {
            tracing::info!("requests leave no time to load a model: it is loaded among them");
            start(Place::Nice, work, done);
        }
    });
    loading
}

fn start(
    place: Place,
    work: Arc<dyn Fn(Place) -> Answer + Send + Sync>,
    done: mpsc::Sender<Answer>,
) {
    let run = move || {
        let answer = catch_unwind(AssertUnwindSafe(|| work(place)));
        let answer = answer.unwrap_or_else(|_| Err("the engine panicked on it".to_owned()));
        // Nobody hears the second of two.
        let _ = done.blocking_send(answer);
    };
    let thread = std::thread::Builder::new().name("loading".to_owned());
    if let Err(error) = thread.stack_size(STACK_BYTES).spawn(run) {
        tracing::error!(%error, "no thread to load a model in");
    }
}

/// Of the calling thread alone, as Linux counts it.
fn stand_back(place: Place) {
    if let Place::Idle = place {
        let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
        match set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, idle) {
            Ok(()) => return,
            Err(error) => tracing::debug!(?error, "a model is loaded as a nice thread"),
        }
    }
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%error, "a model is loaded at ordinary priority");
    }
}

/// What a load happens beside.
pub(super) enum Beside {
    /// These families' bundles serve. A family that nobody serves is waited for: its load stands back
    /// for nobody, so that it is back at once after a death.
    Serving(Vec<(Family, Digest)>),
    /// It is for the shadow: nobody waits.
    Shadow,
}

/// Loads the bundle staged in a folder, if it is the one that is wanted.
pub(super) fn load(slot: &Path, wanted: Digest, beside: &Beside, place: Place) -> Answer {
    let expect = |got: Digest| {
        let mismatch = || {
            let path = slot.display();
            format!("{path}: expected bundle {wanted}, got {got}")
        };
        (got == wanted).then_some(()).ok_or_else(mismatch)
    };
    let (manifest, got) = load_manifest(slot).map_err(|e| e.to_string())?;
    expect(got)?;
    let is_waited_for = match beside {
        Beside::Shadow => false,
        Beside::Serving(all) if all.iter().any(|(_, bundle)| *bundle == wanted) => {
            return Ok(Loaded::Serving);
        }
        Beside::Serving(all) => all.iter().all(|(family, _)| *family != manifest.family),
    };
    if !is_waited_for {
        stand_back(place);
    }
    let engine = Engine::load(slot).map_err(|e| e.to_string())?;
    expect(engine.bundle())?;
    Ok(Loaded::Fresh(Box::new(engine)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn a_load_that_gets_no_time_is_begun_again() {
        let begun = Arc::new(AtomicU32::new(0));
        let (release, held) = std::sync::mpsc::channel::<()>();
        let held = std::sync::Mutex::new(held);
        let count = Arc::clone(&begun);
        let mut loading = beside_requests_until(Duration::from_millis(10), move |_| {
            // The first waits for good, as a thread does that is never given the processor.
            if count.fetch_add(1, Ordering::SeqCst) == 0 {
                let _ = held.lock().unwrap().recv();
            }
            Err("loaded".to_owned())
        });
        let answer = loading.recv().await.unwrap();
        assert_eq!(answer.err().as_deref(), Some("loaded"));
        assert_eq!(begun.load(Ordering::SeqCst), 2);
        drop(release);
    }

    #[test]
    fn an_idle_thread_is_idle() {
        let policy = std::thread::spawn(|| {
            stand_back(Place::Idle);
            let path = "/proc/thread-self/sched";
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let mut lines = text.lines();
            lines
                .find(|line| line.starts_with("policy"))
                .map(str::to_owned)
        });
        // SCHED_IDLE is 5; a kernel without this file says nothing.
        if let Some(line) = policy.join().unwrap() {
            assert!(line.trim_end().ends_with(" 5"), "{line}");
        }
    }
}
