//! Publishing: what people signed is checked just as devices will check it, then tied together.

use super::error::{RepositoryError, Result, VersionTaken, trust};
use super::online::{List, Lists, Online};
use super::{Published, PublishedBundle, Repository};
use crate::blobs::{BlobError, Blobs};
use crate::files::{self, PUBLIC};
use dunlin_protocol::bundle::MANIFEST_MAX_BYTES;
use dunlin_protocol::id::{Digest, Family};
use dunlin_protocol::trust::{
    Delegations, Envelope, FoundTarget, Lookup, Metadata as _, Role, RoleKeys, RoleName,
    RootMetadata, TARGETS_MAX_BYTES, TargetCustom, TargetsMetadata, TrustError, TrustedSet,
};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// What is to be published.
#[derive(Debug, Clone, Default)]
pub struct Submission {
    /// The top-level targets metadata, exactly as signed.
    pub targets: Option<Vec<u8>>,
    /// Metadata of delegated roles by their names, exactly as signed.
    pub delegated: BTreeMap<String, Vec<u8>>,
    /// Manifests that are not here yet, exactly as hashed.
    pub manifests: Vec<Vec<u8>>,
}

/// Everything about the roles that targets delegate to, as far as their lists are here.
struct Delegated {
    /// By role: its delegator's keys and the keys and threshold for it.
    by: BTreeMap<RoleName, (Delegations, RoleKeys)>,
}

/// The same lists, trusted at two times.
#[derive(Clone, Copy)]
struct Sets<'a> {
    /// As devices trust them now.
    now: &'a TrustedSet,
    /// Whatever has expired since they were signed.
    timeless: &'a TrustedSet,
}

impl Repository {
    /// Publishes signed lists of targets with the manifests that are not here yet.
    ///
    /// # Errors
    /// Whatever would make a device refuse it, a manifest or blob that is not here; nothing is
    /// published then.
    pub fn publish(
        &self,
        submission: &Submission,
        blobs: &Blobs,
        runtime: &tokio::runtime::Handle,
        now: Timestamp,
    ) -> Result<Published> {
        let _writing = self.lock();
        let before = self.lists()?;
        let (lists, sent) = self.merge(&before, submission)?;
        let mut set = self.trusted_root(now)?;
        set.finish_root().map_err(trust("root"))?;
        let root = set.root().clone();
        self.check_own_keys(&root)?;
        check_delegated(&lists, &sent, now)?;
        let online = self.sign_online(&root, &lists, now, false)?;
        self.load_history(&mut set)?;
        walk(&mut set, &online, &lists)?;
        let timeless = self.timeless(&online, &lists)?;
        let sets = Sets {
            now: &set,
            timeless: &timeless,
        };
        let published = self.collect(sets, &lists, &sent, &submission.manifests)?;
        runtime.block_on(check_blobs(blobs, &published))?;
        for bundle in &published.bundles {
            let path = self.targets.join(bundle.target.consistent_path());
            if let Some(folder) = path.parent() {
                files::make_private_folder(folder)?;
            }
            if files::read_bounded(&path, MANIFEST_MAX_BYTES)?.is_none() {
                files::write_atomic(&path, bundle.manifest_json.as_bytes(), PUBLIC)?;
            }
        }
        self.write(&online, &lists)?;
        Ok(published)
    }

    /// Every bundle that is published now, read back from disk and verified (whatever has
    /// expired since does not matter here).
    ///
    /// # Errors
    /// Metadata that cannot be read or do not verify.
    pub fn published(&self) -> Result<Option<Published>> {
        let lists = self.lists()?;
        if lists.is_empty() {
            return Ok(None);
        }
        // Time stands still at the earliest: what was valid when published is shown.
        let then = Timestamp::UNIX_EPOCH;
        let online = self.sign_online(&self.newest_root(then)?, &lists, then, false)?;
        let set = self.timeless(&online, &lists)?;
        let sets = Sets {
            now: &set,
            timeless: &set,
        };
        self.collect(sets, &lists, &BTreeSet::new(), &[]).map(Some)
    }

    /// What is trusted of these lists, whatever has expired since.
    fn timeless(&self, online: &Online, lists: &Lists) -> Result<TrustedSet> {
        let mut set = self.trusted_root(Timestamp::UNIX_EPOCH)?;
        set.finish_root().map_err(trust("root"))?;
        walk(&mut set, online, lists)?;
        Ok(set)
    }

    /// The lists after the submission, and the roles that it brought.
    fn merge(
        &self,
        before: &Lists,
        submission: &Submission,
    ) -> Result<(Lists, BTreeSet<RoleName>)> {
        let mut lists = before.clone();
        let mut sent = BTreeSet::new();
        let mut offered: Vec<(RoleName, &Vec<u8>)> = Vec::new();
        let targets = submission.targets.iter();
        offered.extend(targets.map(|bytes| (Role::Targets.into(), bytes)));
        for (name, bytes) in &submission.delegated {
            let role = RoleName::delegated(name);
            let role = role.ok_or_else(|| RepositoryError::NotDelegated { role: name.clone() })?;
            offered.push((role, bytes));
        }
        for (role, bytes) in offered {
            let envelope = Envelope::parse(bytes, TARGETS_MAX_BYTES).map_err(trust("targets"))?;
            let version = envelope.signed()["version"].as_u64().unwrap_or(0);
            if let Some(held) = before.get(&role)
                && (version < held.version || (version == held.version && held.bytes != *bytes))
            {
                return Err(RepositoryError::TargetsVersion {
                    role: role.as_str().to_owned(),
                    published: held.version,
                    got: version,
                });
            }
            let bytes = bytes.clone();
            lists.insert(role.clone(), List { version, bytes });
            sent.insert(role);
        }
        if sent.is_empty() {
            return Err(RepositoryError::Empty);
        }
        if !lists.contains_key(&RoleName::Top(Role::Targets)) {
            return Err(RepositoryError::NothingPublished);
        }
        Ok((lists, sent))
    }

    /// What devices hold now, as the base of their rollback checks.
    fn load_history(&self, set: &mut TrustedSet) -> Result<()> {
        let Some(versions) = self.online_versions()? else {
            return Ok(());
        };
        let timestamp = self.stored("timestamp.json")?.unwrap_or_default();
        let name = Role::Snapshot.file_name(versions.snapshot, true);
        let snapshot = self.stored(&name)?.unwrap_or_default();
        // Signed by keys that were rotated since: devices drop them as well.
        if let Err(error) = set.load_trusted_timestamp(&timestamp) {
            tracing::info!(%error, "the timestamp is no base for rollback checks");
        }
        if let Err(error) = set.load_trusted_snapshot(&snapshot) {
            tracing::info!(%error, "the snapshot is no base for rollback checks");
        }
        Ok(())
    }

    /// Opens the manifest of every target of every list that devices would take it from.
    fn collect(
        &self,
        sets: Sets<'_>,
        lists: &Lists,
        sent: &BTreeSet<RoleName>,
        manifests: &[Vec<u8>],
    ) -> Result<Published> {
        let mut brought: BTreeMap<Digest, &[u8]> = BTreeMap::new();
        brought.extend(manifests.iter().map(|m| (Digest::of(m), m.as_slice())));
        let mut unlisted: BTreeSet<Digest> = brought.keys().copied().collect();
        let mut collected = Collected::default();
        for (role, list) in reachable(lists) {
            // What is held of other roles counts against a cap; a device holds what it needs.
            let is_new = sent.contains(&role) || role == Role::Targets;
            // A team's list that expired while others publish is still what it signed: its bundles
            // stay listed, and devices take them again once it is signed anew.
            let mut set = if is_new { sets.now } else { sets.timeless }.clone();
            let envelope = Envelope::parse(&list.bytes, TARGETS_MAX_BYTES);
            let listed = envelope
                .and_then(|e| TargetsMetadata::read(&e))
                .map_err(trust("targets"))?;
            for path in listed.targets.keys() {
                let found = match find(&mut set, path, lists, &role) {
                    Ok(found) => found,
                    Err(error) if is_new => return Err(error),
                    // Published before, and shut out since, on purpose: a key was revoked, or the
                    // delegation narrowed. Devices do not take it either.
                    Err(error) => {
                        tracing::warn!(%error, role = role.as_str(), path, "not listed any more");
                        continue;
                    }
                };
                let digest = found.sha256().map_err(trust("targets"))?;
                unlisted.remove(&digest);
                let bytes = match brought.get(&digest) {
                    Some(bytes) => bytes.to_vec(),
                    None => self.target_file(&found.consistent_path())?.ok_or_else(|| {
                        RepositoryError::ManifestMissing {
                            path: path.clone(),
                            sha256: digest,
                        }
                    })?,
                };
                collected.add(open_bundle(found, &role, digest, bytes)?, sent)?;
            }
        }
        match unlisted.first() {
            Some(digest) => Err(RepositoryError::ManifestUnlisted(*digest)),
            None => Ok(Published {
                targets_version: sets.now.targets().map_err(trust("targets"))?.version,
                bundles: collected.bundles,
            }),
        }
    }
}

/// Bundles of all lists, one of each version of a family.
#[derive(Default)]
struct Collected {
    bundles: Vec<PublishedBundle>,
    by_version: BTreeMap<(Family, u64), usize>,
}

impl Collected {
    /// Takes a bundle in. If another one has its version, what is sent now is at fault; top-level
    /// targets alone may take a version from a team.
    fn add(&mut self, bundle: PublishedBundle, sent: &BTreeSet<RoleName>) -> Result<()> {
        let version = (bundle.custom.family.clone(), bundle.custom.version);
        let index = *self.by_version.entry(version).or_insert(self.bundles.len());
        let Some(first) = self.bundles.get(index) else {
            self.bundles.push(bundle);
            return Ok(());
        };
        if first.digest == bundle.digest {
            self.bundles.push(bundle);
            return Ok(());
        }
        let was_sent = |b: &PublishedBundle| sent.iter().any(|role| role.as_str() == b.role);
        let is_top = |b: &PublishedBundle| b.role == Role::Targets.as_str();
        let (fault, other) = match was_sent(&bundle) {
            true => (&bundle, first),
            false if was_sent(first) && !is_top(first) => (first, &bundle),
            false => {
                tracing::warn!(
                    role = bundle.role,
                    path = bundle.target.path,
                    instead_of = first.target.path,
                    "passed over: another bundle has this version of the family"
                );
                return Ok(());
            }
        };
        Err(RepositoryError::VersionTaken(Box::new(VersionTaken {
            role: fault.role.clone(),
            path: fault.target.path.clone(),
            family: fault.custom.family.clone(),
            version: fault.custom.version,
            other_role: other.role.clone(),
            other_path: other.target.path.clone(),
        })))
    }
}

/// A device's workflow, from what is trusted to what is about to be published.
fn walk(set: &mut TrustedSet, online: &Online, lists: &Lists) -> Result<()> {
    let _ = set
        .update_timestamp(&online.timestamp)
        .map_err(trust("timestamp"))?;
    set.update_snapshot(&online.snapshot)
        .map_err(trust("snapshot"))?;
    let targets = lists.get(&RoleName::Top(Role::Targets));
    let targets = targets.ok_or(RepositoryError::NothingPublished)?;
    set.update_targets(&targets.bytes).map_err(trust("targets"))
}

/// A device's search for `path`, which must end in `role`.
fn find(set: &mut TrustedSet, path: &str, lists: &Lists, role: &RoleName) -> Result<FoundTarget> {
    let out_of_scope = |problem: String| RepositoryError::OutOfScope {
        role: role.as_str().to_owned(),
        path: path.to_owned(),
        problem,
    };
    loop {
        match set.find(path) {
            Ok(Lookup::Found(found)) if found.role() == *role => return Ok(found),
            Ok(Lookup::Found(found)) => {
                return Err(out_of_scope(format!("{} decides it first", found.role())));
            }
            Ok(Lookup::Needs(file)) => {
                let list = lists.get(file.role());
                let bytes = list.map(|l| l.bytes.as_slice()).unwrap_or_default();
                set.update_delegated(&file, bytes)
                    .map_err(trust("delegated targets"))?;
            }
            Err(TrustError::UnknownTarget { .. }) => {
                let problem = "no delegation leads from targets to this path there";
                return Err(out_of_scope(problem.to_owned()));
            }
            Err(error) => return Err(trust("delegated targets")(error)),
        }
    }
}

/// Lists in reach of the top-level one, that one first.
fn reachable(lists: &Lists) -> Vec<(RoleName, &List)> {
    let top = RoleName::Top(Role::Targets);
    let mut all: Vec<(RoleName, &List)> = Vec::new();
    all.extend(lists.get(&top).map(|list| (top, list)));
    let delegated = Delegated::of(lists);
    let roles = delegated.by.keys();
    all.extend(roles.filter_map(|role| Some((role.clone(), lists.get(role)?))));
    all
}

/// Who signs for each role that is delegated to, directly or by another such role.
pub(super) fn delegated_keys(lists: &Lists) -> Vec<(RoleName, RoleKeys)> {
    let delegated = Delegated::of(lists).by.into_iter();
    delegated.map(|(role, (_, keys))| (role, keys)).collect()
}

impl Delegated {
    fn of(lists: &Lists) -> Self {
        let mut by: BTreeMap<RoleName, (Delegations, RoleKeys)> = BTreeMap::new();
        let mut open = vec![RoleName::Top(Role::Targets)];
        while let Some(delegator) = open.pop() {
            let Some(list) = lists.get(&delegator) else {
                continue;
            };
            let envelope = Envelope::parse(&list.bytes, TARGETS_MAX_BYTES);
            let read = envelope.and_then(|e| TargetsMetadata::read(&e));
            let Some(delegations) = read.ok().and_then(|m| m.delegations) else {
                continue;
            };
            // Hash bins are found by the lists that are here: there may be 2^32 of them.
            for role in lists.keys().filter(|r| matches!(r, RoleName::Delegated(_))) {
                let Some(keys) = delegations.keys_of(role.as_str()) else {
                    continue;
                };
                if !by.contains_key(role) {
                    by.insert(role.clone(), (delegations.clone(), keys.clone()));
                    open.push(role.clone());
                }
            }
        }
        Self { by }
    }
}

/// Refuses sent lists of roles that nobody delegates to, that too few of the delegator's keys
/// signed, or that have expired: also those that list nothing yet.
fn check_delegated(lists: &Lists, sent: &BTreeSet<RoleName>, now: Timestamp) -> Result<()> {
    let delegated = Delegated::of(lists);
    for role in sent.iter().filter(|r| **r != Role::Targets) {
        let not = || RepositoryError::NotDelegated {
            role: role.as_str().to_owned(),
        };
        let (delegations, keys) = delegated.by.get(role).ok_or_else(not)?;
        let list = lists.get(role).ok_or_else(not)?;
        let check = || {
            let envelope = Envelope::parse(&list.bytes, TARGETS_MAX_BYTES)?;
            let metadata = TargetsMetadata::read(&envelope)?;
            // The rule of the threshold of unique keys is root's; only the names differ.
            let delegator = RootMetadata {
                version: metadata.version,
                expires: metadata.expires,
                consistent_snapshot: true,
                keys: delegations.keys.clone(),
                roles: BTreeMap::from([(Role::Targets, keys.clone())]),
            };
            delegator.verify(Role::Targets, &envelope)?;
            metadata.check_expiry(role, now)
        };
        check().map_err(trust("delegated targets"))?;
    }
    Ok(())
}

fn open_bundle(
    found: FoundTarget,
    role: &RoleName,
    digest: Digest,
    bytes: Vec<u8>,
) -> Result<PublishedBundle> {
    let entry = found.get().clone();
    let custom = TargetCustom::read(&entry).map_err(trust("targets"))?;
    let family = entry.path.split_once('/').map(|(family, _)| family);
    if found.is_delegated() && family != Some(custom.family.as_str()) {
        return Err(RepositoryError::OutOfScope {
            role: role.as_str().to_owned(),
            path: entry.path,
            problem: format!("it is signed as family {}", custom.family),
        });
    }
    let manifest = found
        .open_manifest(&bytes)
        .map_err(trust("manifest"))?
        .into_inner();
    let manifest_json = String::from_utf8(bytes).map_err(|e| RepositoryError::Trust {
        what: "manifest",
        source: TrustError::BadManifest {
            path: entry.path.clone(),
            reason: e.to_string(),
        },
    })?;
    Ok(PublishedBundle {
        target: entry,
        digest,
        custom,
        role: role.as_str().to_owned(),
        manifest,
        manifest_json,
    })
}

async fn check_blobs(blobs: &Blobs, published: &Published) -> Result<()> {
    let mut wanted = BTreeMap::new();
    for bundle in &published.bundles {
        for (name, blob) in bundle.manifest.files.named() {
            let (digest, length) = blob.transport();
            wanted.insert(
                digest,
                (length, format!("{} of {}", name, bundle.target.path)),
            );
        }
    }
    let mut missing = Vec::new();
    for (digest, (length, name)) in wanted {
        match blobs.length(&digest).await? {
            Some(got) if got == length => {}
            Some(got) => {
                let problem = format!("{name}: {got} bytes are stored, the manifest says {length}");
                return Err(BlobError::Damaged { digest, problem }.into());
            }
            None => missing.push(format!("{digest} ({name})")),
        }
    }
    match missing.is_empty() {
        true => Ok(()),
        false => Err(RepositoryError::BlobsMissing(missing)),
    }
}
