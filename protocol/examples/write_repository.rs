//! Writes a repository that Dunlin signs, with all that it can write: a rotated root, keys of other
//! kinds in it, thresholds, delegations by paths and by hash prefixes, a role below a role, hash bins.
//! `tests/peers/tuf` gives it to python-tuf.
//!
//! ```text
//! write_repository FOLDER      writes FOLDER/metadata/… and FOLDER/targets/…
//! ```
//!
//! The keys come from fixed seeds and are worth nothing.

use dunlin_protocol::trust::{
    Delegations, Key, MetaFile, PathScope, Role, RoleName, SigningKey, TargetCustom, TargetEntry,
    TrustError, new_delegating_targets, new_root, new_snapshot, new_targets, new_timestamp,
    sign_envelope,
};
use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// 2099-01-01.
const EXPIRES_S: i64 = 4_070_908_800;

const P256: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEf7XzFpJBpDjVB0FQTqV1qQ3goy3j
b0gyy3tNV+pgujbZJICHZxbKGSXnKNZ9eBH0cGJwOTkAAxaxxJw4K6HLvg==
-----END PUBLIC KEY-----
";

type Failure = Box<dyn Error>;

struct Writer {
    folder: PathBuf,
    expires: Timestamp,
    /// What the snapshot will list.
    meta: BTreeMap<String, MetaFile>,
}

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32])
}

fn public(seeds: &[u8]) -> Vec<Key> {
    seeds.iter().map(|&s| key(s).public_key()).collect()
}

impl Writer {
    fn file(&self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        let path = self.folder.join(name);
        fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        Ok(fs::write(path, bytes)?)
    }

    fn signed(&self, name: &str, signed: Value, seeds: &[u8]) -> Result<Vec<u8>, Failure> {
        let keys: Vec<SigningKey> = seeds.iter().map(|&s| key(s)).collect();
        let keys: Vec<&SigningKey> = keys.iter().collect();
        let bytes = sign_envelope(signed, &keys)?.to_bytes();
        self.file(&format!("metadata/{name}"), &bytes)?;
        Ok(bytes)
    }

    /// Targets metadata of version 1, listed for the snapshot.
    fn targets(&mut self, role: &RoleName, signed: Value, seeds: &[u8]) -> Result<(), Failure> {
        let bytes = self.signed(&role.file_name(1, true), signed, seeds)?;
        self.meta
            .insert(role.listed_name(), MetaFile::of(1, &bytes));
        Ok(())
    }

    /// A target with its own path as content.
    fn target(&self, path: &str) -> Result<TargetEntry, Failure> {
        let custom = TargetCustom {
            family: "digits".parse()?,
            version: 1,
            hardware: vec!["any".to_owned()],
            rollback_floor: 0,
            kind: "model".to_owned(),
        };
        let entry = TargetEntry::of(path, path.as_bytes(), &custom);
        self.file(
            &format!("targets/{}", entry.consistent_path()),
            path.as_bytes(),
        )?;
        Ok(entry)
    }

    fn lists(&self, path: &str) -> Result<Value, Failure> {
        Ok(new_targets(1, self.expires, [&self.target(path)?]))
    }
}

fn roots(to: &Writer) -> Result<(), Failure> {
    let roles = |roots: &[u8], snapshot: u8| -> Result<_, TrustError> {
        let mut root = public(roots);
        root.push(Key::from_public_pem(P256)?);
        Ok(BTreeMap::from([
            (Role::Root, (root, 2)),
            (Role::Targets, (public(&[4, 5]), 2)),
            (Role::Snapshot, (public(&[snapshot]), 1)),
            (Role::Timestamp, (public(&[7]), 1)),
        ]))
    };
    let first = new_root(1, to.expires, &roles(&[1, 2, 3], 16)?)?;
    to.signed("1.root.json", first, &[1, 2])?;
    // The first root key and the snapshot key are replaced.
    let second = new_root(2, to.expires, &roles(&[2, 3, 8], 6)?)?;
    to.signed("2.root.json", second, &[2, 3, 8])?;
    Ok(())
}

fn delegated(to: &mut Writer) -> Result<Delegations, Failure> {
    let role = |name: &str| RoleName::delegated(name).ok_or("no name of a delegated role");
    let mut given = Delegations::none();
    let hash = hex::encode(Sha256::digest("by-hash"));
    for (name, keys, threshold, terminating, scope) in [
        (
            "team",
            &[10, 11][..],
            2,
            false,
            PathScope::patterns(["digits/*/*"]),
        ),
        (
            "ü /..",
            &[12],
            1,
            true,
            PathScope::patterns(["strange/?[a-c]"]),
        ),
        (
            "prefixes",
            &[13],
            1,
            true,
            PathScope::HashPrefixes(vec![hash[..4].to_owned()]),
        ),
        ("bins", &[14], 1, true, PathScope::patterns(["bins/*"])),
    ] {
        given.delegate(name, &public(keys), threshold, terminating, scope)?;
    }
    let mut below = Delegations::none();
    let scope = PathScope::patterns(["digits/2/*"]);
    below.delegate("deputy", &public(&[15]), 1, false, scope)?;
    let signed = [to.target("digits/1/manifest.json")?];
    let signed = new_delegating_targets(1, to.expires, &signed, &below);
    to.targets(&role("team")?, signed, &[10, 11])?;
    to.targets(&role("deputy")?, to.lists("digits/2/manifest.json")?, &[15])?;
    to.targets(&role("ü /..")?, to.lists("strange/ub")?, &[12])?;
    to.targets(&role("prefixes")?, to.lists("by-hash")?, &[13])?;
    let bins = Delegations::succinct("bin ü", 5, &public(&[17]), 1)?;
    let signed = new_delegating_targets(1, to.expires, [], &bins);
    to.targets(&role("bins")?, signed, &[14])?;
    let mut contents: BTreeMap<String, Vec<TargetEntry>> = BTreeMap::new();
    for n in 0..20 {
        let path = format!("bins/{n}");
        let bin = bins.bin_of(&path).ok_or("no bin")?;
        contents.entry(bin).or_default().push(to.target(&path)?);
    }
    for bin in bins.bins() {
        let entries = contents.remove(&bin).unwrap_or_default();
        to.targets(&role(&bin)?, new_targets(1, to.expires, &entries), &[17])?;
    }
    Ok(given)
}

fn write(folder: PathBuf) -> Result<(), Failure> {
    let mut to = Writer {
        folder,
        expires: Timestamp::from_second(EXPIRES_S)?,
        meta: BTreeMap::new(),
    };
    roots(&to)?;
    let given = delegated(&mut to)?;
    let top = [to.target("top level.txt")?];
    let signed = new_delegating_targets(1, to.expires, &top, &given);
    to.targets(&Role::Targets.into(), signed, &[4, 5])?;
    let snapshot = new_snapshot(1, to.expires, &to.meta);
    let snapshot = to.signed("1.snapshot.json", snapshot, &[6])?;
    let timestamp = new_timestamp(1, to.expires, &MetaFile::of(1, &snapshot));
    to.signed("timestamp.json", timestamp, &[7])?;
    Ok(())
}

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1) else {
        eprintln!("usage: write_repository FOLDER");
        return ExitCode::from(64);
    };
    match write(folder.into()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
