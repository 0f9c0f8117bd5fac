//! A folder with keys and the chain of roots; `dunlin keys init`, which makes one with everything.

use super::holders::{self, Holders};
use super::make::private_text;
use super::passphrase::{Passphrase, Source};
use super::public::PublicKey;
use super::{KeysError, pem};
use crate::api::OnlineKeys;
use crate::args::{InitArgs, Shared};
use crate::context::Session;
use crate::failure::{Exit, Failure};
use crate::files;
use crate::table;
use dunlin_protocol::id::Digest;
use dunlin_protocol::trust::{
    Envelope, Key, Metadata, ROOT_MAX_BYTES, Role, RootMetadata, SigningKey, TrustedSet, new_root,
    sign_envelope,
};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use zeroize::Zeroizing;

pub(super) const PEM_MAX_BYTES: u64 = 16 * 1024;
pub(super) const KEYS_MAX: u32 = 64;

/// How many keys to make, and how many of them must sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ceremony {
    /// Root keys that must sign.
    pub root_threshold: u32,
    /// Root keys to make.
    pub root_keys: u32,
    /// Targets keys that must sign.
    pub targets_threshold: u32,
    /// Targets keys to make.
    pub targets_keys: u32,
    /// Validity of the root metadata.
    pub expires_in: Duration,
}

impl Default for Ceremony {
    fn default() -> Self {
        Self {
            root_threshold: 2,
            root_keys: 3,
            targets_threshold: 2,
            targets_keys: 3,
            expires_in: Duration::from_secs(730 * 86_400),
        }
    }
}

/// `now` later by `duration`, at the end of time at the latest.
pub(crate) fn later(now: Timestamp, duration: Duration) -> Timestamp {
    let signed = SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
    now.saturating_add(signed).unwrap_or(Timestamp::MAX)
}

/// As [`init_with`], with the keys left unencrypted.
///
/// # Errors
/// As [`init_with`].
pub fn init(
    dir: &Path,
    ceremony: &Ceremony,
    online: &OnlineKeys,
    now: Timestamp,
) -> Result<Vec<u8>, KeysError> {
    init_with(dir, ceremony, online, None, now)
}

/// Makes keys and the first root metadata in a new folder: `root-1.pem`, …, `targets-1.pem`, …
/// (PKCS #8, mode 0600) with their public halves beside them, and `1.root.json`, signed by all root keys. Returns that file's bytes.
///
/// # Errors
/// The folder already holds keys, the numbers make no root, or a file cannot be written.
pub fn init_with(
    dir: &Path,
    ceremony: &Ceremony,
    online: &OnlineKeys,
    passphrase: Option<&Passphrase>,
    now: Timestamp,
) -> Result<Vec<u8>, KeysError> {
    for (role, threshold, keys) in [
        (Role::Root, ceremony.root_threshold, ceremony.root_keys),
        (
            Role::Targets,
            ceremony.targets_threshold,
            ceremony.targets_keys,
        ),
    ] {
        if threshold == 0 || threshold > keys || keys > KEYS_MAX {
            return Err(KeysError::Threshold {
                role,
                threshold,
                keys,
            });
        }
    }
    let root_path = dir.join("1.root.json");
    let trust = |error| KeysError::Trust {
        path: root_path.clone(),
        error,
    };
    // Before any key is made: what fails later would leave a folder that cannot be used again.
    let online_key = |json: &Value| Key::from_json(json).map_err(trust);
    let snapshot = online_key(&online.snapshot)?;
    let timestamp = online_key(&online.timestamp)?;
    files::make_private_folder(dir)?;
    let taken = |name: &String| name.ends_with(".pem") || name.ends_with(".root.json");
    if files::names_in(dir)?.iter().any(taken) {
        return Err(KeysError::Exists(dir.to_owned()));
    }
    let mut holders = Holders::default();
    let mut make = |role, count| make_keys(dir, role, count, passphrase, &mut holders);
    let roots = make("root", ceremony.root_keys)?;
    let targets = make("targets", ceremony.targets_keys)?;
    let public = |keys: &[SigningKey]| keys.iter().map(SigningKey::public_key).collect();
    let roles = BTreeMap::from([
        (
            Role::Root,
            (public(&roots), u64::from(ceremony.root_threshold)),
        ),
        (
            Role::Targets,
            (public(&targets), u64::from(ceremony.targets_threshold)),
        ),
        (Role::Snapshot, (vec![snapshot], 1)),
        (Role::Timestamp, (vec![timestamp], 1)),
    ]);
    let mut signed = new_root(1, later(now, ceremony.expires_in), &roles).map_err(trust)?;
    signed[holders::FIELD] = holders.to_json(|_| true);
    let signers: Vec<&SigningKey> = roots.iter().collect();
    let bytes = sign_envelope(signed, &signers).map_err(trust)?.to_bytes();
    TrustedSet::from_root(&bytes, now).map_err(trust)?;
    files::write_whole(&root_path, &bytes)?;
    Ok(bytes)
}

/// A key from the system's random generator.
pub(super) fn fresh_key() -> Result<SigningKey, KeysError> {
    let mut seed = Zeroizing::new([0_u8; 32]);
    getrandom::fill(seed.as_mut()).map_err(|e| KeysError::Random(e.to_string()))?;
    Ok(SigningKey::from_seed(&seed))
}

fn make_keys(
    dir: &Path,
    role: &str,
    count: u32,
    passphrase: Option<&Passphrase>,
    holders: &mut Holders,
) -> Result<Vec<SigningKey>, KeysError> {
    let mut keys = Vec::new();
    for n in 1..=count {
        let (name, key) = (format!("{role}-{n}"), fresh_key()?);
        let path = dir.join(format!("{name}.pem"));
        let text = private_text(&key, passphrase, &path)?;
        files::create_secret(&path, text.as_bytes())?;
        let public = PublicKey::of(&name, &key)?;
        files::write_whole(&dir.join(format!("{name}.pub")), &public.to_bytes())?;
        holders.insert(&public.keyid, &name);
        keys.push(key);
    }
    Ok(keys)
}

/// Reads private keys by name (`targets-1` is `targets-1.pem`); a passphrase comes from where
/// [`Source::from_environment`] says.
///
/// # Errors
/// No such key, or not an Ed25519 key in PKCS #8.
pub fn load(dir: &Path, names: &[String]) -> Result<Vec<SigningKey>, KeysError> {
    load_with(dir, names, &Source::from_environment())
}

/// Reads private keys by name; encrypted ones with a passphrase from `source`.
///
/// # Errors
/// No such key, not an Ed25519 key in PKCS #8, or no or a wrong passphrase.
pub fn load_with(
    dir: &Path,
    names: &[String],
    source: &Source,
) -> Result<Vec<SigningKey>, KeysError> {
    let load = |name: &String| {
        let name = name.strip_suffix(".pem").unwrap_or(name);
        let path = dir.join(format!("{name}.pem"));
        if name.contains('/') || !path.is_file() {
            let found = key_names(dir)?.join(", ");
            return Err(KeysError::NoKey {
                folder: dir.to_owned(),
                name: name.to_owned(),
                found: if found.is_empty() {
                    "none".to_owned()
                } else {
                    found
                },
            });
        }
        load_file(&path, source)
    };
    names.iter().map(load).collect()
}

/// Reads one private key file.
///
/// # Errors
/// As [`load_with`].
pub fn load_file(path: &Path, source: &Source) -> Result<SigningKey, KeysError> {
    let text = Zeroizing::new(files::read_text(path, PEM_MAX_BYTES)?);
    let read = match pem::is_encrypted(&text) {
        true => {
            let passphrase = source.existing(&path.display().to_string())?;
            pem::decrypt(&text, passphrase.expose())
        }
        false => pem::read_plain(&text),
    };
    read.map_err(|error| KeysError::Pem {
        path: path.to_owned(),
        error,
    })
}

/// Names of the private keys in a folder, sorted.
///
/// # Errors
/// The folder cannot be listed.
pub fn key_names(dir: &Path) -> Result<Vec<String>, KeysError> {
    let names = files::names_in(dir)?;
    let keys = names.iter().filter_map(|n| n.strip_suffix(".pem"));
    Ok(keys.map(str::to_owned).collect())
}

/// The root metadata files in a folder, in order of their versions from 1 without a gap.
///
/// # Errors
/// There is none, or one cannot be read.
pub fn root_files(dir: &Path) -> Result<Vec<Vec<u8>>, KeysError> {
    let mut all = Vec::new();
    loop {
        let path = dir.join(format!("{}.root.json", all.len() + 1));
        if !path.is_file() {
            break;
        }
        all.push(files::read_bounded(&path, ROOT_MAX_BYTES as u64)?);
    }
    if all.is_empty() {
        return Err(KeysError::NoRoot(dir.to_owned()));
    }
    Ok(all)
}

/// SHA-256 of the folder's first root metadata file: what claim tokens are sealed with.
///
/// # Errors
/// There is none.
pub fn first_root_digest(dir: &Path) -> Result<Digest, KeysError> {
    let roots = root_files(dir)?;
    let first = roots
        .first()
        .ok_or_else(|| KeysError::NoRoot(dir.to_owned()))?;
    Ok(Digest::of(first))
}

/// The folder's newest root, its chain verified from version 1.
///
/// # Errors
/// There is none, or a file does not follow from the one before.
pub fn trusted_root(dir: &Path, now: Timestamp) -> Result<RootMetadata, KeysError> {
    let roots = trusted_roots(dir, now)?.pop();
    roots.ok_or_else(|| KeysError::NoRoot(dir.to_owned()))
}

/// Every root of the folder, oldest first, the chain verified from version 1.
///
/// # Errors
/// There is none, or a file does not follow from the one before.
pub fn trusted_roots(dir: &Path, now: Timestamp) -> Result<Vec<RootMetadata>, KeysError> {
    let mut chain: Vec<RootMetadata> = Vec::new();
    let mut set: Option<TrustedSet> = None;
    for (at, bytes) in root_files(dir)?.iter().enumerate() {
        let trust = |error| KeysError::Trust {
            path: dir.join(format!("{}.root.json", at + 1)),
            error,
        };
        // A chain may be longer than one update takes: each link is checked by a set of its own.
        let next = match &set {
            None => TrustedSet::from_root(bytes, now).map_err(trust)?,
            Some(set) => {
                let mut next = set.clone();
                let _ = next.update_root(bytes).map_err(trust)?;
                TrustedSet::from_root(bytes, now).map_err(trust)?
            }
        };
        chain.push(next.root().clone());
        set = Some(next);
    }
    Ok(chain)
}

/// Reads the server's online keys from a file: the answer of `GET /api/v1/fleet` or its
/// `online_keys` alone.
///
/// # Errors
/// Neither of the two.
pub fn server_keys(path: &Path) -> Result<OnlineKeys, KeysError> {
    let text = files::read_text(path, ROOT_MAX_BYTES as u64)?;
    let read = |text: &str| -> Result<OnlineKeys, serde_json::Error> {
        let mut value: Value = serde_json::from_str(text)?;
        let inner = value.get_mut("online_keys").map(Value::take);
        serde_json::from_value(inner.unwrap_or(value))
    };
    read(&text).map_err(|e| KeysError::ServerKeys {
        path: path.to_owned(),
        problem: e.to_string(),
    })
}

/// Reads a metadata file's version without verifying anything, for messages.
pub(crate) fn shown_version<M: Metadata>(bytes: &[u8]) -> Option<u64> {
    let envelope = Envelope::parse(bytes, M::ROLE.max_bytes()).ok()?;
    M::read(&envelope).ok().map(|m| m.version())
}

/// `dunlin keys init`.
///
/// # Errors
/// What could not be done, as one line.
pub async fn run_init(args: &InitArgs, shared: &Shared) -> Result<Exit, Failure> {
    let ceremony = Ceremony {
        root_threshold: args.root_threshold,
        root_keys: args.root_keys,
        targets_threshold: args.targets_threshold,
        targets_keys: args.targets_keys,
        expires_in: args.expires_in,
    };
    let online = match &args.server_keys {
        Some(file) => server_keys(file)?,
        None => Session::open(shared)?.fleet().await?.0.online_keys,
    };
    let dir = &args.dir;
    let passphrase = match args.encrypt {
        true => Some(args.passphrase.source().new_one("all keys of the folder")?),
        false => None,
    };
    let bytes = init_with(
        dir,
        &ceremony,
        &online,
        passphrase.as_ref(),
        Timestamp::now(),
    )?;
    let digest = Digest::of(&bytes);
    if shared.json {
        let names = key_names(dir)?;
        table::print_json(&json!({"dir": dir, "keys": names, "root_sha256": digest}));
        return Ok(Exit::Done);
    }
    table::print(&format!(
        "Made {} root keys ({} must sign) and {} targets keys ({} must sign) in {dir}\n\
         root metadata {dir}/1.root.json, SHA-256 {digest}\n\
         next: dunlin keys upload-root --dir {dir}; then move each .pem to its holder\n",
        args.root_keys,
        args.root_threshold,
        args.targets_keys,
        args.targets_threshold,
        dir = dir.display()
    ));
    Ok(Exit::Done)
}
