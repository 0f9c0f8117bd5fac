//! From a spec (`bundle.toml`) to a packed bundle: a manifest and its blobs, checked with the very
//! engine that runs it on devices.

use crate::files::{self, FileError};
use dunlin_agent::inference::golden::Examined;
use dunlin_agent::inference::mend::Mend;
use dunlin_agent::pipe::TrialReport;
use dunlin_protocol::bundle::{
    Application, BLOB_MAX_BYTES, Blob, DOCUMENT_MAX_BYTES, Files, GoldenError, GoldenSet, Limits,
    Lineage, MANIFEST_MAX_BYTES, Manifest, ManifestError, Packed, Profile, ProfileError, Resources,
    Steps, TensorSpec,
};
use dunlin_protocol::capture::CaptureRules;
use dunlin_protocol::id::{Digest, Family};
use dunlin_protocol::trust::{Hashes, TargetCustom, TargetEntry};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const SPEC_MAX_BYTES: u64 = 1 << 20;
const BUNDLE_SCHEMA: &str = "dunlin.bundle/1";
/// Above this a blob is packed at a quick level: the slow ones take minutes there.
const SLOW_LEVEL_MAX_BYTES: usize = 32 << 20;

/// Why a bundle is not packed, or a packed one not used.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// A file cannot be read or written.
    #[error("{0}")]
    File(#[from] FileError),
    /// The spec is not understood.
    #[error("{path}: {problem}")]
    Spec {
        /// The spec.
        path: PathBuf,
        /// What is wrong, and where.
        problem: String,
    },
    /// The spec makes no valid manifest.
    #[error("{0}")]
    Manifest(#[from] ManifestError),
    /// Golden cases that do not belong to the manifest.
    #[error("{path}: {error}")]
    Golden {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        error: GoldenError,
    },
    /// A profile that does not belong to the manifest.
    #[error("{path}: {error}")]
    Profile {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        error: ProfileError,
    },
    /// The device's engine does not do what the training runtime did.
    #[error("{model}: the device's engine refuses it ({code}): {detail}; nothing was packed")]
    Trial {
        /// The model file.
        model: PathBuf,
        /// `load`, `golden` or `latency`.
        code: String,
        /// What, where, expected and got.
        detail: String,
    },
    /// The output folder is in use.
    #[error("{0} already exists and is not empty: name a new folder with --out")]
    OutExists(PathBuf),
    /// A packed bundle that is not what it says.
    #[error("{path}: {problem}; pack it again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// What `bundle.toml` says. Paths are relative to its folder.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Model family.
    pub family: Family,
    /// Version, at least 1.
    pub version: u64,
    /// `model`.
    pub kind: String,
    /// Hardware it is for, or `any`.
    pub hardware: Vec<String>,
    /// Lowest version of the family that stays allowed once this is listed.
    pub rollback_floor: u64,
    /// The ONNX graph.
    pub model: PathBuf,
    /// Golden cases, written by the training runtime.
    pub golden: PathBuf,
    /// Reference profile.
    #[serde(default)]
    pub profile: Option<PathBuf>,
    /// Model card.
    #[serde(default)]
    pub card: Option<PathBuf>,
    /// Class names, by index.
    #[serde(default)]
    pub labels: Vec<String>,
    /// Inputs of the graph.
    pub inputs: Vec<TensorSpec>,
    /// Outputs of the graph.
    pub outputs: Vec<TensorSpec>,
    /// Processing on the device.
    #[serde(default)]
    pub steps: Steps,
    /// What applications send and get, where it differs from the graph's inputs and outputs.
    #[serde(default)]
    pub application: Option<Application>,
    /// What golden cases must meet.
    pub limits: Limits,
    /// What the device needs.
    pub resources: Resources,
    /// Where the model comes from.
    #[serde(default)]
    pub lineage: Lineage,
    /// What devices may keep of the model's inputs, if anything.
    #[serde(default)]
    pub capture: Option<CaptureRules>,
}

/// Reads a spec.
///
/// # Errors
/// The first thing that is not understood, with its line.
pub fn spec_from_toml(text: &str) -> Result<Spec, toml::de::Error> {
    toml::from_str(text)
}

/// What to pack, and what to take instead of the spec's words.
#[derive(Debug, Clone, Default)]
pub struct PackRequest {
    /// `bundle.toml` or its folder.
    pub spec: PathBuf,
    /// Golden cases instead of the spec's.
    pub golden: Option<PathBuf>,
    /// Profile instead of the spec's.
    pub profile: Option<PathBuf>,
    /// Version instead of the spec's.
    pub version: Option<u64>,
    /// Rollback floor instead of the spec's.
    pub rollback_floor: Option<u64>,
}

impl PackRequest {
    /// Packs a spec as it stands.
    #[must_use]
    pub fn new(spec: impl Into<PathBuf>) -> Self {
        Self {
            spec: spec.into(),
            ..Self::default()
        }
    }
}

/// A packed bundle in its folder: `manifest.json`, `bundle.json`, `blobs/<sha256>`.
#[derive(Debug, Clone)]
pub struct PackedBundle {
    /// The folder.
    pub dir: PathBuf,
    /// The manifest.
    pub manifest: Manifest,
    /// The manifest's bytes, as hashed and signed.
    pub manifest_bytes: Vec<u8>,
    /// The entry that signed targets list.
    pub target: TargetEntry,
}

/// `bundle.json`.
#[derive(Debug, Serialize, Deserialize)]
struct BundleFile {
    schema: String,
    path: String,
    length: u64,
    sha256: Digest,
    custom: Value,
}

impl PackedBundle {
    /// Opens a packed bundle and checks that every file in it is what the manifest says.
    ///
    /// # Errors
    /// A file is missing, too long, or not what was packed.
    pub fn open(dir: &Path) -> Result<Self, PackError> {
        let damaged = |name: &str, problem: String| PackError::Damaged {
            path: dir.join(name),
            problem,
        };
        let text = files::read_text(&dir.join("bundle.json"), SPEC_MAX_BYTES)?;
        let file: BundleFile =
            serde_json::from_str(&text).map_err(|e| damaged("bundle.json", e.to_string()))?;
        if file.schema != BUNDLE_SCHEMA {
            let problem = format!("schema: expected {BUNDLE_SCHEMA:?}, got {:?}", file.schema);
            return Err(damaged("bundle.json", problem));
        }
        let manifest_path = dir.join("manifest.json");
        let manifest_bytes = files::read_bounded(&manifest_path, MANIFEST_MAX_BYTES as u64)?;
        let got = Digest::of(&manifest_bytes);
        if got != file.sha256 || manifest_bytes.len() as u64 != file.length {
            let problem = format!("SHA-256 is {got}, but bundle.json says {}", file.sha256);
            return Err(damaged("manifest.json", problem));
        }
        let manifest = Manifest::parse(&manifest_bytes)?;
        if manifest.target_path() != file.path {
            let problem = format!("path: expected {:?}", manifest.target_path());
            return Err(damaged("bundle.json", problem));
        }
        let target = TargetEntry {
            path: file.path,
            length: file.length,
            hashes: Hashes {
                sha256: Some(file.sha256),
                sha512: None,
            },
            custom: file.custom,
        };
        let custom =
            TargetCustom::read(&target).map_err(|e| damaged("bundle.json", e.to_string()))?;
        if (&custom.family, custom.version) != (&manifest.family, manifest.version) {
            let problem = "custom names another family or version than the manifest".to_owned();
            return Err(damaged("bundle.json", problem));
        }
        let bundle = Self {
            dir: dir.to_owned(),
            manifest,
            manifest_bytes,
            target,
        };
        for (digest, length, path) in bundle.blobs() {
            let bytes = files::read_bounded(&path, length)?;
            if Digest::of(&bytes) != digest || bytes.len() as u64 != length {
                let problem = format!("expected {length} bytes with SHA-256 {digest}");
                return Err(PackError::Damaged { path, problem });
            }
        }
        Ok(bundle)
    }

    /// What is uploaded: digest, length in bytes and file of each blob as it travels, each once.
    #[must_use]
    pub fn blobs(&self) -> Vec<(Digest, u64, PathBuf)> {
        let named = self.manifest.files.named();
        let mut all: Vec<_> = named
            .iter()
            .map(|(_, blob)| {
                let (digest, length) = blob.transport();
                (
                    digest,
                    length,
                    self.dir.join("blobs").join(digest.to_string()),
                )
            })
            .collect();
        all.sort();
        all.dedup();
        all
    }

    /// The model's file, unpacked.
    ///
    /// # Errors
    /// It cannot be read, or is not what the manifest says.
    pub fn model(&self) -> Result<Vec<u8>, PackError> {
        let blob = &self.manifest.files.model;
        let (digest, length) = blob.transport();
        let path = self.dir.join("blobs").join(digest.to_string());
        let bytes = files::read_bounded(&path, length)?;
        unpack(blob, bytes).map_err(|problem| PackError::Damaged { path, problem })
    }

    /// The bundle's digest: the SHA-256 of its manifest.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest_bytes)
    }
}

/// A file out of its bytes as they travel.
pub(crate) fn unpack(blob: &Blob, travels: Vec<u8>) -> Result<Vec<u8>, String> {
    let bytes = match &blob.packed {
        None => travels,
        Some(_) => {
            let mut bytes = Vec::new();
            let reader = zstd::stream::read::Decoder::new(&travels[..]);
            // One byte more shows that there is more than signed.
            let mut reader = reader.map_err(|e| e.to_string())?.take(blob.length + 1);
            let read = reader.read_to_end(&mut bytes);
            read.map_err(|e| format!("cannot be unpacked: {e}"))?;
            bytes
        }
    };
    let got = Digest::of(&bytes);
    if got != blob.sha256 {
        return Err(format!(
            "{} bytes with SHA-256 {got}, expected {}",
            bytes.len(),
            blob.sha256
        ));
    }
    Ok(bytes)
}

/// A file of the bundle while it is packed.
struct Part {
    name: &'static str,
    bytes: Vec<u8>,
    transport: Option<Vec<u8>>,
    blob: Blob,
}

impl Part {
    fn read(name: &'static str, path: &Path, max: u64) -> Result<Self, PackError> {
        let bytes = files::read_bounded(path, max)?;
        let level = if bytes.len() > SLOW_LEVEL_MAX_BYTES {
            6
        } else {
            19
        };
        let transport = zstd::bulk::compress(&bytes, level).ok();
        let transport = transport.filter(|packed| packed.len() < bytes.len());
        let blob = Blob {
            sha256: Digest::of(&bytes),
            length: bytes.len() as u64,
            packed: transport.as_ref().map(|packed| Packed {
                encoding: "zstd".to_owned(),
                sha256: Digest::of(packed),
                length: packed.len() as u64,
            }),
        };
        Ok(Self {
            name,
            bytes,
            transport,
            blob,
        })
    }
}

/// A spec with its files read and its manifest made.
struct Draft {
    manifest: Manifest,
    custom: TargetCustom,
    model_path: PathBuf,
    parts: Vec<Part>,
}

/// Packs a bundle into the new folder `out` after the device's engine met its golden cases.
/// Returns it with what the trial measured and what the model was mended by.
///
/// # Errors
/// Spec, golden cases, profile or model do not fit together, or the engine refuses the model.
/// Nothing is left in `out` then.
pub fn pack(request: &PackRequest, out: &Path) -> Result<(PackedBundle, Examined), PackError> {
    let occupied = out.exists() && fs::read_dir(out).is_ok_and(|mut d| d.next().is_some());
    if occupied {
        return Err(PackError::OutExists(out.to_owned()));
    }
    let draft = draft(request, true)?;
    let manifest_bytes = draft.manifest.to_bytes()?;
    let examined = trial(&draft, &manifest_bytes)?;
    let target = TargetEntry::of(draft.manifest.target_path(), &manifest_bytes, &draft.custom);
    let parent = match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    files::make_folder(parent)?;
    // Written beside and renamed, so that `out` is never half a bundle.
    let io = |error| FileError::Io {
        action: "cannot write",
        path: out.to_owned(),
        error,
    };
    let beside = tempfile::tempdir_in(parent).map_err(io)?;
    let blobs = beside.path().join("blobs");
    files::make_folder(&blobs)?;
    for part in &draft.parts {
        let (digest, _) = part.blob.transport();
        let bytes = part.transport.as_ref().unwrap_or(&part.bytes);
        files::write_whole(&blobs.join(digest.to_string()), bytes)?;
    }
    files::write_whole(&beside.path().join("manifest.json"), &manifest_bytes)?;
    let file = BundleFile {
        schema: BUNDLE_SCHEMA.to_owned(),
        path: target.path.clone(),
        length: target.length,
        sha256: Digest::of(&manifest_bytes),
        custom: target.custom.clone(),
    };
    let json = serde_json::to_vec_pretty(&file).map_err(|e| io(e.into()))?;
    files::write_whole(&beside.path().join("bundle.json"), &json)?;
    fs::set_permissions(beside.path(), fs::Permissions::from_mode(0o755)).map_err(io)?;
    fs::rename(beside.path(), out).map_err(io)?;
    // It has another name now: there is nothing to remove.
    let _ = beside.keep();
    let bundle = PackedBundle {
        dir: out.to_owned(),
        manifest: draft.manifest,
        manifest_bytes,
        target,
    };
    Ok((bundle, examined))
}

/// Stages a spec in a folder as a device would have it, without a profile.
///
/// # Errors
/// Spec, golden cases or model do not fit together.
pub(crate) fn staged(spec: &Path) -> Result<tempfile::TempDir, PackError> {
    let draft = draft(&PackRequest::new(spec), false)?;
    stage(&draft, &draft.manifest.to_bytes()?)
}

/// `with_profile`: with the one that the request or else the spec names.
fn draft(request: &PackRequest, with_profile: bool) -> Result<Draft, PackError> {
    let spec_path = match request.spec.is_dir() {
        true => request.spec.join("bundle.toml"),
        false => request.spec.clone(),
    };
    let bad = |problem: String| PackError::Spec {
        path: spec_path.clone(),
        problem,
    };
    let text = files::read_text(&spec_path, SPEC_MAX_BYTES)?;
    let spec = spec_from_toml(&text).map_err(|e| bad(e.to_string().trim_end().to_owned()))?;
    let folder = spec_path.parent().unwrap_or(Path::new("."));
    let version = request.version.unwrap_or(spec.version);
    let rollback_floor = request.rollback_floor.unwrap_or(spec.rollback_floor);
    check_takers(&spec.hardware, version, rollback_floor).map_err(bad)?;
    let model_path = folder.join(&spec.model);
    let golden_path = chosen(&request.golden, folder, &spec.golden);
    let profile_path = match (&request.profile, &spec.profile) {
        (Some(file), _) => Some(file.clone()),
        (None, Some(file)) => Some(folder.join(file)),
        (None, None) => None,
    };
    let profile_path = profile_path.filter(|_| with_profile);
    let card_path = spec.card.as_ref().map(|path| folder.join(path));
    let documents = [
        ("golden.json", Some(&golden_path)),
        ("profile.json", profile_path.as_ref()),
        ("card.md", card_path.as_ref()),
    ];
    let parts = read_parts(&model_path, documents)?;
    let blob = |name: &str| {
        parts
            .iter()
            .find(|p| p.name == name)
            .map(|p| p.blob.clone())
    };
    let missing = || bad("model and golden are needed".to_owned());
    let manifest = Manifest {
        schema: Manifest::SCHEMA.to_owned(),
        kind: spec.kind,
        family: spec.family,
        version,
        inputs: spec.inputs,
        outputs: spec.outputs,
        steps: spec.steps,
        application: spec.application,
        labels: spec.labels,
        limits: spec.limits,
        resources: spec.resources,
        lineage: spec.lineage,
        capture: spec.capture,
        files: Files {
            model: blob("model.onnx").ok_or_else(missing)?,
            golden: blob("golden.json").ok_or_else(missing)?,
            profile: blob("profile.json"),
            card: blob("card.md"),
        },
    };
    manifest.check()?;
    check_documents(&manifest, &parts, &golden_path, profile_path.as_deref())?;
    let custom = TargetCustom {
        family: manifest.family.clone(),
        version,
        hardware: spec.hardware,
        rollback_floor,
        kind: manifest.kind.clone(),
    };
    Ok(Draft {
        manifest,
        custom,
        model_path,
        parts,
    })
}

fn read_parts(
    model_path: &Path,
    documents: [(&'static str, Option<&PathBuf>); 3],
) -> Result<Vec<Part>, PackError> {
    let mut parts = vec![Part::read("model.onnx", model_path, BLOB_MAX_BYTES)?];
    for (name, path) in documents {
        if let Some(path) = path {
            parts.push(Part::read(name, path, DOCUMENT_MAX_BYTES)?);
        }
    }
    Ok(parts)
}

/// Refuses what no device would take.
fn check_takers(hardware: &[String], version: u64, rollback_floor: u64) -> Result<(), String> {
    if rollback_floor > version {
        return Err(format!(
            "rollback_floor {rollback_floor} is above version {version}: no device would take it"
        ));
    }
    if hardware.is_empty() {
        return Err("hardware is empty: no device would take it; expected names or \"any\"".into());
    }
    Ok(())
}

fn chosen(named: &Option<PathBuf>, folder: &Path, otherwise: &Path) -> PathBuf {
    match named {
        Some(file) => file.clone(),
        None => folder.join(otherwise),
    }
}

fn check_documents(
    manifest: &Manifest,
    parts: &[Part],
    golden: &Path,
    profile: Option<&Path>,
) -> Result<(), PackError> {
    for part in parts {
        match (part.name, profile) {
            ("golden.json", _) => {
                GoldenSet::parse(&part.bytes, manifest).map_err(|error| PackError::Golden {
                    path: golden.to_owned(),
                    error,
                })?;
            }
            ("profile.json", Some(path)) => {
                Profile::parse(&part.bytes, manifest).map_err(|error| PackError::Profile {
                    path: path.to_owned(),
                    error,
                })?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// The files in the layout that a device has them in.
fn stage(draft: &Draft, manifest_bytes: &[u8]) -> Result<tempfile::TempDir, PackError> {
    let slot = tempfile::tempdir().map_err(|error| FileError::Io {
        action: "cannot make",
        path: std::env::temp_dir(),
        error,
    })?;
    files::write_whole(&slot.path().join("manifest.json"), manifest_bytes)?;
    for part in &draft.parts {
        files::write_whole(&slot.path().join(part.name), &part.bytes)?;
    }
    Ok(slot)
}

/// Runs the golden cases as the device's worker will, over the same files.
fn trial(draft: &Draft, manifest_bytes: &[u8]) -> Result<Examined, PackError> {
    let slot = stage(draft, manifest_bytes)?;
    let path = slot.path().to_owned();
    let refused = |code: &str, detail: &str| PackError::Trial {
        model: draft.model_path.clone(),
        code: code.to_owned(),
        detail: detail.to_owned(),
    };
    // A thread of its own: a panic inside the engine is a refusal of the model, not of the tool.
    let run = std::thread::Builder::new()
        .name("trial".to_owned())
        .spawn(move || dunlin_agent::inference::golden::examine(&path));
    let examined = match run.map(std::thread::JoinHandle::join) {
        Ok(Ok(examined)) => examined,
        Ok(Err(_)) => return Err(refused("load", "the engine panicked on it (see above)")),
        Err(e) => return Err(refused("load", &format!("no thread: {e}"))),
    };
    match &examined.report {
        TrialReport::Failed { code, detail } if examined.mends.is_empty() => {
            Err(refused(code, detail))
        }
        TrialReport::Failed { code, detail } => {
            let mends = mends_text(&examined.mends);
            Err(refused(
                code,
                &format!("{detail} (mended to be loaded: {mends})"),
            ))
        }
        TrialReport::Passed { .. } => Ok(examined),
    }
}

/// What a model was mended by, as one line.
pub(crate) fn mends_text(mends: &[Mend]) -> String {
    let all: Vec<String> = mends.iter().map(ToString::to_string).collect();
    all.join("; ")
}

#[cfg(test)]
mod tests;
