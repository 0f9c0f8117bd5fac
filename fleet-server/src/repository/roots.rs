//! The chain of roots, and what follows from its newest link.

use super::Repository;
use super::error::{RepositoryError, Result, trust};
use super::names::root_name;
use crate::files::{self, PUBLIC};
use dunlin_protocol::trust::{
    Envelope, Metadata as _, Role, RootMetadata, SNAPSHOT_MAX_BYTES, TrustedSet,
};
use jiff::Timestamp;
use std::sync::PoisonError;

impl Repository {
    /// Sets the first trust root, or the next one. The same again is no error.
    ///
    /// # Errors
    /// As [`Self::put_roots`].
    pub fn put_root(&self, bytes: &[u8], now: Timestamp) -> Result<u64> {
        self.put_roots(&[bytes.to_vec()], now)
    }

    /// Sets a chain of roots: those that are here already are passed over. Only the last must be
    /// valid now and list this server's keys; the others are its history.
    ///
    /// If the last one withdraws online keys, snapshot and timestamp are signed by the next ones at
    /// once, with higher versions.
    ///
    /// # Errors
    /// Not trusted (the first by itself, a later one by the chain), expired, or it does not list
    /// this server's online keys; nothing is set then.
    pub fn put_roots(&self, chain: &[Vec<u8>], now: Timestamp) -> Result<u64> {
        let _writing = self.lock();
        let mut set = match self.root_version()? {
            None => None,
            Some(_) => Some(self.trusted_root(now)?),
        };
        let mut new: Vec<(u64, &[u8])> = Vec::new();
        let mut newest = set.as_ref().map_or(0, |s| s.root().version);
        for bytes in chain {
            let offered = Envelope::parse(bytes, Role::Root.max_bytes());
            let offered = offered
                .and_then(|e| RootMetadata::read(&e))
                .map_err(trust("root"))?;
            let same = self.stored(&root_name(offered.version))?;
            if new.is_empty() && same.is_some_and(|stored| stored == *bytes) {
                newest = offered.version;
                continue;
            }
            set = Some(match &set {
                None => TrustedSet::from_root(bytes, now).map_err(trust("root"))?,
                Some(set) if offered.version <= set.root().version => {
                    let (trusted, got) = (set.root().version, offered.version);
                    return Err(RepositoryError::RootVersion { trusted, got });
                }
                Some(set) => {
                    let mut next = set.clone();
                    let _ = next.update_root(bytes).map_err(trust("root"))?;
                    TrustedSet::from_root(bytes, now).map_err(trust("root"))?
                }
            });
            newest = offered.version;
            new.push((newest, bytes));
        }
        let Some(mut set) = set.filter(|_| !new.is_empty()) else {
            return Ok(newest);
        };
        set.finish_root().map_err(trust("root"))?;
        self.check_own_keys(set.root())?;
        for (version, bytes) in new {
            files::write_atomic(&self.metadata.join(root_name(version)), bytes, PUBLIC)?;
        }
        self.follow_root(set.root(), now)?;
        Ok(newest)
    }

    /// Signs anew what the newest root's keys did not sign, and deletes keys that it withdrew.
    pub(super) fn follow_root(&self, root: &RootMetadata, now: Timestamp) -> Result<bool> {
        let resigned = match self.signed()? {
            Some(_) if !self.is_signed_by(root)? => {
                let lists = self.lists()?;
                let online = self.sign_online(root, &lists, now, true)?;
                self.write_online(&online)?;
                tracing::info!(
                    root_version = root.version,
                    "snapshot and timestamp signed by the keys of the new root"
                );
                true
            }
            _ => false,
        };
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        keys.settle(root)?;
        Ok(resigned)
    }

    /// Whether both online files carry signatures that `root` asks for.
    fn is_signed_by(&self, root: &RootMetadata) -> Result<bool> {
        let Some(signed) = self.signed()? else {
            return Ok(false);
        };
        let version = signed.timestamp.snapshot.version;
        for (role, name) in [
            (Role::Timestamp, "timestamp.json".to_owned()),
            (Role::Snapshot, Role::Snapshot.file_name(version, true)),
        ] {
            let bytes = self.stored(&name)?.unwrap_or_default();
            let envelope = Envelope::parse(&bytes, SNAPSHOT_MAX_BYTES);
            let verified = envelope.and_then(|e| root.verify(role, &e));
            if verified.is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
