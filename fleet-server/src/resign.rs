//! Keeps snapshot and timestamp from expiring, with versions that only rise, and tells early of what
//! people must sign.

use crate::clock;
use crate::repository::{OnlineVersions, Repository, RepositoryError};
use crate::store::Store;
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How often the age of metadata is looked at. By the wall clock's time, not by what was slept: a
/// clock that was set, or a machine that slept, is noticed within this.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// How often the same warning is repeated.
const WARN_INTERVAL_S: i64 = 24 * 3600;
/// What devices report may raise versions by this much in all from a start on: years of honest signing,
/// and no lever for a lying device.
const REPORTED_JUMP_MAX: u64 = 1_000_000;

/// Signs anew what is due now. `belief` is one from a start to its end.
///
/// # Errors
/// Files that cannot be read or written. A root that does not let this server sign is only logged:
/// operators need a running server to mend that.
pub(crate) async fn once(
    repository: &Arc<Repository>,
    store: &Store,
    belief: &mut Belief,
    now: Timestamp,
) -> Result<(), RepositoryError> {
    let before = repository.online_versions()?.unwrap_or_default();
    match seen_elsewhere(store, before, belief).await {
        Ok(seen) => repository.raise_floor(seen),
        Err(error) => tracing::warn!(%error, "versions kept in the database are not known"),
    }
    let signing = repository.clone();
    let signed = tokio::task::spawn_blocking(move || signing.resign_online(now)).await;
    match signed {
        Ok(Ok(false)) => {}
        Ok(Ok(true)) => tracing::info!("timestamp signed anew"),
        Ok(Err(error @ RepositoryError::File(_))) => return Err(error),
        Ok(Err(error)) => {
            tracing::error!(%error, "timestamp not signed anew; devices refuse updates once it expires");
        }
        Err(error) => tracing::error!(%error, "signing the timestamp anew ended badly"),
    }
    let after = repository.online_versions()?.unwrap_or_default();
    if let Err(error) = store.raise_online_versions(after).await {
        tracing::warn!(%error, "versions signed are not kept in the database");
    }
    Ok(())
}

/// The highest versions that the database and the devices know. They are above ours after the
/// repository's folder, or all of it, came back from a backup.
async fn seen_elsewhere(
    store: &Store,
    ours: OnlineVersions,
    belief: &mut Belief,
) -> Result<OnlineVersions, crate::store::StoreError> {
    let kept = store.online_versions().await?;
    let known = ours.max(kept);
    let most = belief.most(ours.sane().max(kept));
    let reported = store.reported_online_versions(most).await?;
    if reported.impossible > 0 {
        tracing::warn!(
            devices = reported.impossible,
            snapshot_most = most.snapshot,
            timestamp_most = most.timestamp,
            "devices report impossible metadata versions, which are passed over"
        );
    }
    Ok(kept.max(belief.raise(known, reported.versions)))
}

/// How far devices are believed, from a start on. After a backup came back they report one by one, each
/// perhaps a little more; but a device that lies must not make the server sign again and again.
#[derive(Debug, Default)]
pub(crate) struct Belief {
    start: Option<OnlineVersions>,
    snapshot_leap: u64,
    timestamp_leap: u64,
}

impl Belief {
    /// What a report is believed up to. What was known at the first call is the start.
    fn most(&mut self, known: OnlineVersions) -> OnlineVersions {
        let start = *self.start.get_or_insert(known);
        OnlineVersions {
            snapshot: start.snapshot.saturating_add(REPORTED_JUMP_MAX),
            timestamp: start.timestamp.saturating_add(REPORTED_JUMP_MAX),
        }
    }

    /// What the next signatures must be above, by what devices report (within [`Self::most`]).
    fn raise(&mut self, known: OnlineVersions, reported: OnlineVersions) -> OnlineVersions {
        let start = self.start.unwrap_or(known);
        OnlineVersions {
            snapshot: leap(
                &mut self.snapshot_leap,
                start.snapshot,
                known.snapshot,
                reported.snapshot,
            ),
            timestamp: leap(
                &mut self.timestamp_leap,
                start.timestamp,
                known.timestamp,
                reported.timestamp,
            ),
        }
    }
}

/// Each leap ends at least twice as far from the start as the one before: twenty reach the bound.
fn leap(last: &mut u64, start: u64, known: u64, reported: u64) -> u64 {
    if reported <= known {
        return 0;
    }
    let doubled = last.saturating_mul(2).min(REPORTED_JUMP_MAX);
    *last = reported.saturating_sub(start).max(doubled);
    start.saturating_add(*last)
}

/// Looks again and again, until told to stop.
pub(crate) async fn run(
    repository: Arc<Repository>,
    store: Store,
    mut stop: watch::Receiver<bool>,
) {
    let mut warned: Option<Timestamp> = None;
    let mut belief = Belief::default();
    loop {
        let now = clock::now();
        if let Err(error) = once(&repository, &store, &mut belief, now).await {
            tracing::error!(%error, "timestamp not signed anew; devices refuse updates once it expires");
        }
        let since = warned.map(|at| now.duration_since(at).as_secs());
        if since.is_none_or(|s| !(0..WARN_INTERVAL_S).contains(&s)) && warn(&repository, now) {
            warned = Some(now);
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
}

/// Logs what is to be warned of; whether there was anything.
fn warn(repository: &Repository, now: Timestamp) -> bool {
    let expiries = match repository.expiries(now) {
        Ok(expiries) => expiries,
        Err(error) => {
            tracing::error!(%error, "when metadata expire is not known");
            return false;
        }
    };
    let warnings: Vec<String> = expiries.iter().filter_map(|e| e.warning(now)).collect();
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    !warnings.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(snapshot: u64, timestamp: u64) -> OnlineVersions {
        OnlineVersions {
            snapshot,
            timestamp,
        }
    }

    /// One look: what is kept, what is signed after it.
    fn look(belief: &mut Belief, known: OnlineVersions, report: OnlineVersions) -> OnlineVersions {
        let most = belief.most(known);
        let within = report.snapshot <= most.snapshot && report.timestamp <= most.timestamp;
        assert!(within, "the database gives no more than is believed");
        let floor = belief.raise(known, report);
        let signed = |known: u64, floor: u64| if floor > known { floor + 1 } else { known };
        at(
            signed(known.snapshot, floor.snapshot),
            signed(known.timestamp, floor.timestamp),
        )
    }

    #[test]
    fn devices_that_have_seen_more_raise_versions_and_each_may_have_seen_a_little_more() {
        let mut belief = Belief::default();
        // The folder and the database are of last month.
        let first = look(&mut belief, at(3, 9), at(20, 70));
        assert_eq!(first, at(21, 71));
        let second = look(&mut belief, first, at(22, 75));
        assert!(second.snapshot > 22 && second.timestamp > 75);
        assert_eq!(
            look(&mut belief, second, second),
            second,
            "what it signed itself"
        );
        assert_eq!(look(&mut belief, at(30, 200), at(0, 0)), at(30, 200));
    }

    #[test]
    fn a_device_that_lies_ever_higher_makes_the_server_sign_a_few_times_and_no_more() {
        let mut belief = Belief::default();
        let mut now = at(3, 9);
        let mut signings = 0;
        loop {
            let most = belief.most(now);
            let lie = at(now.snapshot, (now.timestamp + 1).min(most.timestamp));
            let after = look(&mut belief, now, lie);
            if after == now {
                break;
            }
            (signings, now) = (signings + 1, after);
        }
        assert!((2..=22).contains(&signings), "{signings}");
        assert!(now.timestamp <= 9 + REPORTED_JUMP_MAX + 1, "{now:?}");
        assert_eq!(now.snapshot, 3);
    }
}
