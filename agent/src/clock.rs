//! What time it is, for trust and TLS alike.
//!
//! A device's clock may read 1970: its battery is empty, its time server out of reach. Time is then
//! what is known for sure: not before this program was built, not before the last successful refresh
//! of trust (`trust/time_floor`), and onward from there as long as the program runs. A right clock is
//! always ahead of all that, and is used as it is.
//!
//! So the time is a lower bound. What *ended* before it is over for certain. What *begins* after it may
//! have begun: see [`not_before_is_no_reason`].

use crate::files;
use jiff::Timestamp;
use rustls::CertificateError;
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// File of the time floor, in the trust folder.
pub(crate) const TIME_FLOOR: &str = "time_floor";
/// No agent is older than this: 2025-01-01.
const RELEASED_AT_S: i64 = 1_735_689_600;
const FLOOR_MAX_BYTES: u64 = 64;

/// The device's time.
#[derive(Debug)]
pub struct Clock {
    floor: PathBuf,
    /// What was known for sure when it was opened.
    known: Timestamp,
    opened: Instant,
    system: fn() -> Timestamp,
}

impl Clock {
    /// The clock of a state folder, over the system's.
    #[must_use]
    pub fn open(state_dir: &Path) -> Self {
        Self::over(Timestamp::now, state_dir)
    }

    /// The clock of a state folder over another than the system's.
    #[must_use]
    pub fn over(system: fn() -> Timestamp, state_dir: &Path) -> Self {
        let floor = state_dir.join("trust").join(TIME_FLOOR);
        let known = built().max(read(&floor));
        if system() < known {
            tracing::warn!(clock = %system(), %known, "the clock is behind what is known for sure: counting on from that");
        }
        Self {
            floor,
            known,
            opened: Instant::now(),
            system,
        }
    }

    /// Now, or the latest time known for sure if the clock is behind it.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let since = self.known.checked_add(self.opened.elapsed());
        (self.system)()
            .max(since.unwrap_or(self.known))
            .max(read(&self.floor))
    }

    /// [`now`](Self::now) as TLS counts it.
    #[must_use]
    pub fn unix(&self) -> UnixTime {
        let seconds = u64::try_from(self.now().as_second()).unwrap_or_default();
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.unix())
    }
}

/// When this program was built, at the earliest.
pub(crate) fn built() -> Timestamp {
    let built = option_env!("SOURCE_DATE_EPOCH").and_then(|s| s.parse().ok());
    Timestamp::from_second(built.unwrap_or(RELEASED_AT_S)).unwrap_or_default()
}

/// A damaged floor stops installs (trust reads it too and refuses); it must not cut the connection over
/// which that is reported.
fn read(floor: &Path) -> Timestamp {
    let bytes = files::read_if_there(floor, FLOOR_MAX_BYTES);
    let text = bytes.ok().flatten().and_then(|b| String::from_utf8(b).ok());
    text.and_then(|t| t.trim().parse().ok()).unwrap_or_default()
}

/// Verifies a certificate at a time that is a lower bound: one that begins later may have begun, so it
/// is looked at as of its beginning. The fleet's CA dates none into the future, so nothing is opened
/// by it; what has ended stays refused.
///
/// # Errors
/// Those of `verify`.
pub(crate) fn not_before_is_no_reason<T>(
    now: UnixTime,
    verify: impl Fn(UnixTime) -> Result<T, rustls::Error>,
) -> Result<T, rustls::Error> {
    match verify(now) {
        Err(rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext {
            not_before,
            ..
        })) => verify(not_before),
        verified => verified,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn floor_at(text: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("trust")).unwrap();
        std::fs::write(dir.path().join("trust").join(TIME_FLOOR), text).unwrap();
        dir
    }

    #[test]
    fn a_clock_that_reads_1970_counts_on_from_what_is_known() {
        let dir = floor_at("2031-05-01T00:00:00Z\n");
        let floor: Timestamp = "2031-05-01T00:00:00Z".parse().unwrap();
        let clock = Clock::over(|| Timestamp::UNIX_EPOCH, dir.path());
        let (first, begun) = (clock.now(), Instant::now());
        assert!(first >= floor);
        while begun.elapsed() < Duration::from_millis(5) {
            std::thread::yield_now();
        }
        assert!(clock.now() > first, "time goes on");
        // Another part of the program raised it meanwhile.
        let later = "2031-05-02T00:00:00Z";
        std::fs::write(dir.path().join("trust").join(TIME_FLOOR), later).unwrap();
        assert!(clock.now() >= later.parse().unwrap());
        assert_eq!(
            clock.current_time().unwrap().as_secs(),
            u64::try_from(clock.now().as_second()).unwrap()
        );
    }

    #[test]
    fn a_right_clock_is_used_as_it_is() {
        let dir = floor_at("2026-05-01T00:00:00Z");
        let right = || "2040-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(Clock::over(right, dir.path()).now(), right());
    }

    #[test]
    fn without_a_floor_the_build_is_one_and_damage_is_none() {
        for dir in [tempfile::tempdir().unwrap(), floor_at("yesterday")] {
            let clock = Clock::over(|| Timestamp::UNIX_EPOCH, dir.path());
            assert!(clock.now() >= built());
            assert!(built() >= Timestamp::from_second(RELEASED_AT_S).unwrap());
        }
    }

    #[test]
    fn a_later_beginning_is_no_reason_and_every_other_is() {
        let at = |s| UnixTime::since_unix_epoch(Duration::from_secs(s));
        let verify = |begins: u64, ends: u64| {
            not_before_is_no_reason(at(100), move |time| {
                let error = if time.as_secs() < begins {
                    CertificateError::NotValidYetContext {
                        time,
                        not_before: at(begins),
                    }
                } else if time.as_secs() > ends {
                    CertificateError::Expired
                } else {
                    return Ok(());
                };
                Err(rustls::Error::InvalidCertificate(error))
            })
        };
        assert!(verify(50, 150).is_ok());
        assert!(verify(200, 250).is_ok(), "our clock is behind");
        assert!(verify(50, 90).is_err(), "ended before what is known");
        assert!(verify(200, 150).is_err(), "never valid");
    }
}
