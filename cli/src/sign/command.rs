//! `dunlin bundle sign`: the next list of targets, signed here or asked for by a request.

use super::list::{self, SignedList, TARGETS};
use super::{
    Signed, add_signatures, carry_over, check_follows, check_signers, next_list, signature_count,
};
use crate::args::{Shared, SignArgs};
use crate::bundle::open_all;
use crate::failure::{Exit, Failure};
use crate::files;
use crate::keys;
use crate::keys::request::SigningRequest;
use crate::keys::sign::write_request;
use crate::table::{self, Table};
use dunlin_protocol::trust::{
    Envelope, Metadata, SigningKey, TARGETS_MAX_BYTES, TargetCustom, TargetsMetadata, sign_envelope,
};
use jiff::Timestamp;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// `dunlin bundle sign`.
///
/// # Errors
/// What could not be done, as one line.
pub async fn run(args: &SignArgs, shared: &Shared) -> Result<Exit, Failure> {
    let whose = whose(args, shared).await?;
    let keys = keys::load_with(&args.keys, &args.key_names, &args.passphrase.source())?;
    check_signers(&whose.quorum, &keys)?;
    if args.add_signature {
        return add(args, shared, &whose, &keys);
    }
    let bundles = open_all(&args.bundles)?;
    for bundle in &bundles {
        whose.check_scope(&bundle.target.path)?;
    }
    let (bytes, previous) = match args.first {
        true => (None, anew(args, shared, &whose).await?),
        false => {
            let bytes = list::given_or_newest(args.targets.as_ref(), shared, &whose.role).await?;
            // A request shows all of such a list, and a file was named by somebody who looked.
            if let (None, None, Some(bytes)) = (&args.request, &args.targets, &bytes) {
                whose.check_of_today(bytes)?;
            }
            let previous = whose.verified(&args.keys, bytes.as_deref())?;
            (bytes, previous)
        }
    };
    let expires = keys::later(Timestamp::now(), args.expires_in);
    let mut signed = next_list(&bundles, previous.as_ref(), expires)?;
    if let Some(bytes) = &bytes {
        carry_over(bytes, &mut signed)?;
    }
    if let Some(out) = &args.request {
        let request = SigningRequest::for_list(sign_envelope(signed, &[])?, &whose, bytes)?;
        return write_request(&request, out, shared.json);
    }
    let signers: Vec<&SigningKey> = keys.iter().collect();
    let signed = Signed::of(&sign_envelope(signed, &signers)?)?;
    let before = previous.map(|p| p.targets.into_keys().collect());
    let out = out_file(args)?;
    files::write_whole(out, &signed.bytes)?;
    report(
        &whose,
        &signed,
        Some(&before.unwrap_or_default()),
        out,
        shared.json,
    )
}

/// The list that is asked for, by the operator's own roots.
async fn whose(args: &SignArgs, shared: &Shared) -> Result<SignedList, Failure> {
    let top = SignedList::top(&args.keys)?;
    let Some(role) = args.role.as_deref().filter(|role| *role != TARGETS) else {
        return Ok(top);
    };
    let delegator = list::given_or_newest(args.delegator.as_ref(), shared, TARGETS).await?;
    let none = || {
        Failure::new(format!(
            "no targets are published: nothing delegates to {role}"
        ))
    };
    top.delegated(role, &delegator.ok_or_else(none)?)
}

/// An empty list to begin with. A team that takes over from another one begins above the versions
/// that devices have seen: of the list before, only its version is believed, and only that.
async fn anew(
    args: &SignArgs,
    shared: &Shared,
    whose: &SignedList,
) -> Result<Option<TargetsMetadata>, Failure> {
    if whose.delegator.is_none() {
        return whose.verified(&args.keys, None);
    }
    let before = list::newest(shared, &whose.role).await?;
    let version = before.and_then(|bytes| keys::shown_version::<TargetsMetadata>(&bytes));
    Ok(version.map(|version| TargetsMetadata {
        version,
        expires: Timestamp::UNIX_EPOCH,
        targets: BTreeMap::new(),
        delegations: None,
    }))
}

fn out_file(args: &SignArgs) -> Result<&Path, Failure> {
    let out = args.out.as_deref();
    out.ok_or_else(|| Failure::usage("name the file with --out FILE"))
}

/// Adds signatures to the file of somebody else.
fn add(
    args: &SignArgs,
    shared: &Shared,
    whose: &SignedList,
    keys: &[SigningKey],
) -> Result<Exit, Failure> {
    let Some(file) = &args.targets else {
        return Err(Failure::usage("name the file with --targets FILE"));
    };
    let bytes = files::read_bounded(file, TARGETS_MAX_BYTES as u64)?;
    let seen = check_follows(&args.keys, &whose.role, &bytes)?;
    let listed = seen.map(|seen| seen.targets.into_keys().collect());
    say_what_is_signed(&whose.role, &bytes, listed.as_ref(), shared.json)?;
    let signed = add_signatures(&bytes, keys)?;
    let out = out_file(args)?;
    files::write_whole(out, &signed.bytes)?;
    report(whose, &signed, listed.as_ref(), out, shared.json)
}

/// Tells, before a signature is added, what it vouches for and what the key folder has not seen.
fn say_what_is_signed(
    role: &str,
    bytes: &[u8],
    seen: Option<&Vec<String>>,
    is_json: bool,
) -> Result<(), Failure> {
    if is_json {
        return Ok(());
    }
    let envelope = Envelope::parse(bytes, TARGETS_MAX_BYTES)?;
    let targets = TargetsMetadata::read(&envelope)?;
    let is_new = |path: &&String| seen.is_none_or(|seen| !seen.contains(path));
    table::print_line(&format!("signing {role} version {}:", targets.version));
    for path in targets.targets.keys().filter(is_new) {
        table::print_line(&format!("+ {path}"));
    }
    for path in seen.into_iter().flatten() {
        if !targets.targets.contains_key(path) {
            table::print_line(&format!("- {path}"));
        }
    }
    if seen.is_none() {
        table::print_line("this key folder has seen no such metadata before: check the list");
    }
    Ok(())
}

fn report(
    whose: &SignedList,
    signed: &Signed,
    before: Option<&Vec<String>>,
    out: &Path,
    is_json: bool,
) -> Result<Exit, Failure> {
    let (got, needed) = signature_count(&whose.quorum, &signed.bytes)?;
    let targets = &signed.targets;
    if is_json {
        table::print_json(&json!({
            "out": out, "role": whose.role, "version": targets.version,
            "expires": targets.expires.to_string(), "signatures": got, "needed": needed,
            "targets": targets.targets.keys().collect::<Vec<_>>(),
        }));
        return Ok(Exit::Done);
    }
    let mut rows = Table::new(&["target", "", "floor>", "hardware", "manifest"]);
    for entry in targets.targets.values() {
        let is_new = before.is_some_and(|b| !b.contains(&entry.path));
        let custom = TargetCustom::read(entry).ok();
        let floor = custom
            .as_ref()
            .map_or("?".to_owned(), |c| c.rollback_floor.to_string());
        let hardware = custom.map_or("?".to_owned(), |c| c.hardware.join(", "));
        let mark = if is_new { "new" } else { "" };
        let digest = entry.hashes.sha256.map_or("?".to_owned(), |d| d.short());
        rows.row([entry.path.clone(), mark.to_owned(), floor, hardware, digest]);
    }
    let next = if got < needed {
        format!(
            "{got} of {needed} signatures: add one with `dunlin bundle sign --add-signature --targets {} --key NAME`",
            out.display()
        )
    } else {
        format!("{needed} of {needed} signatures: ready for `dunlin bundle publish`")
    };
    table::print(&format!(
        "{} version {}, valid until {}, in {}\n\n{}\n{next}\n",
        whose.role,
        targets.version,
        targets.expires,
        out.display(),
        rows.to_text()
    ));
    Ok(Exit::Done)
}
