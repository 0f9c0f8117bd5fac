//! When metadata expire, and what to warn of. What people sign offline nobody can renew at night:
//! it is told of weeks before.

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
