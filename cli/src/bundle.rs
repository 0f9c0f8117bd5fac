//! `dunlin bundle`.

use crate::args::{BundleAction, BundleArgs, PackArgs, Shared, SignArgs};
use crate::context::Session;
use crate::failure::{Exit, Failure};
use crate::files;
use crate::keys::request::SigningRequest;
use crate::keys::sign::write_request;
use crate::keys::{self, KeysError};
use crate::pack::{PackRequest, PackedBundle, pack};
use crate::patch;
use crate::publish::publish_with;
use crate::sign::{self, SignError, Signed};
use crate::table::{self, Table, bytes_text};
use dunlin_agent::pipe::TrialReport;
use dunlin_protocol::id::Family;
use dunlin_protocol::trust::{
    Envelope, Metadata, RootMetadata, TARGETS_MAX_BYTES, TargetCustom, TargetsMetadata,
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// `dunlin bundle`.
///
/// # Errors
/// What could not be done, as one line.
pub async fn run(args: &BundleArgs) -> Result<Exit, Failure> {
    let shared = &args.shared;
    match &args.action {
        BundleAction::Pack(pack) => run_pack(pack, shared.json),
        BundleAction::Sign(sign) => run_sign(sign, shared).await,
        BundleAction::Publish {
            bundles,
            targets,
            patches,
        } => {
            let bundles = open_all(bundles)?;
            let bytes = files::read_bounded(targets, TARGETS_MAX_BYTES as u64)?;
            let session = Session::open(shared)?;
            let done = publish_with(&session.client, &bundles, &bytes, *patches).await?;
            if session.json {
                table::print_json(&done);
            } else {
                table::print_line(&format!(
                    "published targets version {}: {} blobs uploaded, {} were there already",
                    done.targets_version, done.uploaded, done.already_there
                ));
                for offer in &done.patches {
                    table::print_line(&offer.to_string());
                }
            }
            Ok(Exit::Done)
        }
        BundleAction::Inspect { dir, published } => match (dir, published) {
            (Some(dir), _) => inspect(&PackedBundle::open(dir)?, shared.json),
            (None, Some(name)) => inspect_published(name, shared).await,
            (None, None) => Err(Failure::usage(
                "name a folder or --published FAMILY/VERSION",
            )),
        },
        BundleAction::Patch { old, new, out } => patch::run_make(old, new, out, shared.json),
        BundleAction::Apply { old, patch, out } => patch::run_apply(old, patch, out, shared.json),
        BundleAction::List => list(shared).await,
    }
}

fn open_all(dirs: &[PathBuf]) -> Result<Vec<PackedBundle>, Failure> {
    let opened = dirs.iter().map(|dir| PackedBundle::open(dir));
    Ok(opened.collect::<Result<_, _>>()?)
}

fn run_pack(args: &PackArgs, is_json: bool) -> Result<Exit, Failure> {
    let request = PackRequest {
        spec: args.spec.clone(),
        golden: args.golden.clone(),
        profile: args.profile.clone(),
        version: args.bundle_version,
        rollback_floor: args.rollback_floor,
    };
    let (bundle, report) = pack(&request, &args.out)?;
    let travels: u64 = bundle.blobs().iter().map(|(_, length, _)| length).sum();
    if is_json {
        table::print_json(&json!({
            "dir": bundle.dir, "family": bundle.manifest.family, "version": bundle.manifest.version,
            "digest": bundle.digest(), "transport_bytes": travels, "trial": report,
        }));
        return Ok(Exit::Done);
    }
    let measured = match report {
        TrialReport::Passed {
            cases,
            difference_max,
            latency_median_us,
        } => format!(
            "{cases} golden cases met, largest difference {difference_max:.1e} (tolerance {:.1e}), median {latency_median_us} µs",
            bundle.manifest.limits.tolerance_abs
        ),
        TrialReport::Failed { code, detail } => format!("{code}: {detail}"),
    };
    table::print_line(&format!(
        "packed {} version {} into {}\n{measured}\nmanifest {}, {} to download",
        bundle.manifest.family,
        bundle.manifest.version,
        bundle.dir.display(),
        bundle.digest(),
        bytes_text(travels)
    ));
    Ok(Exit::Done)
}

async fn run_sign(args: &SignArgs, shared: &Shared) -> Result<Exit, Failure> {
    let now = Timestamp::now();
    let roots = keys::trusted_roots(&args.keys, now)?;
    let root = roots
        .last()
        .ok_or_else(|| KeysError::NoRoot(args.keys.clone()))?;
    let keys = keys::load_with(&args.keys, &args.key_names, &args.passphrase.source())?;
    sign::check_signers(root, &keys)?;
    let given = match &args.targets {
        Some(file) => Some(files::read_bounded(file, TARGETS_MAX_BYTES as u64)?),
        None => None,
    };
    let (signed, before) = match given {
        Some(bytes) if args.add_signature => {
            let seen = sign::check_follows(&args.keys, &bytes)?;
            let listed = seen.map(|seen| seen.targets.into_keys().collect());
            say_what_is_signed(&bytes, listed.as_ref(), shared.json)?;
            (sign::add_signatures(&bytes, &keys)?, listed)
        }
        given => {
            let bundles = open_all(&args.bundles)?;
            let bytes = match given {
                Some(bytes) => Some(bytes),
                None if args.first => None,
                None => newest_targets(shared).await?,
            };
            let previous = bytes
                .as_deref()
                .map(|b| sign::verified_by_chain(&roots, b))
                .transpose()?;
            sign::check_not_older(&args.keys, bytes.as_deref())?;
            let expires = keys::later(now, args.expires_in);
            let signed = sign::sign(&bundles, previous.as_ref(), &keys, expires)?;
            if let Some(out) = &args.request {
                return request_signatures(args, &signed, bytes, out, shared);
            }
            let listed = previous.map(|p| p.targets.into_keys().collect());
            (signed, Some(listed.unwrap_or_default()))
        }
    };
    let out = args
        .out
        .as_deref()
        .ok_or_else(|| Failure::usage("name the file with --out FILE"))?;
    files::write_whole(out, &signed.bytes)?;
    report_signed(root, &signed, before.as_ref(), out, shared.json)
}

/// The same metadata, unsigned, as a request to the holders of the targets keys.
fn request_signatures(
    args: &SignArgs,
    unsigned: &Signed,
    previous: Option<Vec<u8>>,
    out: &Path,
    shared: &Shared,
) -> Result<Exit, Failure> {
    let envelope = Envelope::parse(&unsigned.bytes, TARGETS_MAX_BYTES)?;
    let newest = keys::root_files(&args.keys)?.pop();
    let newest = newest.ok_or_else(|| KeysError::NoRoot(args.keys.clone()))?;
    let request = SigningRequest::for_targets(envelope, newest, previous)?;
    write_request(&request, out, shared.json)
}

/// Tells, before a signature is added, what it vouches for and what the key folder has not seen.
fn say_what_is_signed(
    bytes: &[u8],
    seen: Option<&Vec<String>>,
    is_json: bool,
) -> Result<(), Failure> {
    if is_json {
        return Ok(());
    }
    let envelope = Envelope::parse(bytes, TARGETS_MAX_BYTES).map_err(SignError::from)?;
    let targets = TargetsMetadata::read(&envelope).map_err(SignError::from)?;
    let is_new = |path: &&String| seen.is_none_or(|seen| !seen.contains(path));
    table::print_line(&format!("signing targets version {}:", targets.version));
    for path in targets.targets.keys().filter(is_new) {
        table::print_line(&format!("+ {path}"));
    }
    for path in seen.into_iter().flatten() {
        if !targets.targets.contains_key(path) {
            table::print_line(&format!("- {path}"));
        }
    }
    if seen.is_none() {
        table::print_line("this key folder has seen no targets metadata before: check the list");
    }
    Ok(())
}

async fn newest_targets(shared: &Shared) -> Result<Option<Vec<u8>>, Failure> {
    let session = Session::open(shared).map_err(|e| Failure {
        message: format!(
            "{e}; or give the newest targets metadata with --targets FILE, or --first if the fleet has none"
        ),
        ..e
    })?;
    let (fleet, _) = session.fleet().await?;
    let Some(version) = fleet.targets_version else {
        return Ok(None);
    };
    let name = format!("{version}.targets.json");
    let bytes = session.client.metadata_file(&name).await?;
    match bytes {
        Some(bytes) => Ok(Some(bytes)),
        None => Err(Failure::new(format!(
            "the server says that {name} is its newest targets metadata, but does not have it"
        ))),
    }
}

fn report_signed(
    root: &RootMetadata,
    signed: &Signed,
    before: Option<&Vec<String>>,
    out: &Path,
    is_json: bool,
) -> Result<Exit, Failure> {
    let (got, needed) = sign::signature_count(root, &signed.bytes)?;
    let targets = &signed.targets;
    if is_json {
        table::print_json(&json!({
            "out": out, "version": targets.version, "expires": targets.expires.to_string(),
            "signatures": got, "needed": needed, "targets": targets.targets.keys().collect::<Vec<_>>(),
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
        "targets version {}, valid until {}, in {}\n\n{}\n{next}\n",
        targets.version,
        targets.expires,
        out.display(),
        rows.to_text()
    ));
    Ok(Exit::Done)
}

fn inspect(bundle: &PackedBundle, is_json: bool) -> Result<Exit, Failure> {
    if is_json {
        table::print_json(&json!({
            "target": bundle.target.path, "digest": bundle.digest(),
            "custom": bundle.target.custom, "manifest": bundle.manifest,
        }));
        return Ok(Exit::Done);
    }
    let custom = TargetCustom::read(&bundle.target)?;
    let manifest = &bundle.manifest;
    let mut text = format!(
        "{} {} version {} for {}\nmanifest {}, rollback floor {}\n",
        manifest.kind,
        manifest.family,
        manifest.version,
        custom.hardware.join(", "),
        bundle.digest(),
        custom.rollback_floor
    );
    for (way, tensors) in [("in ", &manifest.inputs), ("out", &manifest.outputs)] {
        for t in tensors {
            text.push_str(&format!(
                "{way}  {} {} {:?}\n",
                t.name,
                t.dtype.as_str(),
                t.shape
            ));
        }
    }
    text.push_str(&format!(
        "tolerance {:e}, latency budget {} ms, memory {}, agent {} or newer\n\n",
        manifest.limits.tolerance_abs,
        manifest.limits.latency_budget_ms,
        bytes_text(manifest.resources.ram_bytes),
        manifest.resources.agent_min
    ));
    let mut rows = Table::new(&["file", "length>", "to download>", "SHA-256"]);
    for (name, blob) in manifest.files.named() {
        let length = bytes_text(blob.length);
        let travels = bytes_text(blob.transport().1);
        rows.row([name.to_owned(), length, travels, blob.sha256.short()]);
    }
    table::print(&format!("{text}{}", rows.to_text()));
    Ok(Exit::Done)
}

async fn inspect_published(name: &str, shared: &Shared) -> Result<Exit, Failure> {
    let bad = || {
        Failure::usage(format!(
            "expected FAMILY/VERSION such as digits/2, got {name:?}"
        ))
    };
    let (family, version) = name.split_once('/').ok_or_else(bad)?;
    let family: Family = family.parse().map_err(|_| bad())?;
    let version = version.parse().map_err(|_| bad())?;
    let session = Session::open(shared)?;
    // The manifest is for people and machines alike: as the server has it.
    table::print_json(&session.client.bundle(&family, version).await?);
    Ok(Exit::Done)
}

async fn list(shared: &Shared) -> Result<Exit, Failure> {
    let session = Session::open(shared)?;
    let bundles = session.client.bundles().await?;
    if session.json {
        table::print_json(&bundles);
        return Ok(Exit::Done);
    }
    let mut rows = Table::new(&["family", "version>", "floor>", "published", "manifest"]);
    for bundle in &bundles {
        let number = |name: &str| {
            bundle[name]
                .as_u64()
                .map_or("-".to_owned(), |n| n.to_string())
        };
        let digest: String = text_of(&bundle["digest"]).chars().take(12).collect();
        rows.row([
            text_of(&bundle["family"]),
            number("version"),
            number("rollback_floor"),
            table::time_text(bundle["published_ms"].as_i64()),
            digest,
        ]);
    }
    if rows.is_empty() {
        table::print_line("nothing is published yet");
    } else {
        table::print(&rows.to_text());
    }
    Ok(Exit::Done)
}

/// A JSON text without its quotes; other values as JSON, nothing as `-`.
pub(crate) fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}
