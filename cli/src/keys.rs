//! The offline keys: made here, held by operators, never sent anywhere.

use crate::api::OnlineKeys;
use crate::args::{KeysAction, KeysArgs};
use crate::context::Session;
use crate::failure::{Exit, Failure};
use crate::files::{self, FileError};
use crate::table::{self, Table};
use dunlin_protocol::id::Digest;
use dunlin_protocol::trust::{
    Envelope, Key, Metadata, ROOT_MAX_BYTES, Role, RootMetadata, SigningKey, TrustError,
    TrustedSet, new_root, sign_envelope,
};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zeroize::Zeroizing;

const PEM_MAX_BYTES: u64 = 16 * 1024;
const KEYS_MAX: u32 = 64;

/// Why keys cannot be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file cannot be read or written.
    #[error("{0}")]
    File(#[from] FileError),
    /// There are keys already.
    #[error("{0} already holds keys or root metadata: name another folder; nothing was changed")]
    Exists(PathBuf),
    /// Numbers that make no root.
    #[error(
        "{role}: threshold {threshold} of {keys} keys: expected 1 ≤ threshold ≤ keys ≤ {KEYS_MAX}"
    )]
    Threshold {
        /// Role.
        role: Role,
        /// Threshold asked for.
        threshold: u32,
        /// Keys asked for.
        keys: u32,
    },
    /// The system gives no random numbers.
    #[error("the system's random generator failed: {0}")]
    Random(String),
    /// No such key.
    #[error("{folder} holds no key {name:?} (expected {name}.pem); it has {found}")]
    NoKey {
        /// Key folder.
        folder: PathBuf,
        /// Name asked for.
        name: String,
        /// Names there.
        found: String,
    },
    /// No root metadata.
    #[error("{0} holds no root metadata (1.root.json): is it the folder of `dunlin keys init`?")]
    NoRoot(PathBuf),
    /// A key or metadata file that is not usable.
    #[error("{path}: {error}")]
    Trust {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: TrustError,
    },
    /// Not the server's online keys.
    #[error(
        "{path}: expected the answer of GET /api/v1/fleet, or {{\"snapshot\":KEY,\"timestamp\":KEY}}: {problem}"
    )]
    ServerKeys {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

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

/// Makes keys and the first root metadata in a new folder: `root-1.pem`, …, `targets-1.pem`, …
/// (PKCS #8, mode 0600) and `1.root.json`, signed by all root keys. Returns that file's bytes.
///
/// # Errors
/// The folder already holds keys, the numbers make no root, or a file cannot be written.
pub fn init(
    dir: &Path,
    ceremony: &Ceremony,
    online: &OnlineKeys,
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
    let roots = make_keys(dir, "root", ceremony.root_keys)?;
    let targets = make_keys(dir, "targets", ceremony.targets_keys)?;
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
    let signed = new_root(1, later(now, ceremony.expires_in), &roles).map_err(trust)?;
    let signers: Vec<&SigningKey> = roots.iter().collect();
    let bytes = sign_envelope(signed, &signers).map_err(trust)?.to_bytes();
    TrustedSet::from_root(&bytes, now).map_err(trust)?;
    files::write_whole(&root_path, &bytes)?;
    Ok(bytes)
}

fn make_keys(dir: &Path, role: &str, count: u32) -> Result<Vec<SigningKey>, KeysError> {
    let make = |n: u32| {
        let mut seed = Zeroizing::new([0_u8; 32]);
        getrandom::fill(seed.as_mut()).map_err(|e| KeysError::Random(e.to_string()))?;
        let key = SigningKey::from_seed(&seed);
        let path = dir.join(format!("{role}-{n}.pem"));
        let pem = key.to_pkcs8_pem().map_err(|error| KeysError::Trust {
            path: path.clone(),
            error,
        })?;
        files::write_secret(&path, pem.expose().as_bytes())?;
        Ok(key)
    };
    (1..=count).map(make).collect()
}

/// Reads private keys by name (`targets-1` is `targets-1.pem`).
///
/// # Errors
/// No such key, or not an Ed25519 key in PKCS #8.
pub fn load(dir: &Path, names: &[String]) -> Result<Vec<SigningKey>, KeysError> {
    names.iter().map(|name| load_one(dir, name)).collect()
}

fn load_one(dir: &Path, name: &str) -> Result<SigningKey, KeysError> {
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
    let pem = Zeroizing::new(files::read_text(&path, PEM_MAX_BYTES)?);
    SigningKey::from_pkcs8_pem(&pem).map_err(|error| KeysError::Trust { path, error })
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
    let mut set = None;
    for (at, bytes) in root_files(dir)?.iter().enumerate() {
        let trust = |error| KeysError::Trust {
            path: dir.join(format!("{}.root.json", at + 1)),
            error,
        };
        set = Some(match set {
            None => TrustedSet::from_root(bytes, now).map_err(trust)?,
            Some(mut set) => {
                TrustedSet::update_root(&mut set, bytes)
                    .map(drop)
                    .map_err(trust)?;
                set
            }
        });
    }
    let set = set.ok_or_else(|| KeysError::NoRoot(dir.to_owned()))?;
    Ok(set.root().clone())
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

/// `dunlin keys`.
///
/// # Errors
/// What could not be done, as one line.
pub async fn run(args: &KeysArgs) -> Result<Exit, Failure> {
    match &args.action {
        KeysAction::Init {
            dir,
            root_threshold,
            root_keys,
            targets_threshold,
            targets_keys,
            expires_in,
            server_keys: file,
        } => {
            let ceremony = Ceremony {
                root_threshold: *root_threshold,
                root_keys: *root_keys,
                targets_threshold: *targets_threshold,
                targets_keys: *targets_keys,
                expires_in: *expires_in,
            };
            let online = match file {
                Some(file) => server_keys(file)?,
                None => Session::open(&args.shared)?.fleet().await?.0.online_keys,
            };
            let bytes = init(dir, &ceremony, &online, Timestamp::now())?;
            let digest = Digest::of(&bytes);
            if args.shared.json {
                let names = key_names(dir)?;
                table::print_json(&json!({"dir": dir, "keys": names, "root_sha256": digest}));
            } else {
                table::print(&format!(
                    "Made {root_keys} root keys ({root_threshold} must sign) and {targets_keys} targets keys \
                     ({targets_threshold} must sign) in {dir}\nroot metadata {dir}/1.root.json, SHA-256 {digest}\n\
                     next: dunlin keys upload-root --dir {dir}; then move each .pem to its holder\n",
                    dir = dir.display()
                ));
            }
            Ok(Exit::Done)
        }
        KeysAction::Show { dir } => show(dir, args.shared.json),
        KeysAction::UploadRoot { dir } => {
            let session = Session::open(&args.shared)?;
            let versions = upload_root(&session, dir).await?;
            let text = match versions.as_slice() {
                [] => "the server has the newest root already".to_owned(),
                sent => format!("uploaded root version {}", list(sent)),
            };
            if args.shared.json {
                table::print_json(&json!({"uploaded": versions}));
            } else {
                table::print_line(&text);
            }
            Ok(Exit::Done)
        }
    }
}

fn list(numbers: &[u64]) -> String {
    let texts: Vec<String> = numbers.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

/// Uploads the root files that the server does not have; returns their versions.
async fn upload_root(session: &Session, dir: &Path) -> Result<Vec<u64>, Failure> {
    let (fleet, _) = session.fleet().await?;
    let known = fleet.root_version.unwrap_or(0);
    let mut sent = Vec::new();
    for (bytes, version) in root_files(dir)?.iter().zip(1..) {
        if version > known {
            session.client.put_root(bytes).await?;
            sent.push(version);
        }
    }
    Ok(sent)
}

fn show(dir: &Path, is_json: bool) -> Result<Exit, Failure> {
    let now = Timestamp::now();
    let root = trusted_root(dir, now)?;
    let mut rows = Vec::new();
    let mut held = BTreeMap::new();
    for name in key_names(dir)? {
        held.insert(load_one(dir, &name)?.keyid()?, name);
    }
    for role in Role::ALL {
        let Some(keys) = root.roles.get(&role) else {
            continue;
        };
        for keyid in &keys.keyids {
            let place = held.get(keyid).map_or("elsewhere", String::as_str);
            rows.push((
                role,
                keys.threshold,
                keys.keyids.len(),
                keyid.clone(),
                place,
            ));
        }
    }
    let unlisted = held.iter().filter(|(id, _)| !root.keys.contains_key(*id));
    let unlisted: Vec<_> = unlisted
        .map(|(id, name)| (id.clone(), name.clone()))
        .collect();
    let first = first_root_digest(dir)?;
    if is_json {
        let keys = rows.iter().map(|(role, threshold, _, keyid, name)| {
            json!({"role": role.as_str(), "threshold": threshold, "keyid": keyid, "name": name})
        });
        table::print_json(&json!({
            "root_version": root.version, "expires": root.expires.to_string(), "first_root_sha256": first,
            "keys": keys.collect::<Vec<_>>(), "unlisted": unlisted,
        }));
        return Ok(Exit::Done);
    }
    let state = if root.expires > now {
        "until"
    } else {
        "EXPIRED"
    };
    let mut text = format!(
        "root version {}, {state} {}; first root SHA-256 {first}\n\n",
        root.version, root.expires
    );
    let mut table = Table::new(&["role", "must sign", "key id", "private key"]);
    for (role, threshold, count, keyid, name) in &rows {
        let short = keyid.chars().take(16).collect();
        table.row([
            role.to_string(),
            format!("{threshold} of {count}"),
            short,
            (*name).to_owned(),
        ]);
    }
    for (keyid, name) in &unlisted {
        let short = keyid.chars().take(16).collect();
        table.row(["none".to_owned(), "-".to_owned(), short, name.clone()]);
    }
    text.push_str(&table.to_text());
    table::print(&text);
    Ok(Exit::Done)
}

/// Reads a metadata file's version without verifying anything, for messages.
pub(crate) fn shown_version<M: Metadata>(bytes: &[u8]) -> Option<u64> {
    let envelope = Envelope::parse(bytes, M::ROLE.max_bytes()).ok()?;
    M::read(&envelope).ok().map(|m| m.version())
}
