//! The names of a repository's files: one type for every way to a device.
//!
//! ```text
//! metadata/NAME.json                               TUF metadata
//! targets/FAMILY/VERSION/SHA256.manifest.json      manifests
//! blobs/SHA256                                     blobs
//! patches/SHA256/SHA256                            from one model file to another
//! ```
//! HTTPS has them below `/repository/`, an archive and a folder below their root, and a block
//! request by the text of a [`RepositoryFile`]. A text that is none of these names no file, so that no
//! request can leave the repository.

use crate::id::Digest;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Longest path accepted, in bytes: what a plain ustar header holds.
pub const PATH_MAX_BYTES: usize = 255;
/// Longest name of a metadata file, and of one level of a target's path, in bytes: a version of 20
/// digits and the longest name of a role. An archive holds names of at most 99 bytes.
const NAME_MAX_BYTES: usize = 226;
/// Most levels of a target's path.
const LEVELS_MAX: usize = 8;

/// Why a text is not the path of a repository's file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{got:?} names no file of a repository: expected metadata/NAME.json, targets/PATH, blobs/SHA256 or patches/SHA256/SHA256"
)]
pub struct PathError {
    /// The text, cut to 200 characters.
    pub got: String,
}

/// One file of a repository. As JSON it is its path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RepositoryFile {
    /// Metadata, by its file name (`3.root.json`).
    Metadata(String),
    /// A target (a manifest), by its path with the hash in its name.
    Target(String),
    /// A blob, by the SHA-256 of its bytes as they travel.
    Blob(Digest),
    /// A patch from one model file to another, by the SHA-256 of both, unpacked.
    Patch {
        /// The model that is there.
        from: Digest,
        /// The model that is wanted.
        to: Digest,
    },
}

impl RepositoryFile {
    /// A metadata file.
    ///
    /// # Errors
    /// The name is not one of a metadata file: `[A-Za-z0-9._%-]`, ending in `.json`.
    pub fn metadata(name: &str) -> Result<Self, PathError> {
        if is_name(name) && name.ends_with(".json") {
            return Ok(Self::Metadata(name.to_owned()));
        }
        Err(PathError::of(name))
    }

    /// A target, by its consistent path.
    ///
    /// # Errors
    /// More than eight levels, or one that is not `[A-Za-z0-9._%-]`, begins with a dot or is empty.
    pub fn target(path: &str) -> Result<Self, PathError> {
        let fits = path.len() + "targets/".len() <= PATH_MAX_BYTES;
        if fits && path.split('/').count() <= LEVELS_MAX && path.split('/').all(is_name) {
            return Ok(Self::Target(path.to_owned()));
        }
        Err(PathError::of(path))
    }
}

/// No level of a path can be empty, `.` or `..`.
fn is_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'%');
    !text.is_empty()
        && text.len() <= NAME_MAX_BYTES
        && !text.starts_with('.')
        && text.bytes().all(allowed)
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for RepositoryFile {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "RepositoryFile".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        crate::schema::text(
            "^(metadata/[^/]+\\.json|targets/.+|blobs/[0-9a-f]{64}|patches/[0-9a-f]{64}/[0-9a-f]{64})$",
        )
    }
}

impl TryFrom<String> for RepositoryFile {
    type Error = PathError;

    fn try_from(text: String) -> Result<Self, PathError> {
        text.parse()
    }
}

impl From<RepositoryFile> for String {
    fn from(file: RepositoryFile) -> Self {
        file.to_string()
    }
}

impl PathError {
    fn of(text: &str) -> Self {
        let got = text.chars().take(200).collect();
        Self { got }
    }
}

impl fmt::Display for RepositoryFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Metadata(name) => write!(f, "metadata/{name}"),
            Self::Target(path) => write!(f, "targets/{path}"),
            Self::Blob(digest) => write!(f, "blobs/{digest}"),
            Self::Patch { from, to } => write!(f, "patches/{from}/{to}"),
        }
    }
}

impl FromStr for RepositoryFile {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        let bad = || PathError::of(text);
        if text.len() > PATH_MAX_BYTES {
            return Err(bad());
        }
        let digest = |t: &str| t.parse::<Digest>().map_err(|_| bad());
        match text.split_once('/').ok_or_else(bad)? {
            ("metadata", name) => Self::metadata(name),
            ("targets", path) => Self::target(path),
            ("blobs", sha256) => Ok(Self::Blob(digest(sha256)?)),
            ("patches", both) => {
                let (from, to) = both.split_once('/').ok_or_else(bad)?;
                let (from, to) = (digest(from)?, digest(to)?);
                Ok(Self::Patch { from, to })
            }
            _ => Err(bad()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_name_survives_the_round_trip() {
        let (from, to) = (Digest::of(b"a"), Digest::of(b"b"));
        for file in [
            RepositoryFile::metadata("12.root.json").unwrap(),
            RepositoryFile::metadata("3.team%2Fa.json").unwrap(),
            RepositoryFile::target(&format!("digits/2/{from}.manifest.json")).unwrap(),
            RepositoryFile::Blob(from),
            RepositoryFile::Patch { from, to },
        ] {
            let text = file.to_string();
            assert!(text.len() <= PATH_MAX_BYTES);
            assert_eq!(text.parse::<RepositoryFile>().unwrap(), file);
        }
    }

    #[test]
    fn no_text_leads_out_of_the_repository() {
        let hex = Digest::of(b"a").to_string();
        for bad in [
            "",
            "metadata",
            "metadata/",
            "metadata/.json",
            "metadata/../root.json",
            "metadata/a/b.json",
            "metadata/root.json\0",
            "metadata/root.txt",
            "targets/../../etc/passwd",
            "targets//a",
            "targets/a/./b",
            "targets/a\\b",
            "targets/a/b/c/d/e/f/g/h/i",
            "/targets/a",
            "blobs/..",
            "blobs/abc",
            &format!("blobs/{}", hex.to_uppercase()),
            &format!("blobs/{hex}/"),
            &format!("patches/{hex}"),
            &format!("patches/{hex}/../{hex}"),
            &format!("targets/{}", "a/".repeat(200)),
        ] {
            assert!(bad.parse::<RepositoryFile>().is_err(), "{bad}");
        }
    }
}
