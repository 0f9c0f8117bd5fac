//! `dunlin bundle`.

use crate::args::{BundleAction, BundleArgs, PackArgs, Shared};
use crate::context::Session;
use crate::failure::{Exit, Failure};
use crate::files;
use crate::pack::{PackRequest, PackedBundle, mends_text, pack};
use crate::patch;
use crate::publish::publish_as;
use crate::table::{self, Table, bytes_text};
use dunlin_agent::pipe::TrialReport;
use dunlin_protocol::bundle::{Flow, Manifest};
use dunlin_protocol::id::Family;
use dunlin_protocol::trust::{TARGETS_MAX_BYTES, TargetCustom};
use serde_json::{Value, json};
use std::path::PathBuf;

/// `dunlin bundle`.
///
/// # Errors
/// What could not be done, as one line.
pub async fn run(args: &BundleArgs) -> Result<Exit, Failure> {
    let shared = &args.shared;
    match &args.action {
        BundleAction::Pack(pack) => run_pack(pack, shared.json),
        BundleAction::Profile(profile) => crate::profile::run(profile, shared.json),
        BundleAction::Sign(sign) => crate::sign::command::run(sign, shared).await,
        BundleAction::Publish {
            bundles,
            targets,
            role,
            patches,
        } => {
            let bundles = open_all(bundles)?;
            let bytes = files::read_bounded(targets, TARGETS_MAX_BYTES as u64)?;
            let session = Session::open(shared)?;
            let published =
                publish_as(&session.client, &bundles, &bytes, role.as_deref(), *patches).await;
            let done = published?;
            if session.json {
                table::print_json(&done);
            } else {
                table::print_line(&format!(
                    "published {} version {}: {} blobs uploaded, {} were there already",
                    role.as_deref().unwrap_or("targets"),
                    done.targets_version,
                    done.uploaded,
                    done.already_there
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
        BundleAction::Export(export) => crate::export::run(export, shared).await,
    }
}

pub(crate) fn open_all(dirs: &[PathBuf]) -> Result<Vec<PackedBundle>, Failure> {
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
    let (bundle, examined) = pack(&request, &args.out)?;
    let travels: u64 = bundle.blobs().iter().map(|(_, length, _)| length).sum();
    if is_json {
        let mends: Vec<String> = examined.mends.iter().map(ToString::to_string).collect();
        table::print_json(&json!({
            "dir": bundle.dir, "family": bundle.manifest.family, "version": bundle.manifest.version,
            "digest": bundle.digest(), "transport_bytes": travels, "trial": examined.report,
            "mends": mends,
        }));
        return Ok(Exit::Done);
    }
    let measured = match examined.report {
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
    if !examined.mends.is_empty() {
        table::print_line(&format!(
            "the engine does not take this graph as it is; devices mend it as it was mended here: {}",
            mends_text(&examined.mends)
        ));
    }
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
    if manifest.application.is_some()
        || !manifest.steps.pre.is_empty()
        || !manifest.steps.post.is_empty()
    {
        text.push_str(&application_text(manifest)?);
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

/// What applications send and get, with the steps between them and the graph.
fn application_text(manifest: &Manifest) -> Result<String, Failure> {
    let flow = Flow::of(manifest).map_err(|e| Failure::usage(e.to_string()))?;
    let mut text = String::new();
    for input in &flow.inputs {
        let spec = &input.spec;
        let dtype = spec.dtype.as_str();
        text.push_str(&format!("sent {} {dtype} {:?}\n", spec.name, spec.shape));
    }
    for wired in flow.before.steps.iter().chain(&flow.after.steps) {
        let gives: Vec<String> = wired.gives.iter().map(ToString::to_string).collect();
        let step = wired.step.name();
        text.push_str(&format!("     {step} → {}\n", gives.join(", ")));
    }
    for output in &flow.outputs {
        text.push_str(&format!("got  {} {}\n", output.name, output.of));
    }
    Ok(text)
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
