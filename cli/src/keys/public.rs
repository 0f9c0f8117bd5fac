//! Public keys as files to hand over: who holds the key, its id, and the key as TUF lists it.

use super::KeysError;
use crate::files;
use dunlin_protocol::trust::{Key, SigningKey};
use serde_json::{Value, json};
use std::path::Path;

/// `_type` of such a file.
const TYPE: &str = "dunlin-public-key";
const FILE_MAX_BYTES: u64 = 64 * 1024;
const NAME_MAX_CHARS: usize = 64;

/// A public key and the name of who holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    /// Who holds it; for people only.
    pub name: String,
    /// The key.
    pub key: Key,
    /// Its id.
    pub keyid: String,
}

impl PublicKey {
    /// The public half of a private key.
    ///
    /// # Errors
    /// As [`SigningKey::keyid`].
    pub fn of(name: &str, key: &SigningKey) -> Result<Self, KeysError> {
        Self::new(name, key.public_key())
    }

    /// A key with its holder's name.
    ///
    /// # Errors
    /// As [`Key::keyid`], or a name that is none.
    pub fn new(name: &str, key: Key) -> Result<Self, KeysError> {
        check_name(name)?;
        Ok(Self {
            name: name.to_owned(),
            keyid: key.keyid()?,
            key,
        })
    }

    /// The file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let file = json!({
            "_type": TYPE,
            "name": self.name,
            "keyid": self.keyid,
            "key": self.key.to_json(),
        });
        let mut text = format!("{file:#}");
        text.push('\n');
        text.into_bytes()
    }

    /// Reads a file that `dunlin keys generate` wrote, a bare TUF key object, or a public key in
    /// PEM as `openssl pkey -pubout` writes it. The last two are named after the file.
    ///
    /// # Errors
    /// The file is none of these, or names another key id than its key has.
    pub fn read(path: &Path) -> Result<Self, KeysError> {
        let text = files::read_text(path, FILE_MAX_BYTES)?;
        let bad = |problem: String| KeysError::PublicKey {
            path: path.to_owned(),
            problem,
        };
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        if text.contains("PRIVATE KEY-----") {
            return Err(bad(
                "this is a PRIVATE key: it stays with its holder; hand over the .pub file"
                    .to_owned(),
            ));
        }
        if text.contains("-----BEGIN PUBLIC KEY-----") {
            let key = Key::from_public_pem(&text).map_err(|e| bad(e.to_string()))?;
            return Self::new(&stem, key);
        }
        let value: Value = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
        let (name, key) = match value["_type"].as_str() {
            Some(TYPE) => (value["name"].as_str().unwrap_or(&stem), &value["key"]),
            _ => (stem.as_ref(), &value),
        };
        let key = Key::from_json(key).map_err(|e| bad(e.to_string()))?;
        if !key.can_verify() {
            return Err(bad("a kind of key that verifies nothing here".to_owned()));
        }
        let read = Self::new(name, key)?;
        match value["keyid"].as_str() {
            Some(keyid) if keyid != read.keyid => Err(bad(format!(
                "it says key id {keyid}, but its key has {}: the file was altered",
                read.keyid
            ))),
            _ => Ok(read),
        }
    }
}

/// A name that is safe as a file's name and in a sentence.
///
/// # Errors
/// [`KeysError::Name`]
pub fn check_name(name: &str) -> Result<(), KeysError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@');
    let length = name.chars().count();
    let begins = name
        .chars()
        .next()
        .is_some_and(|c| c.is_ascii_alphanumeric());
    if begins && length <= NAME_MAX_CHARS && name.chars().all(allowed) {
        return Ok(());
    }
    let name = name.chars().take(NAME_MAX_CHARS).collect();
    Err(KeysError::Name(name))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_public_key_file_is_read_back_and_an_altered_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pub");
        let key = PublicKey::of("alice", &SigningKey::from_seed(&[1; 32])).unwrap();
        let other = PublicKey::of("mallory", &SigningKey::from_seed(&[2; 32])).unwrap();
        files::write_whole(&path, &key.to_bytes()).unwrap();
        assert_eq!(PublicKey::read(&path).unwrap(), key);

        let text = String::from_utf8(key.to_bytes()).unwrap();
        files::write_whole(&path, text.replace(&key.keyid, &other.keyid).as_bytes()).unwrap();
        let refused = PublicKey::read(&path).unwrap_err().to_string();
        assert!(refused.contains("altered"), "{refused}");

        files::write_whole(&path, key.key.to_json().to_string().as_bytes()).unwrap();
        let bare = PublicKey::read(&path).unwrap();
        assert_eq!((bare.name.as_str(), &bare.keyid), ("x", &key.keyid));

        let private = SigningKey::from_seed(&[1; 32]).to_pkcs8_pem().unwrap();
        files::write_secret(&path, private.expose().as_bytes()).unwrap();
        let refused = PublicKey::read(&path).unwrap_err().to_string();
        assert!(refused.contains("PRIVATE"), "{refused}");
    }

    #[test]
    fn names_are_safe_in_paths_and_sentences() {
        for good in ["alice", "bob-2", "team.vision", "carol@example.org"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".x", "-x", "a/b", "a b", "é", &"x".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
