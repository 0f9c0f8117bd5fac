//! `dunlin keys show`: which private keys a folder holds, and what its newest root says of them.

use super::folder::{first_root_digest, key_names, root_files, trusted_root};
use super::holders::Holders;
use super::{KeysError, pem};
use crate::failure::{Exit, Failure};
use crate::files;
use crate::table::{self, Table};
use dunlin_protocol::trust::{Envelope, ROOT_MAX_BYTES, Role, SigningKey};
use jiff::Timestamp;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use zeroize::Zeroizing;

/// `dunlin keys show`.
///
/// # Errors
/// The folder's roots do not verify, or a file cannot be read.
pub fn show(dir: &Path, is_json: bool) -> Result<Exit, Failure> {
    let now = Timestamp::now();
    let root = trusted_root(dir, now)?;
    let mut rows = Vec::new();
    let held = held_keys(dir)?;
    let newest = root_files(dir)?.pop().unwrap_or_default();
    let holders = Envelope::parse(&newest, ROOT_MAX_BYTES)?;
    let holders = Holders::of(holders.signed());
    for role in Role::ALL {
        let Some(keys) = root.roles.get(&role) else {
            continue;
        };
        for keyid in &keys.keyids {
            let place = match (held.get(keyid), holders.name(keyid)) {
                (Some(file), _) => file.clone(),
                (None, Some(name)) => format!("elsewhere ({name})"),
                (None, None) => "elsewhere".to_owned(),
            };
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
            name.clone(),
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

/// The folder's private keys by id. An encrypted one is known by the public key beside it.
fn held_keys(dir: &Path) -> Result<BTreeMap<String, String>, KeysError> {
    let mut held = BTreeMap::new();
    for name in key_names(dir)? {
        let path = dir.join(format!("{name}.pem"));
        let text = Zeroizing::new(files::read_text(&path, super::folder::PEM_MAX_BYTES)?);
        let public = dir.join(format!("{name}.pub"));
        let keyid = match pem::is_encrypted(&text) {
            true if public.is_file() => super::public::PublicKey::read(&public)?.keyid,
            true => continue,
            false => {
                let key: SigningKey =
                    pem::read_plain(&text).map_err(|error| KeysError::Pem { path, error })?;
                key.keyid()?
            }
        };
        held.insert(keyid, name);
    }
    Ok(held)
}
