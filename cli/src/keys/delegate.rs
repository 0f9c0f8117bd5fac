//! `dunlin keys delegate`, `undelegate`: a model family handed to a team, and taken back. Both change
//! the top-level targets metadata, so that the holders of the targets keys sign them.

use super::holders::{self, Holders};
use super::public::{PublicKey, check_name};
use super::request::SigningRequest;
use super::sign::write_request;
use super::{KeysError, later};
use crate::args::{DelegateArgs, NextTargets, Shared, UndelegateArgs};
use crate::failure::{Exit, Failure};
use crate::sign::list::{self, SignedList, TARGETS};
use crate::sign::{carry_over, next_list};
use dunlin_protocol::id::Family;
use dunlin_protocol::trust::{
    Delegations, Envelope, Key, PathScope, TARGETS_MAX_BYTES, TargetsMetadata, sign_envelope,
};
use jiff::Timestamp;

/// `dunlin keys delegate`.
///
/// # Errors
/// No public keys, paths outside the family, or targets metadata that do not verify.
pub async fn delegate(args: &DelegateArgs, shared: &Shared) -> Result<Exit, Failure> {
    let role = args.role.as_deref().unwrap_or(args.family.as_str());
    check_name(role)?;
    let paths = paths(args)?;
    let keys = args.to.iter().map(|file| PublicKey::read(file));
    let keys: Vec<PublicKey> = keys.collect::<Result<_, _>>()?;
    let mut next = Next::begin(&args.next, shared).await?;
    let public: Vec<Key> = keys.iter().map(|k| k.key.clone()).collect();
    let threshold = args.threshold.unwrap_or(keys.len() as u64 / 2 + 1);
    next.delegations.delegate(
        role,
        &public,
        threshold,
        !args.not_terminating,
        PathScope::patterns(paths),
    )?;
    for key in &keys {
        next.holders.insert(&key.keyid, &key.name);
    }
    next.write(&args.next, shared)
}

/// `dunlin keys undelegate`.
///
/// # Errors
/// There is no such delegation, or the targets metadata do not verify.
pub async fn undelegate(args: &UndelegateArgs, shared: &Shared) -> Result<Exit, Failure> {
    let mut next = Next::begin(&args.next, shared).await?;
    if !next.delegations.withdraw(&args.role) {
        let role = args.role.clone();
        return Err(KeysError::NoDelegation { role }.into());
    }
    next.write(&args.next, shared)
}

/// The patterns to delegate; each must stay inside the family, and one must cover its bundles: a
/// device takes a target from a delegated role only as the family that its path begins with.
fn paths(args: &DelegateArgs) -> Result<Vec<String>, Failure> {
    let family: &Family = &args.family;
    if args.paths.is_empty() {
        return Ok(vec![format!("{family}/*/*")]);
    }
    for path in &args.paths {
        if path.split('/').next() != Some(family.as_str()) {
            return Err(Failure::new(format!(
                "--paths {path}: expected patterns that begin with {family}/: a team speaks for its family alone"
            )));
        }
    }
    let bundle = format!("{family}/1/manifest.json");
    let scope = PathScope::patterns(args.paths.iter().map(String::as_str));
    let named_versions = args.paths.iter().any(|p| p.matches('/').count() == 2);
    if !scope.covers(&bundle) && !named_versions {
        return Err(Failure::new(format!(
            "--paths {}: covers no bundle: `*` does not match a `/`, and bundles are named like {bundle}; \
             expected a pattern like {family}/*/*",
            args.paths.join(" ")
        )));
    }
    Ok(args.paths.clone())
}

/// The next top-level targets metadata in the making.
struct Next {
    whose: SignedList,
    previous: Option<TargetsMetadata>,
    bytes: Option<Vec<u8>>,
    delegations: Delegations,
    holders: Holders,
}

impl Next {
    async fn begin(args: &NextTargets, shared: &Shared) -> Result<Self, Failure> {
        let whose = SignedList::top(&args.dir)?;
        let bytes = match args.first {
            true => None,
            false => list::given_or_newest(args.targets.as_ref(), shared, TARGETS).await?,
        };
        let previous = whose.verified(&args.dir, bytes.as_deref())?;
        let delegations = previous.as_ref().and_then(|p| p.delegations.clone());
        let mut holders = Holders::default();
        if let Some(bytes) = &bytes {
            holders.add(Envelope::parse(bytes, TARGETS_MAX_BYTES)?.signed());
        }
        Ok(Self {
            whose,
            previous,
            bytes,
            delegations: delegations.unwrap_or_else(Delegations::none),
            holders,
        })
    }

    fn write(self, args: &NextTargets, shared: &Shared) -> Result<Exit, Failure> {
        let expires = later(Timestamp::now(), args.expires_in);
        let mut signed = next_list(&[], self.previous.as_ref(), expires)?;
        if let Some(bytes) = &self.bytes {
            carry_over(bytes, &mut signed)?;
        }
        signed["delegations"] = self.delegations.to_json();
        let listed = |keyid: &str| self.delegations.keys.contains_key(keyid);
        signed[holders::FIELD] = self.holders.to_json(listed);
        let metadata = sign_envelope(signed, &[])?;
        let request = SigningRequest::for_list(metadata, &self.whose, self.bytes)?;
        write_request(&request, &args.out, shared.json)
    }
}
