//! `dunlin bundle export`: everything a device needs for one bundle, in one file.
//!
//! The archive is gathered as a device would gather it: the workflow is run, from the first root on,
//! and each file it asks for goes in. Nothing secret is in it, and it needs no signature of its own:
//! the device verifies what it holds. It is of use until the timestamp in it expires.

use crate::api::{ApiClient, ApiError};
use crate::args::ExportArgs;
use crate::context::Session;
use crate::failure::{Exit, Failure};
use crate::table::{self, bytes_text};
use dunlin_agent::bundle::Local;
use dunlin_agent::bundle::source::LocalError;
use dunlin_protocol::archive::{ArchiveError, Writer};
use dunlin_protocol::bundle::{Manifest, target_path};
use dunlin_protocol::id::{Digest, Family};
use dunlin_protocol::repository::RepositoryFile;
use dunlin_protocol::trust::{FileRequest, Lookup, Role, TrustError, TrustedSet};
use jiff::Timestamp;
use serde_json::json;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Seek as _, Write as _};
use std::path::{Path, PathBuf};

/// Why nothing was exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The server.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The folder.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// What the source has is not what a device takes.
    #[error("a device would refuse this: {0}")]
    Trust(#[from] TrustError),
    /// The file cannot be written.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A file that is asked for is not there.
    #[error("{0} is not there")]
    Missing(RepositoryFile),
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Signed metadata ask for a file that cannot be named.
    #[error(transparent)]
    Path(#[from] dunlin_protocol::repository::PathError),
    /// A manifest that says otherwise, or bytes that are not as signed.
    #[error("{0}")]
    Bundle(String),
}

impl From<ExportError> for Failure {
    fn from(error: ExportError) -> Self {
        Self::new(error.to_string())
    }
}

/// Where the files come from.
#[derive(Debug)]
pub enum Origin {
    /// A fleet server.
    Server(Box<ApiClient>),
    /// A folder, or another archive, with a repository's layout.
    Local(Local),
}

impl Origin {
    async fn read(
        &self,
        file: &RepositoryFile,
        max_bytes: u64,
    ) -> Result<Option<Vec<u8>>, ExportError> {
        match self {
            Self::Server(client) => Ok(client.repository_file(file, max_bytes).await?),
            Self::Local(local) => {
                let mut content = match local.open(file, 0) {
                    Err(LocalError::Absent { .. }) => return Ok(None),
                    other => other?,
                };
                if content.total_bytes() > max_bytes {
                    let problem = format!("{file}: longer than {max_bytes} bytes");
                    return Err(ExportError::Bundle(problem));
                }
                let mut bytes = Vec::new();
                std::io::copy(&mut content, &mut bytes).map_err(io(Path::new("")))?;
                Ok(Some(bytes))
            }
        }
    }

    /// Brings a large file to `to`, which is on disk.
    async fn fetch(&self, file: &RepositoryFile, to: &mut File) -> Result<u64, ExportError> {
        match self {
            Self::Server(client) => match client.download(file, to).await? {
                Some(length) => Ok(length),
                None => Err(ExportError::Missing(file.clone())),
            },
            Self::Local(local) => {
                let mut content = local.open(file, 0)?;
                Ok(std::io::copy(&mut content, to).map_err(io(Path::new("")))?)
            }
        }
    }

    async fn required(
        &self,
        request: &FileRequest,
    ) -> Result<(RepositoryFile, Vec<u8>), ExportError> {
        let file = RepositoryFile::metadata(&request.name)?;
        match self.read(&file, request.max_bytes).await? {
            Some(bytes) => Ok((file, bytes)),
            None => Err(ExportError::Missing(file)),
        }
    }
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> ExportError + use<> {
    let path = path.to_owned();
    move |source| ExportError::Io { path, source }
}

/// What was exported.
#[derive(Debug, Clone, PartialEq)]
pub struct Exported {
    /// Family of the bundle.
    pub family: Family,
    /// Its version.
    pub version: u64,
    /// Digest of its manifest.
    pub digest: Digest,
    /// Length of the archive, in bytes.
    pub bytes: u64,
    /// Files in it.
    pub files: usize,
    /// Until when a device takes it, unless it has seen newer metadata before.
    pub valid_until: Timestamp,
}

/// Small files by name, in the order of the archive, and the bundle's manifest.
struct Gathered {
    small: Vec<(RepositoryFile, Vec<u8>)>,
    manifest: Manifest,
    digest: Digest,
    valid_until: Timestamp,
}

/// Writes the archive of one bundle to `out`: in one step, once it is whole. `patches_from` are
/// versions whose models the device may have.
///
/// # Errors
/// [`ExportError`]
pub async fn export(
    origin: &Origin,
    family: &Family,
    version: Option<u64>,
    patches_from: &[u64],
    out: &Path,
    now: Timestamp,
    say: &mut impl FnMut(&str),
) -> Result<Exported, ExportError> {
    let mut gathered = gather(origin, family, version, now).await?;
    let mut large = blobs(&gathered.manifest);
    for from in patches_from {
        large.push(patch_from(origin, family, *from, &gathered.manifest, now).await?);
    }
    let part = out.with_extension("part");
    let file = File::create(&part).map_err(io(&part))?;
    let mut writer = Writer::new(BufWriter::with_capacity(1 << 20, file));
    let files = gathered.small.len() + large.len();
    for (name, bytes) in gathered.small.drain(..) {
        writer.add(&name, bytes.len() as u64, &mut &bytes[..])?;
    }
    let folder = out.parent().filter(|p| !p.as_os_str().is_empty());
    for (at, name) in large.iter().enumerate() {
        let mut held = tempfile::tempfile_in(folder.unwrap_or(Path::new("."))).map_err(io(out))?;
        let length = origin.fetch(name, &mut held).await?;
        held.rewind().map_err(io(out))?;
        writer.add(name, length, &mut held)?;
        say(&format!(
            "{} of {}: {name}, {}",
            at + 1,
            large.len(),
            bytes_text(length)
        ));
    }
    let mut written = writer.finish()?;
    written.flush().map_err(io(&part))?;
    let file = written
        .into_inner()
        .map_err(|e| io(&part)(e.into_error()))?;
    file.sync_all().map_err(io(&part))?;
    let bytes = file.metadata().map_err(io(&part))?.len();
    std::fs::rename(&part, out).map_err(io(out))?;
    Ok(Exported {
        family: family.clone(),
        version: gathered.manifest.version,
        digest: gathered.digest,
        bytes,
        files,
        valid_until: gathered.valid_until,
    })
}

/// The blobs as they travel, each once.
fn blobs(manifest: &Manifest) -> Vec<RepositoryFile> {
    let named = manifest.files.named();
    let digests: BTreeSet<Digest> = named.iter().map(|(_, blob)| blob.transport().0).collect();
    digests.into_iter().map(RepositoryFile::Blob).collect()
}

async fn patch_from(
    origin: &Origin,
    family: &Family,
    version: u64,
    to: &Manifest,
    now: Timestamp,
) -> Result<RepositoryFile, ExportError> {
    let base = gather(origin, family, Some(version), now).await?;
    Ok(RepositoryFile::Patch {
        from: base.manifest.files.model.sha256,
        to: to.files.model.sha256,
    })
}

/// Runs the device's workflow and keeps every file that it asks for.
async fn gather(
    origin: &Origin,
    family: &Family,
    version: Option<u64>,
    now: Timestamp,
) -> Result<Gathered, ExportError> {
    let mut small = Vec::new();
    let mut set = roots(origin, now, &mut small).await?;
    let timestamp = FileRequest {
        name: Role::Timestamp.file_name(0, true),
        max_bytes: Role::Timestamp.max_bytes() as u64,
    };
    let (file, bytes) = origin.required(&timestamp).await?;
    let _ = set.update_timestamp(&bytes)?;
    small.push((file, bytes));
    let valid_until = set.timestamp()?.expires;
    if let Some(request) = set.snapshot_to_fetch()? {
        let (file, bytes) = origin.required(&request).await?;
        set.update_snapshot(&bytes)?;
        small.push((file, bytes));
    }
    if let Some(request) = set.targets_to_fetch()? {
        let (file, bytes) = origin.required(&request).await?;
        set.update_targets(&bytes)?;
        small.push((file, bytes));
    }
    let version = version.or_else(|| newest(&set, family)).ok_or_else(|| {
        ExportError::Bundle(format!(
            "top-level targets list no bundle of family {family}: give --bundle-version"
        ))
    })?;
    let path = target_path(family, version);
    let found = loop {
        match set.find(&path)? {
            Lookup::Found(found) => break found,
            Lookup::Needs(needed) => {
                let (file, bytes) = origin.required(&needed.request).await?;
                set.update_delegated(&needed, &bytes)?;
                small.push((file, bytes));
            }
        }
    };
    let digest = found.get().sha256()?;
    let file = RepositoryFile::target(&found.get().consistent_path())?;
    let bytes = origin.read(&file, found.get().length).await?;
    let bytes = bytes.ok_or_else(|| ExportError::Missing(file.clone()))?;
    let manifest = found.open_manifest(&bytes)?.into_inner();
    small.push((file, bytes));
    Ok(Gathered {
        small,
        manifest,
        digest,
        valid_until,
    })
}

/// Every root from the first on: nobody knows which of them a device has.
async fn roots(
    origin: &Origin,
    now: Timestamp,
    small: &mut Vec<(RepositoryFile, Vec<u8>)>,
) -> Result<TrustedSet, ExportError> {
    let first = FileRequest {
        name: Role::Root.file_name(1, true),
        max_bytes: Role::Root.max_bytes() as u64,
    };
    let (file, bytes) = origin.required(&first).await?;
    let mut set = TrustedSet::from_root(&bytes, now)?;
    small.push((file, bytes));
    loop {
        let request = set.root_to_fetch();
        let file = RepositoryFile::metadata(&request.name)?;
        let Some(bytes) = origin.read(&file, request.max_bytes).await? else {
            break;
        };
        let _ = set.update_root(&bytes)?;
        small.push((file, bytes));
    }
    set.finish_root()?;
    Ok(set)
}

fn newest(set: &TrustedSet, family: &Family) -> Option<u64> {
    let listed = set.targets().ok()?.targets.keys();
    let versions = listed.filter_map(|path| {
        let mut levels = path.split('/');
        let of_family = levels.next() == Some(family.as_str());
        of_family.then(|| levels.next()?.parse().ok()).flatten()
    });
    versions.max()
}

/// `dunlin bundle export`.
///
/// # Errors
/// What could not be done, as one line.
pub async fn run(args: &ExportArgs, shared: &crate::args::Shared) -> Result<Exit, Failure> {
    let (origin, is_json) = match &args.from {
        Some(path) => {
            let local = Local::open_path(path).map_err(ExportError::from)?;
            (Origin::Local(local), shared.json)
        }
        None => {
            let session = Session::open(shared)?;
            let is_json = session.json;
            (Origin::Server(Box::new(session.client)), is_json)
        }
    };
    let mut say = |line: &str| {
        if !is_json {
            table::print_line(line);
        }
    };
    let exported = export(
        &origin,
        &args.family,
        args.version,
        &args.patch_from,
        &args.out,
        Timestamp::now(),
        &mut say,
    );
    let done = exported.await?;
    if is_json {
        table::print_json(&json!({
            "out": args.out, "family": done.family, "version": done.version,
            "digest": done.digest, "bytes": done.bytes, "files": done.files,
            "valid_until": done.valid_until.to_string(),
        }));
    } else {
        table::print_line(&format!(
            "{} version {} in {}: {} files, {}\na device accepts it until {}, unless it has seen newer metadata before",
            done.family,
            done.version,
            args.out.display(),
            done.files,
            bytes_text(done.bytes),
            done.valid_until
        ));
    }
    Ok(Exit::Done)
}
