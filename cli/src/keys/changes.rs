//! What a signature would vouch for, in plain words, read from the bytes that get signed.

use super::KeysError;
use super::holders::Holders;
use super::request::SigningRequest;
use dunlin_protocol::trust::{
    DelegatedRoles, Delegations, Metadata, PathPattern, PathScope, Role, RoleKeys, RootMetadata,
    TargetCustom, TargetEntry, TargetsMetadata,
};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Fields of root and targets metadata that the words below cover.
const KNOWN: [&str; 10] = [
    "_type",
    "spec_version",
    "version",
    "expires",
    "consistent_snapshot",
    "keys",
    "roles",
    "targets",
    "delegations",
    super::holders::FIELD,
];

/// Everything that the request's metadata change against what they replace.
///
/// # Errors
/// What the request carries is not metadata of its role.
pub fn describe(request: &SigningRequest) -> Result<Vec<String>, KeysError> {
    let holders = request.holders();
    let mut lines = match request.role.as_str() {
        "root" => {
            let new = RootMetadata::read(&request.metadata)?;
            root(request.base_root()?.as_ref(), &new, &holders)
        }
        role => {
            let new = TargetsMetadata::read(&request.metadata)?;
            let previous = request.verified_previous()?;
            let mut lines = targets(role, previous.as_ref(), &new, &holders);
            if request.previous.is_some() && previous.is_none() {
                lines.push(
                    "the list before is not signed by the keys that are asked now: all of it is shown as new"
                        .to_owned(),
                );
            }
            lines
        }
    };
    lines.extend(others(request.metadata.signed()));
    Ok(lines.iter().map(|line| visible(line)).collect())
}

/// A request comes from somebody else: nothing in it may move the cursor, hide a line or turn the
/// direction of writing.
fn visible(line: &str) -> String {
    let hides = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    line.chars().fold(String::new(), |mut shown, c| {
        match hides(c) {
            true => shown.extend(c.escape_unicode()),
            false => shown.push(c),
        }
        shown
    })
}

fn root(old: Option<&RootMetadata>, new: &RootMetadata, holders: &Holders) -> Vec<String> {
    let mut lines = Vec::new();
    match old {
        None => lines.push(format!(
            "FIRST root, version {}: devices that enrol from now on trust it for good",
            new.version
        )),
        Some(old) => {
            lines.push(format!(
                "root version {}, after version {}",
                new.version, old.version
            ));
            lines.push(format!(
                "valid until {} (before: {})",
                new.expires, old.expires
            ));
        }
    }
    if old.is_none() {
        lines.push(format!("valid until {}", new.expires));
    }
    if !new.consistent_snapshot {
        lines.push("WARNING: consistent snapshots are OFF: devices of Dunlin need them".to_owned());
    }
    for role in Role::ALL {
        let Some(keys) = new.roles.get(&role) else {
            continue;
        };
        let before = old.and_then(|old| old.roles.get(&role));
        let threshold = match before {
            Some(b) if b.threshold != keys.threshold => format!(" (before: {})", b.threshold),
            _ => String::new(),
        };
        lines.push(format!(
            "{role}: {}{threshold} of {} keys must sign",
            keys.threshold,
            keys.keyids.len()
        ));
        let none = BTreeSet::new();
        let had = before.map_or(&none, |b| &b.keyids);
        for keyid in keys.keyids.difference(had) {
            lines.push(format!("  + {}", holders.label(keyid)));
        }
        for keyid in had.difference(&keys.keyids) {
            lines.push(format!("  - {}", holders.label(keyid)));
        }
        for keyid in had.intersection(&keys.keyids) {
            lines.push(format!("    {}", holders.label(keyid)));
        }
    }
    lines
}

fn targets(
    role: &str,
    old: Option<&TargetsMetadata>,
    new: &TargetsMetadata,
    holders: &Holders,
) -> Vec<String> {
    let mut lines = vec![match old {
        None => format!("{role} version {}, the first", new.version),
        Some(old) => format!(
            "{role} version {}, after version {}",
            new.version, old.version
        ),
    }];
    lines.push(match old {
        None => format!("valid until {}", new.expires),
        Some(old) => format!("valid until {} (before: {})", new.expires, old.expires),
    });
    let mut same = 0_usize;
    for (path, entry) in &new.targets {
        match old.and_then(|old| old.targets.get(path)) {
            None => lines.push(format!("  + {}", entry_words(entry))),
            Some(before) if before == entry => same += 1,
            Some(before) => {
                lines.push(format!("  - {}", entry_words(before)));
                lines.push(format!("  + {}", entry_words(entry)));
            }
        }
    }
    for (path, entry) in old.into_iter().flat_map(|old| &old.targets) {
        if !new.targets.contains_key(path) {
            lines.push(format!("  - {}", entry_words(entry)));
        }
    }
    lines.push(format!("{same} targets stay as they are"));
    let words = |list: &TargetsMetadata| -> BTreeMap<String, String> {
        let delegations = list.delegations.as_ref();
        delegations.map_or_else(BTreeMap::new, |d| delegation_words(d, holders))
    };
    let (before, after) = (old.map(words).unwrap_or_default(), words(new));
    for (name, what) in &after {
        match before.get(name) {
            Some(was) if was == what => lines.push(format!("    delegated: {what}")),
            Some(was) => {
                lines.push(format!("  - delegated: {was}"));
                lines.push(format!("  + delegated: {what}"));
            }
            None => lines.push(format!("  + delegated: {what}")),
        }
    }
    for (name, what) in &before {
        if !after.contains_key(name) {
            lines.push(format!("  - delegated: {what}"));
        }
    }
    lines
}

/// Each delegation in words, by its role.
fn delegation_words(delegations: &Delegations, holders: &Holders) -> BTreeMap<String, String> {
    let names = |keys: &RoleKeys| {
        let names: Vec<String> = keys.keyids.iter().map(|id| holders.label(id)).collect();
        format!("{} of {} must sign", keys.threshold, names.join(", "))
    };
    let bins = match &delegations.roles {
        DelegatedRoles::Succinct(bins) => vec![(
            bins.name_prefix().to_owned(),
            format!(
                "everything, to {} hash bins {}-…: {}",
                1_u64 << bins.bit_length(),
                bins.name_prefix(),
                names(&bins.keys)
            ),
        )],
        DelegatedRoles::Listed(_) => Vec::new(),
    };
    let listed = delegations.listed().iter().enumerate();
    let listed = listed.map(|(at, role)| {
        let paths = match &role.scope {
            PathScope::Patterns(patterns) => {
                let texts: Vec<&str> = patterns.iter().map(PathPattern::as_str).collect();
                texts.join(" ")
            }
            PathScope::HashPrefixes(prefixes) => {
                format!("paths whose hash begins with {}", prefixes.join(" "))
            }
        };
        let ends = match role.terminating {
            true => "nobody after it is asked",
            false => "those after it are asked too",
        };
        let what = format!(
            "{paths} to role {} (place {}, {ends}): {}",
            role.name,
            at + 1,
            names(&role.keys)
        );
        (role.name.clone(), what)
    });
    bins.into_iter().chain(listed).collect()
}

/// A target as its signers should know it.
fn entry_words(entry: &TargetEntry) -> String {
    let custom = match TargetCustom::read(entry) {
        Ok(custom) => format!(
            "{} for {}, rollback floor {}",
            custom.kind,
            custom.hardware.join(", "),
            custom.rollback_floor
        ),
        Err(e) => format!("WARNING: no device will take it: {e}"),
    };
    format!(
        "{}, {} bytes, SHA-256 {}; {custom}",
        entry.path,
        entry.length,
        entry
            .hashes
            .sha256
            .map_or("NONE".to_owned(), |d| d.to_string())
    )
}

/// Fields that no rule here knows are signed too, so they are shown.
fn others(signed: &Value) -> Vec<String> {
    let fields = signed.as_object().into_iter().flatten();
    let unknown = fields.filter(|(name, _)| !KNOWN.contains(&name.as_str()));
    unknown
        .map(|(name, value)| {
            let text: String = value.to_string().chars().take(200).collect();
            format!("also signed, not known to this version: {name} = {text}")
        })
        .collect()
}
