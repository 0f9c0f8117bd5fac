//! Segments: the parts of a family's inputs that are counted apart, such as sites, cameras or shifts.
//!
//! The key and its values are signed with the bundle, so that no device, application or server can make
//! up others, and so that there are few. What an application says that is not among them counts as
//! [`OTHER`].

use serde::{Deserialize, Serialize};

/// Segment of the values that the profile does not name.
pub const OTHER: &str = "other";
/// Most values of a key: a device counts one window for each.
pub const VALUES_MAX: usize = 16;
/// Longest key or value, in bytes.
pub const NAME_MAX_BYTES: usize = 64;

/// Why a key and its values cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SegmentsError {
    /// Not a name.
    #[error("{0:?}: expected 1 to {NAME_MAX_BYTES} bytes of a-z, A-Z, 0-9, _, - and .")]
    Name(String),
    /// Twice, or reserved.
    #[error("{0:?}: named twice, or the name kept for all other values ({OTHER:?})")]
    Taken(String),
    /// None, or too many.
    #[error("expected 1 to {VALUES_MAX} values, got {0}")]
    Count(usize),
}

/// By what windows are counted apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segments {
    /// Name of the request's parameter, such as `camera`.
    pub key: String,
    /// What it may be.
    pub values: Vec<String>,
}

/// Whether a text may be a key or a value.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_-.".contains(&b);
    (1..=NAME_MAX_BYTES).contains(&text.len()) && text.bytes().all(allowed)
}

impl Segments {
    /// Checks names and number.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), SegmentsError> {
        if !(1..=VALUES_MAX).contains(&self.values.len()) {
            return Err(SegmentsError::Count(self.values.len()));
        }
        let names = std::iter::once(&self.key).chain(&self.values);
        if let Some(bad) = names.into_iter().find(|name| !is_name(name)) {
            return Err(SegmentsError::Name(bad.clone()));
        }
        let mut seen = std::collections::BTreeSet::from([OTHER]);
        match self
            .values
            .iter()
            .find(|value| !seen.insert(value.as_str()))
        {
            Some(taken) => Err(SegmentsError::Taken(taken.clone())),
            None => Ok(()),
        }
    }

    /// The segment that a value belongs to.
    #[must_use]
    pub fn of(&self, value: &str) -> &str {
        let known = self.values.iter().find(|known| *known == value);
        known.map_or(OTHER, String::as_str)
    }

    /// Whether a window may name it.
    #[must_use]
    pub fn has(&self, segment: &str) -> bool {
        segment == OTHER || self.values.iter().any(|value| value == segment)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn of(key: &str, values: &[&str]) -> Segments {
        Segments {
            key: key.to_owned(),
            values: values.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn what_is_not_named_is_other() {
        let segments = of("camera", &["north", "south.2"]);
        segments.check().unwrap();
        assert_eq!(segments.of("north"), "north");
        assert_eq!((segments.of("North"), segments.of("")), (OTHER, OTHER));
        assert!(segments.has("south.2") && segments.has(OTHER) && !segments.has("west"));
    }

    #[test]
    fn few_plain_names_and_each_once() {
        let many: Vec<String> = (0..=VALUES_MAX).map(|n| n.to_string()).collect();
        let many = Segments {
            key: "k".to_owned(),
            values: many,
        };
        for wrong in [
            of("camera", &[]),
            of("", &["a"]),
            of("camera", &["a b"]),
            of("camera", &["a", "a"]),
            of("camera", &["other"]),
            many,
        ] {
            assert!(wrong.check().is_err(), "{wrong:?}");
        }
    }
}
