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
/// What devices report may raise versions by this much at once: years of honest signing, and no
/// lever for a lying device.
const REPORTED_JUMP_MAX: u64 = 1_000_000;

/// Signs anew what is due now.
///
/// # Errors
/// Files that cannot be read or written. A root that does not let this server sign is only logged:
/// operators need a running server to mend that.
pub(crate) async fn once(
    repository: &Arc<Repository>,
    store: &Store,
    now: Timestamp,
) -> Result<(), RepositoryError> {
    let before = repository.online_versions()?.unwrap_or_default();
    match seen_elsewhere(store, before).await {
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
) -> Result<OnlineVersions, crate::store::StoreError> {
    let kept = store.online_versions().await?;
    let reported = store.reported_online_versions().await?;
    let known = ours.max(kept);
    let within = |known: u64, reported: u64| {
        let most = known.saturating_add(REPORTED_JUMP_MAX);
        if reported > most {
            tracing::warn!(
                known,
                reported,
                "a device reports an impossible metadata version"
            );
        }
        reported.min(most)
    };
    Ok(OnlineVersions {
        snapshot: kept.snapshot.max(within(known.snapshot, reported.snapshot)),
        timestamp: kept
            .timestamp
            .max(within(known.timestamp, reported.timestamp)),
    })
}

/// Looks again and again, until told to stop.
pub(crate) async fn run(
    repository: Arc<Repository>,
    store: Store,
    mut stop: watch::Receiver<bool>,
) {
    let mut warned: Option<Timestamp> = None;
    loop {
        let now = clock::now();
        if let Err(error) = once(&repository, &store, now).await {
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
