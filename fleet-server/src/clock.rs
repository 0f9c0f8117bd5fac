//! The only place that asks what time it is.

use jiff::Timestamp;

/// Now, by the system's clock.
#[must_use]
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// Now, in milliseconds since 1970.
#[must_use]
pub fn now_ms() -> i64 {
    now().as_millisecond()
}
