//! When metadata expire, and what to warn of. What people sign offline nobody can renew at night:
//! it is told of weeks before.

use super::error::{Result, trust};
use super::online::List;
use super::{Repository, publish};
use dunlin_protocol::trust::{Envelope, Metadata as _, Role, TARGETS_MAX_BYTES, TargetsMetadata};
use jiff::{SignedDuration, Timestamp};

/// How long before its end offline-signed metadata are warned of.
pub const WARN_BEFORE: SignedDuration = SignedDuration::from_hours(30 * 24);

/// One metadata file that devices rest on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expiry {
    /// Its role; a delegated one by its name.
    pub role: String,
    /// Its version.
    pub version: u64,
    /// End of validity.
    pub expires: Timestamp,
    /// Whether people sign it, not this server.
    pub is_offline: bool,
    /// Keys that must sign.
    pub threshold: u64,
    /// Keys that may sign.
    pub keys: u64,
}

impl Expiry {
    /// Seconds left; negative once it has expired.
    #[must_use]
    pub fn seconds_left(&self, now: Timestamp) -> i64 {
        self.expires.duration_since(now).as_secs()
    }

    /// What to tell whoever is on call, if anything.
    #[must_use]
    pub fn warning(&self, now: Timestamp) -> Option<String> {
        let left = self.expires.duration_since(now);
        let (role, version, expires) = (&self.role, self.version, self.expires);
        if left.is_negative() || left.is_zero() {
            return Some(format!(
                "{role} version {version} expired at {expires}: devices refuse every update, what runs goes on"
            ));
        }
        (self.is_offline && left < WARN_BEFORE).then(|| {
            let days = left.as_hours() / 24;
            format!(
                "{role} version {version} expires in {days} days, at {expires}: {} of {} holders must sign the next one (docs/keys.md)",
                self.threshold, self.keys
            )
        })
    }
}

impl Repository {
    /// When what devices rest on expires: the four roles, and those that targets delegate to.
    ///
    /// # Errors
    /// Metadata that cannot be read.
    pub fn expiries(&self, now: Timestamp) -> Result<Vec<Expiry>> {
        if self.root_version()?.is_none() {
            return Ok(Vec::new());
        }
        let root = self.newest_root(now)?;
        let top = |role: Role, version: u64, expires: Timestamp| {
            let keys = root.roles.get(&role);
            Expiry {
                role: role.to_string(),
                version,
                expires,
                is_offline: matches!(role, Role::Root | Role::Targets),
                threshold: keys.map_or(0, |k| k.threshold),
                keys: keys.map_or(0, |k| k.keyids.len() as u64),
            }
        };
        let mut all = vec![top(Role::Root, root.version, root.expires)];
        let Some(signed) = self.signed()? else {
            return Ok(all);
        };
        all.push(top(
            Role::Snapshot,
            signed.snapshot.version,
            signed.snapshot.expires,
        ));
        all.push(top(
            Role::Timestamp,
            signed.timestamp.version,
            signed.timestamp.expires,
        ));
        let lists = self.lists()?;
        let read = |list: &List| {
            let envelope = Envelope::parse(&list.bytes, TARGETS_MAX_BYTES)?;
            TargetsMetadata::read(&envelope)
        };
        if let Some(list) = lists.get(&Role::Targets.into()) {
            let targets = read(list).map_err(trust("targets"))?;
            all.push(top(Role::Targets, targets.version, targets.expires));
        }
        for (role, keys) in publish::delegated_keys(&lists) {
            let Some(list) = lists.get(&role) else {
                continue;
            };
            let Ok(metadata) = read(list) else { continue };
            all.push(Expiry {
                role: role.as_str().to_owned(),
                version: metadata.version,
                expires: metadata.expires,
                is_offline: true,
                threshold: keys.threshold,
                keys: keys.keyids.len() as u64,
            });
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offline_metadata_are_warned_of_a_month_before_online_ones_when_it_is_too_late() {
        let now = Timestamp::UNIX_EPOCH;
        let mut expiry = Expiry {
            role: "targets".to_owned(),
            version: 3,
            expires: now + SignedDuration::from_hours(24 * 31),
            is_offline: true,
            threshold: 2,
            keys: 3,
        };
        assert_eq!(expiry.warning(now), None);
        expiry.expires = now + SignedDuration::from_hours(24 * 29);
        let said = expiry.warning(now).unwrap_or_default();
        assert!(
            said.contains("29 days") && said.contains("2 of 3"),
            "{said}"
        );
        expiry.is_offline = false;
        assert_eq!(expiry.warning(now), None);
        expiry.expires = now;
        let said = expiry.warning(now).unwrap_or_default();
        assert!(said.contains("expired"), "{said}");
        assert_eq!(expiry.seconds_left(now), 0);
    }
}
