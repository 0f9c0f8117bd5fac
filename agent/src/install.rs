//! `dunlin-agent install`: a bundle from a file or a folder, for devices that no network reaches.
//!
//! What is wanted is found out and verified first, by the whole TUF cycle on a copy of the device's
//! trust, so that a bad archive is refused while somebody still stands there. Then the archive goes
//! into the [`Inbox`], where the supervisor verifies it again and installs it like any other bundle.

use crate::bundle::receive::ram_of_others;
use crate::bundle::source::Source;
use crate::bundle::{Local, TrustStore, UpdateError, host_facts, receive, stage, verify};
use crate::clock::Clock;
use crate::config::Settings;
use crate::device::{ByHand, MODELS_MAX, Phase, State};
use crate::files::{Disk, FileError};
use crate::identity::Identity;
use crate::inbox::{Inbox, Request};
use crate::ledger::Ledger;
use anyhow::{Context as _, bail};
use dunlin_protocol::archive::Writer;
use dunlin_protocol::bundle::{Manifest, check_fit, target_path};
use dunlin_protocol::command::{DesiredBundle, Probation};
use dunlin_protocol::id::{Digest, Family};
use dunlin_protocol::report::Progress;
use dunlin_protocol::repository::RepositoryFile;
use dunlin_protocol::trust::Verified;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often the ledger is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Wish {
    /// Archive, or folder of the same layout.
    pub from: PathBuf,
    /// The family, if there are several.
    pub family: Option<Family>,
    /// The version; without it the newest that is there.
    pub version: Option<u64>,
    /// What it must go through before it is kept.
    pub probation: Probation,
}

/// The probation of a bundle brought by hand: `inferences` answered and `time_s` served. A deadline
/// that comes before that time would only ever roll back.
#[must_use]
pub fn probation(inferences: u64, time_s: u64) -> Probation {
    let usual = Probation::default();
    let time_ms = time_s.saturating_mul(1000);
    Probation {
        inferences,
        time_ms,
        deadline_ms: usual.deadline_ms.max(time_ms.saturating_mul(2)),
        ..usual
    }
}

/// What is in an archive, verified.
struct Found {
    want: DesiredBundle,
    manifest: Verified<Manifest>,
    /// The files to keep.
    files: Vec<RepositoryFile>,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It is kept, or was already.
    Succeeded,
    /// Refused, failed or rolled back, in words.
    Failed(String),
    /// The server wants something else by now.
    Superseded,
    /// Not within the time that was given.
    StillUnderWay,
}

/// Verifies the wish and puts it into the inbox; `say` is told what happens.
///
/// # Errors
/// Not enrolled, an archive that the device refuses, or no room for it.
pub async fn submit(
    settings: &Settings,
    wish: &Wish,
    say: &mut impl FnMut(&str),
) -> anyhow::Result<Request> {
    let disk = Disk::native();
    Identity::load(&settings.state_dir)?
        .context("this device is not enrolled: without its fleet's trust root nothing is taken")?;
    let local = Local::open_path(&wish.from).with_context(|| {
        let uid = rustix::process::geteuid().as_raw();
        format!("{}, read as user {uid}", wish.from.display())
    })?;
    let found = examine(&disk, settings, wish, &local).await?;
    let Manifest {
        family, version, ..
    } = found.manifest.get();
    say(&format!(
        "{family} version {version}: signatures, floors and hardware are right"
    ));

    let mut bytes = 0;
    for file in &found.files {
        bytes += local.open(file, 0)?.total_bytes();
    }
    let free = disk.free_bytes(&settings.state_dir)?;
    let unpacked = to_unpack(&disk, &settings.state_dir, found.manifest.get())?;
    let needed = bytes
        .saturating_add(unpacked)
        .saturating_add(receive::DISK_RESERVE_BYTES);
    if free < needed {
        bail!(
            "{needed} bytes of free disk are needed in {}, there are {free}: {bytes} for the \
             archive, {unpacked} to unpack it beside, {} in reserve",
            settings.state_dir.display(),
            receive::DISK_RESERVE_BYTES
        );
    }
    let inbox = Inbox::new(&disk, &settings.state_dir);
    let request = inbox.put(&found.want, |out| {
        let mut writer = Writer::new(out);
        for file in &found.files {
            let mut content = local.open(file, 0).map_err(anyhow::Error::from)?;
            writer.add(file, content.total_bytes(), &mut content)?;
        }
        writer.finish()?;
        anyhow::Ok(())
    })?;
    say(&format!("{bytes} bytes copied, waiting for the agent"));
    Ok(request)
}

/// Bytes that the agent takes for the blobs while it fetches and unpacks them from the archive; what
/// it has already takes none.
fn to_unpack(disk: &Disk, state_dir: &Path, manifest: &Manifest) -> Result<u64, FileError> {
    let (mut seen, mut sum) = (BTreeSet::new(), 0_u64);
    for (_, blob) in manifest.files.named() {
        let held = state_dir.join("blobs").join(blob.sha256.to_string());
        if seen.insert(blob.sha256) && disk.look(&held)?.is_none() {
            let packed = blob.packed.as_ref().map_or(0, |packed| packed.length);
            sum = sum.saturating_add(blob.length).saturating_add(packed);
        }
    }
    Ok(sum)
}

/// One TUF cycle against a copy of what the device trusts, and the manifest.
async fn examine(
    disk: &Disk,
    settings: &Settings,
    wish: &Wish,
    local: &Local,
) -> anyhow::Result<Found> {
    let source = Source::Local(local.clone());
    let files = local.files()?;
    let (family, version) = choose(wish, &files)?;
    // The supervisor may be at work on the real one.
    let scratch = tempfile_in(settings)?;
    let trust = TrustStore::new(disk, settings.state_dir.as_path()).copy_to(&scratch.0)?;
    let now = Clock::open(&settings.state_dir).now();
    let mut set = verify::refresh(&source, &trust, now)
        .await
        .map_err(refused)?;
    let path = target_path(&family, version);
    let signed = verify::find_target(&source, trust.metadata(), &mut set, &path).await;
    let digest = signed.map_err(refused)?.sha256()?;
    let want = DesiredBundle {
        family,
        version,
        target: path,
        digest,
        rollout: None,
        probation: wish.probation,
        asked: None,
    };
    let target = verify::select(&source, &mut set, &trust, &want, &settings.hardware)
        .await
        .map_err(refused)?;
    let signed = RepositoryFile::target(&target.entry().consistent_path())?;
    let length = target.entry().length;
    let bytes = source.read(&signed, length).await?;
    let bytes = bytes.with_context(|| format!("{}: holds no {signed}", wish.from.display()))?;
    let manifest = target
        .open_manifest(&bytes)
        .map_err(UpdateError::from)
        .map_err(refused)?;
    let mut host = host_facts(
        disk,
        &settings.state_dir,
        settings.inference.memory_limit_mib,
    );
    let models_dir = stage::models_dir(&settings.state_dir);
    let others = ram_of_others(disk, &models_dir, &want.family);
    host.ram_bytes = host.ram_bytes.saturating_sub(others);
    check_fit(manifest.get(), &host).map_err(|e| {
        anyhow::anyhow!(
            "this device cannot run {} version {}: it {e}",
            want.family,
            want.version
        )
    })?;
    let files = needed(files, &signed, manifest.get());
    Ok(Found {
        want,
        manifest,
        files,
    })
}

fn refused(error: UpdateError) -> anyhow::Error {
    anyhow::anyhow!("refused ({}): {}", error.code, error.detail)
}

/// Of all files those that this bundle needs: every metadata file, its manifest, its blobs, and
/// patches that lead to its model.
fn needed(
    files: Vec<RepositoryFile>,
    signed: &RepositoryFile,
    manifest: &Manifest,
) -> Vec<RepositoryFile> {
    let named = manifest.files.named();
    let blobs: BTreeSet<Digest> = named.iter().map(|(_, blob)| blob.transport().0).collect();
    let model = manifest.files.model.sha256;
    let is_needed = |file: &RepositoryFile| match file {
        RepositoryFile::Metadata(_) => true,
        RepositoryFile::Target(_) => file == signed,
        RepositoryFile::Blob(digest) => blobs.contains(digest),
        RepositoryFile::Patch { to, .. } => *to == model,
    };
    files.into_iter().filter(is_needed).collect()
}

/// Family and version, from the wish and from the manifests that are there.
fn choose(wish: &Wish, files: &[RepositoryFile]) -> anyhow::Result<(Family, u64)> {
    let parsed = files.iter().filter_map(|file| {
        let RepositoryFile::Target(path) = file else {
            return None;
        };
        let mut levels = path.split('/');
        let family: Family = levels.next()?.parse().ok()?;
        Some((family, levels.next()?.parse::<u64>().ok()?))
    });
    let there: BTreeSet<(Family, u64)> = parsed.collect();
    let families: BTreeSet<&Family> = there.iter().map(|(family, _)| family).collect();
    let in_words = || {
        let names = there
            .iter()
            .map(|(family, version)| format!("{family} version {version}"));
        let names = names.collect::<Vec<_>>().join(", ");
        format!(
            "{} holds {}",
            wish.from.display(),
            if names.is_empty() {
                "no bundle"
            } else {
                &names
            }
        )
    };
    let family = match (&wish.family, families.first()) {
        (Some(family), _) => family.clone(),
        (None, Some(only)) if families.len() == 1 => (*only).clone(),
        (None, _) => bail!("{}: say which with --family", in_words()),
    };
    let of_family = there.iter().filter(|(f, _)| *f == family).map(|(_, v)| *v);
    let version = match wish.version {
        Some(version) => of_family.into_iter().find(|v| *v == version),
        None => of_family.max(),
    };
    version
        .map(|version| (family, version))
        .with_context(in_words)
}

/// A folder that goes when the value does, or with the next call.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = Disk::native().remove_tree(&self.0);
    }
}

fn tempfile_in(settings: &Settings) -> anyhow::Result<Scratch> {
    let path = settings.state_dir.join("inbox/check");
    let disk = Disk::native();
    disk.remove_tree(&path)?;
    disk.create_private_dir(&path)?;
    Ok(Scratch(path))
}

/// Waits until the supervisor is done with a request; `say` is told every new step.
///
/// # Errors
/// The ledger cannot be read.
pub async fn outcome(
    settings: &Settings,
    request: &Request,
    limit: Duration,
    say: &mut impl FnMut(&str),
) -> anyhow::Result<Outcome> {
    let ledger = Ledger::new(&Disk::native(), &settings.state_dir);
    let end = tokio::time::Instant::now() + limit;
    let mut told = String::new();
    loop {
        let seen = match ledger.load()? {
            Some(state) => look(&state, request),
            None => Seen::Step("waiting for the agent".to_owned()),
        };
        match seen {
            Seen::End(outcome) => return Ok(outcome),
            Seen::Step(step) if step != told => {
                say(&step);
                told = step;
            }
            Seen::Step(_) => {}
        }
        if tokio::time::Instant::now() >= end {
            return Ok(Outcome::StillUnderWay);
        }
        tokio::time::sleep(LOOK).await;
    }
}

enum Seen {
    Step(String),
    End(Outcome),
}

/// What a persisted state says of a request.
fn look(state: &State, request: &Request) -> Seen {
    if state.install.as_ref() != Some(&request.id) {
        return Seen::Step("waiting for the agent".to_owned());
    }
    let Some(model) = state.models.get(&request.want.family) else {
        let detail = format!("this device runs {MODELS_MAX} other model families, and no more");
        return Seen::End(Outcome::Failed(detail));
    };
    if let Some(ByHand::GaveWay { failure: f }) = &model.by_hand {
        return Seen::End(Outcome::Failed(format!("{}: {}", f.code, f.detail)));
    }
    let target = model.target.as_ref().map(|target| target.digest);
    if target != Some(request.want.digest) {
        return Seen::End(Outcome::Superseded);
    }
    let step = match &model.phase {
        Phase::Idle { last } => match last {
            Progress::Succeeded => return Seen::End(Outcome::Succeeded),
            Progress::Refused(f) | Progress::Failed(f) | Progress::RolledBack(f) => {
                return Seen::End(Outcome::Failed(format!("{}: {}", f.code, f.detail)));
            }
            _ => "waiting",
        },
        Phase::Receiving { .. } => "verifying and staging",
        Phase::Trial { .. } => "golden cases",
        Phase::Shadow { .. } => "in the shadow of the version that serves",
        Phase::Waiting { .. } => "staged, waits until it may be activated",
        Phase::Probation { .. } => "on probation",
        Phase::RollingBack { .. } => "going back",
    };
    Seen::Step(step.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn file(path: &str) -> RepositoryFile {
        let hash = Digest::of(path.as_bytes());
        RepositoryFile::target(&format!("{path}/{hash}.manifest.json")).unwrap()
    }

    fn wish(family: Option<&str>, version: Option<u64>) -> Wish {
        Wish {
            from: PathBuf::from("stick.tar"),
            family: family.map(|f| f.parse().unwrap()),
            version,
            probation: Probation::default(),
        }
    }

    #[test]
    fn a_probation_by_hand_can_always_be_passed() {
        let usual = Probation::default();
        assert_eq!(probation(usual.inferences, usual.time_ms / 1000), usual);
        let week_s = 7 * 86_400;
        let long = probation(5, week_s);
        assert_eq!((long.inferences, long.time_ms), (5, week_s * 1000));
        assert_eq!(long.deadline_ms, 2 * long.time_ms);
        assert_eq!(probation(5, u64::MAX).deadline_ms, u64::MAX);
    }

    #[test]
    fn the_newest_of_the_only_family_is_meant() {
        let digits = [file("digits/9"), file("digits/10")];
        let chosen = |wish: &Wish, files: &[RepositoryFile]| {
            choose(wish, files).map(|(f, v)| (f.to_string(), v))
        };
        let of = |version| ("digits".to_owned(), version);
        assert_eq!(chosen(&wish(None, None), &digits).unwrap(), of(10));
        assert_eq!(chosen(&wish(None, Some(9)), &digits).unwrap(), of(9));
        let problem =
            |wish, files: &[RepositoryFile]| choose(&wish, files).unwrap_err().to_string();
        let why = problem(wish(None, Some(8)), &digits);
        assert_eq!(why, "stick.tar holds digits version 9, digits version 10");
        let both = [file("digits/9"), file("faces/1")];
        assert!(problem(wish(None, None), &both).contains("--family"));
        assert_eq!(chosen(&wish(Some("digits"), None), &both).unwrap(), of(9));
        assert!(problem(wish(None, None), &[]).contains("holds no bundle"));
    }
}
