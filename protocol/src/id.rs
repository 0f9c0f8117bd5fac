//! Identifiers, each a type of its own, so that a device can never be passed where a fleet is meant.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Empty or longer than the kind allows.
    #[error("{kind}: length must be 1 to {max} characters, got {got}")]
    Length {
        /// What was being read.
        kind: &'static str,
        /// Longest allowed, in characters.
        max: usize,
        /// Length found.
        got: usize,
    },
    /// A character outside the kind's alphabet.
    #[error("{kind} {text:?}: character {found:?} is not allowed, expected {expected}")]
    Character {
        /// What was being read.
        kind: &'static str,
        /// The text (never longer than the allowed length).
        text: String,
        /// First bad character.
        found: char,
        /// The allowed alphabet in words.
        expected: &'static str,
    },
    /// Not the fixed number of lower-case hexadecimal digits.
    #[error("{kind}: expected {digits} lower-case hexadecimal digits, got {got:?}")]
    Hex {
        /// What was being read.
        kind: &'static str,
        /// Digits expected.
        digits: usize,
        /// The text, cut to 80 characters.
        got: String,
    },
}

const NAME_ALPHABET: &str = "letters, digits, '-', '_' and '.', beginning with a letter or a digit";

fn check_name(kind: &'static str, text: &str) -> Result<(), IdError> {
    const MAX: usize = 64;
    if text.is_empty() || text.len() > MAX {
        return Err(IdError::Length {
            kind,
            max: MAX,
            got: text.chars().count(),
        });
    }
    let bad = text
        .chars()
        .enumerate()
        .find(|&(at, c)| !(c.is_ascii_alphanumeric() || (at > 0 && matches!(c, '-' | '_' | '.'))));
    match bad {
        None => Ok(()),
        Some((_, found)) => Err(IdError::Character {
            kind,
            text: text.to_owned(),
            found,
            expected: NAME_ALPHABET,
        }),
    }
}

macro_rules! name_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        ///
        /// 1 to 64 ASCII letters, digits, `-`, `_`, `.`, beginning with a letter or a digit:
        /// safe in a topic, a path, a URL and a certificate's common name.
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The identifier as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                check_name($kind, text)?;
                Ok(Self(text.to_owned()))
            }
        }
        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                check_name($kind, &text)?;
                Ok(Self(text))
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        #[cfg(feature = "schema")]
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                crate::schema::text("^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
            }
        }
    };
}

name_id!(
    /// A fleet: the devices of one trust root and one server.
    FleetId,
    "fleet id"
);
name_id!(
    /// A device; equal to its certificate's common name and to its MQTT client id.
    DeviceId,
    "device id"
);
name_id!(
    /// A model family: the line of versions that replace each other on a device.
    Family,
    "model family"
);
name_id!(
    /// A rollout.
    RolloutId,
    "rollout id"
);

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(pub [u8; $bytes]);

        impl $name {
            /// The raw bytes.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let lower = text.len() == 2 * $bytes
                    && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
                let mut raw = [0_u8; $bytes];
                if !lower || hex::decode_to_slice(text, &mut raw).is_err() {
                    return Err(IdError::Hex {
                        kind: $kind,
                        digits: 2 * $bytes,
                        got: text.chars().take(80).collect(),
                    });
                }
                Ok(Self(raw))
            }
        }
        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> String {
                hex::encode(id.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), hex::encode(self.0))
            }
        }
        #[cfg(feature = "schema")]
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                crate::schema::text(&format!("^[0-9a-f]{{{}}}$", 2 * $bytes))
            }
        }
    };
}

hex_id!(
    /// A SHA-256 digest (FIPS 180-4), 64 hexadecimal digits as text.
    Digest,
    "SHA-256 digest",
    32
);
hex_id!(
    /// One life of a device's telemetry store: 128 random bits, kept outside the store, so that
    /// a store made anew never reuses a segment number under the same boot id.
    BootId,
    "boot id",
    16
);

hex_id!(
    /// An X25519 public key (RFC 7748) that samples are sealed to, 64 hexadecimal digits as text.
    RecipientKey,
    "X25519 public key",
    32
);

impl Digest {
    /// The SHA-256 of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// The first twelve hexadecimal digits, for people.
    #[must_use]
    pub fn short(&self) -> String {
        hex::encode(&self.0[..6])
    }
}

/// An ordered pair that says which of two desired states is newer.
///
/// The epoch rises when a server's database is restored from a backup, the generation with every
/// change; a device refuses any pair below the highest it has accepted.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Revision {
    /// Life of the server's database.
    pub epoch: u64,
    /// Change within the epoch, one line of counting a device.
    pub generation: u64,
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.generation)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_in_topics_and_paths() {
        for good in ["edge-07", "a", "A.b_c-9"] {
            assert_eq!(good.parse::<DeviceId>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "-x",
            ".x",
            "a/b",
            "a+b",
            "a#",
            "ä",
            "a b",
            &"x".repeat(65),
        ] {
            assert!(bad.parse::<DeviceId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn digests_are_lower_case_hex_of_the_right_length() {
        let d = Digest::of(b"abc");
        assert_eq!(
            d.to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(d.to_string().parse::<Digest>().unwrap(), d);
        assert!(d.to_string().to_uppercase().parse::<Digest>().is_err());
        assert!("00".parse::<Digest>().is_err());
    }

    #[test]
    fn revisions_order_by_epoch_first() {
        let r = |epoch, generation| Revision { epoch, generation };
        assert!(r(2, 0) > r(1, 99));
        assert!(r(1, 3) > r(1, 2));
    }
}
