//! Roles, and how their names become names of files.

use std::fmt;

use super::{ROOT_MAX_BYTES, SNAPSHOT_MAX_BYTES, TARGETS_MAX_BYTES, TIMESTAMP_MAX_BYTES};

/// Longest name of a delegated role, in bytes of its percent-encoded form: with version and
/// extension it still is a file name on every file system.
pub const ROLE_NAME_MAX_BYTES: usize = 200;

/// A top-level role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Names the keys of all roles. Offline.
    Root,
    /// Lists what may be installed. Offline.
    Targets,
    /// Ties the versions of all metadata together. Online.
    Snapshot,
    /// Says which snapshot is the newest. Online.
    Timestamp,
}

impl Role {
    /// All four.
    pub const ALL: [Self; 4] = [Self::Root, Self::Targets, Self::Snapshot, Self::Timestamp];

    /// The role's name as in `_type` and in root's `roles`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Targets => "targets",
            Self::Snapshot => "snapshot",
            Self::Timestamp => "timestamp",
        }
    }

    /// Largest file accepted, in bytes.
    #[must_use]
    pub fn max_bytes(self) -> usize {
        match self {
            Self::Root => ROOT_MAX_BYTES,
            Self::Targets => TARGETS_MAX_BYTES,
            Self::Snapshot => SNAPSHOT_MAX_BYTES,
            Self::Timestamp => TIMESTAMP_MAX_BYTES,
        }
    }

    /// The file's name in a repository: `3.root.json`, `timestamp.json`, and `7.targets.json`
    /// or `targets.json` as the root's `consistent_snapshot` says.
    #[must_use]
    pub fn file_name(self, version: u64, consistent_snapshot: bool) -> String {
        match self {
            Self::Timestamp => "timestamp.json".to_owned(),
            Self::Targets | Self::Snapshot if !consistent_snapshot => format!("{self}.json"),
            _ => format!("{version}.{self}.json"),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whose metadata a file is: a top-level role's, or that of a role which targets delegates to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RoleName {
    /// One of the four.
    Top(Role),
    /// A delegated targets role. Any text but the names of the four and the empty one: never use
    /// it as a path, see [`RoleName::stored_name`].
    Delegated(String),
}

impl RoleName {
    /// The name of a delegated role; `None` if it is empty, a top-level role's name, or longer
    /// than [`ROLE_NAME_MAX_BYTES`].
    #[must_use]
    pub fn delegated(name: &str) -> Option<Self> {
        let reserved = Role::ALL.iter().any(|role| role.as_str() == name);
        let fits = !name.is_empty() && percent_encoded(name).len() <= ROLE_NAME_MAX_BYTES;
        (fits && !reserved).then(|| Self::Delegated(name.to_owned()))
    }

    /// The name as metadata spells it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Top(role) => role.as_str(),
            Self::Delegated(name) => name,
        }
    }

    /// The name under which a snapshot lists the file.
    #[must_use]
    pub fn listed_name(&self) -> String {
        format!("{}.json", self.as_str())
    }

    /// The name under which a client keeps the file: without version, and percent-encoded, so that
    /// `../x` stays in its folder.
    #[must_use]
    pub fn stored_name(&self) -> String {
        format!("{}.json", percent_encoded(self.as_str()))
    }

    /// The file's name in a repository, percent-encoded: ready for a URL.
    #[must_use]
    pub fn file_name(&self, version: u64, consistent_snapshot: bool) -> String {
        match self {
            Self::Top(role) => role.file_name(version, consistent_snapshot),
            Self::Delegated(_) if consistent_snapshot => {
                format!("{version}.{}", self.stored_name())
            }
            Self::Delegated(_) => self.stored_name(),
        }
    }

    /// Largest file accepted, in bytes.
    #[must_use]
    pub fn max_bytes(&self) -> usize {
        match self {
            Self::Top(role) => role.max_bytes(),
            Self::Delegated(_) => TARGETS_MAX_BYTES,
        }
    }
}

impl From<Role> for RoleName {
    fn from(role: Role) -> Self {
        Self::Top(role)
    }
}

impl PartialEq<Role> for RoleName {
    fn eq(&self, other: &Role) -> bool {
        matches!(self, Self::Top(role) if role == other)
    }
}

impl fmt::Display for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Top(role) => role.fmt(f),
            Self::Delegated(name) => {
                let shown: String = name.chars().take(80).collect();
                write!(f, "delegated role {shown:?}")
            }
        }
    }
}

/// `text` with every byte but ASCII letters, digits, `-`, `.`, `_` and `~` as `%XX`: one component
/// of a URL or of a path, whatever it holds. Not for a text that is only dots.
#[must_use]
pub fn percent_encoded(text: &str) -> String {
    encode(text, |_| false)
}

/// `path` as the path of a URL: `/` and all that may stand in a path stays, the rest is `%XX`.
#[must_use]
pub fn percent_encoded_path(path: &str) -> String {
    encode(path, |byte| b"/!$&'()*+,;=:@".contains(&byte))
}

fn encode(text: &str, keep: impl Fn(u8) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for &byte in text.as_bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || keep(byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push_str(&hex::encode_upper([byte]));
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_become_one_component() {
        for (name, stored) in [
            ("team-a", "team-a.json"),
            ("?", "%3F.json"),
            ("#", "%23.json"),
            ("/delegatedrole", "%2Fdelegatedrole.json"),
            ("../delegatedrole", "..%2Fdelegatedrole.json"),
            ("a b", "a%20b.json"),
            ("é", "%C3%A9.json"),
            ("%2e", "%252e.json"),
            ("nul\0", "nul%00.json"),
        ] {
            let role = RoleName::delegated(name).unwrap();
            assert_eq!(role.stored_name(), stored);
            assert_eq!(role.file_name(7, true), format!("7.{stored}"));
            assert_eq!(role.file_name(7, false), stored);
            assert_eq!(role.listed_name(), format!("{name}.json"));
        }
    }

    #[test]
    fn reserved_and_endless_names_are_none() {
        for name in ["", "root", "targets", "snapshot", "timestamp"] {
            assert_eq!(RoleName::delegated(name), None);
        }
        assert!(RoleName::delegated("Root").is_some());
        assert!(RoleName::delegated(&"x".repeat(200)).is_some());
        assert_eq!(RoleName::delegated(&"x".repeat(201)), None);
        assert_eq!(RoleName::delegated(&"é".repeat(34)), None);
    }

    #[test]
    fn target_paths_keep_what_a_url_path_may_hold() {
        assert_eq!(
            percent_encoded_path("a/b-1_(x)+y@z.txt"),
            "a/b-1_(x)+y@z.txt"
        );
        assert_eq!(
            percent_encoded_path("a b?c#d%e\\f/é"),
            "a%20b%3Fc%23d%25e%5Cf/%C3%A9"
        );
    }

    proptest! {
        #[test]
        fn two_names_never_share_a_file(a in ".{1,12}", b in ".{1,12}") {
            let file = |name: &str| RoleName::delegated(name).map(|r| r.stored_name());
            prop_assert_eq!(a == b, file(&a) == file(&b) || file(&a).is_none());
            prop_assert!(!percent_encoded(&a).contains('/'));
        }
    }
}
