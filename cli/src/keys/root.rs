//! Proposals of a first or next root, as signing requests; giving roots to the server.

use super::KeysError;
use super::folder::{later, root_files, server_keys, trusted_roots};
use super::plan::RootPlan;
use super::public::PublicKey;
use super::request::SigningRequest;
use super::sign::write_request;
use crate::api::OnlineKeys;
use crate::args::{
    NextRoot, RevokeArgs, RootAction, RootEditArgs, RootNewArgs, RotateArgs, Shared,
};
use crate::context::Session;
use crate::failure::{Exit, Failure};
use crate::table;
use dunlin_protocol::trust::{Key, Role};
use jiff::Timestamp;
use serde_json::json;
use std::path::{Path, PathBuf};

/// `dunlin keys root`.
///
/// # Errors
/// A file that is no public key, or seats and thresholds that make no root.
pub async fn run(action: &RootAction, shared: &Shared) -> Result<Exit, Failure> {
    match action {
        RootAction::New(args) => new(args, shared).await,
        RootAction::Edit(args) => edit(args, shared).await,
    }
}

async fn new(args: &RootNewArgs, shared: &Shared) -> Result<Exit, Failure> {
    let online = match &args.server_keys {
        Some(file) => server_keys(file)?,
        None => Session::open(shared)?.fleet().await?.0.online_keys,
    };
    let mut plan = RootPlan::first();
    for (role, files, threshold) in [
        (Role::Root, &args.root, args.root_threshold),
        (Role::Targets, &args.targets, args.targets_threshold),
    ] {
        for file in files {
            plan.add(role, &PublicKey::read(file)?)?;
        }
        let most = files.len() as u64 / 2 + 1;
        plan.set_threshold(role, threshold.unwrap_or(most));
    }
    set_online(&mut plan, &online)?;
    let metadata = plan.build(later(Timestamp::now(), args.expires_in))?;
    let request = SigningRequest::for_root(metadata, None)?;
    write_request(&request, &args.out, shared.json)
}

async fn edit(args: &RootEditArgs, shared: &Shared) -> Result<Exit, Failure> {
    let mut plan = Proposal::begin(&args.next)?;
    for key in &args.remove_root {
        plan.root.remove(Some(Role::Root), key)?;
    }
    for key in &args.remove_targets {
        plan.root.remove(Some(Role::Targets), key)?;
    }
    for (role, files) in [
        (Role::Root, &args.add_root),
        (Role::Targets, &args.add_targets),
    ] {
        for file in files {
            plan.root.add(role, &PublicKey::read(file)?)?;
        }
    }
    if let Some(file) = &args.server_keys {
        set_online(&mut plan.root, &server_keys(file)?)?;
    }
    plan.write(&args.next, shared.json)
}

/// `dunlin keys rotate`.
///
/// # Errors
/// The old key has no seat, the new one has it already, or a file cannot be read.
pub async fn rotate(args: &RotateArgs, shared: &Shared) -> Result<Exit, Failure> {
    let mut plan = Proposal::begin(&args.next)?;
    plan.root.replace(&args.old, &PublicKey::read(&args.new)?)?;
    plan.write(&args.next, shared.json)
}

/// `dunlin keys revoke`.
///
/// # Errors
/// The key has no seat, or too few are left.
pub async fn revoke(args: &RevokeArgs, shared: &Shared) -> Result<Exit, Failure> {
    let mut plan = Proposal::begin(&args.next)?;
    let left = match &args.replace_with {
        Some(file) => plan.root.replace(&args.key, &PublicKey::read(file)?)?,
        None => plan.root.remove(None, &args.key)?,
    };
    let done = plan.write(&args.next, shared.json)?;
    if left.contains(&Role::Targets) && !shared.json {
        table::print_line(
            "the list of targets may carry the revoked key's signature: once this root is uploaded, \
             sign the list anew (dunlin bundle sign --renew)",
        );
    }
    Ok(done)
}

/// A next root and the file it follows.
struct Proposal {
    root: RootPlan,
    before: Vec<u8>,
}

impl Proposal {
    fn begin(next: &NextRoot) -> Result<Self, KeysError> {
        // The whole chain is verified: a proposal on a forged root would be signed in vain.
        trusted_roots(&next.dir, Timestamp::now())?;
        let before = root_files(&next.dir)?.pop();
        let before = before.ok_or_else(|| KeysError::NoRoot(next.dir.clone()))?;
        let root = RootPlan::after(&before)?;
        Ok(Self { root, before })
    }

    fn write(mut self, next: &NextRoot, is_json: bool) -> Result<Exit, Failure> {
        for (role, threshold) in [
            (Role::Root, next.root_threshold),
            (Role::Targets, next.targets_threshold),
        ] {
            if let Some(threshold) = threshold {
                self.root.set_threshold(role, threshold);
            }
        }
        let expires = later(Timestamp::now(), next.expires_in);
        let request = SigningRequest::for_root(self.root.build(expires)?, Some(self.before))?;
        write_request(&request, &next.out, is_json)
    }
}

fn set_online(plan: &mut RootPlan, online: &OnlineKeys) -> Result<(), KeysError> {
    for (role, json) in [
        (Role::Snapshot, &online.snapshot),
        (Role::Timestamp, &online.timestamp),
    ] {
        let key = Key::from_json(json)?;
        if !key.can_verify() {
            return Err(KeysError::ServerKeys {
                path: PathBuf::from("server keys"),
                problem: format!("the {role} key verifies nothing"),
            });
        }
        plan.set_online(role, key)?;
    }
    Ok(())
}

/// `dunlin keys upload-root`.
///
/// # Errors
/// The server cannot be reached, or refuses.
pub async fn upload(dir: &Path, shared: &Shared) -> Result<Exit, Failure> {
    let session = Session::open(shared)?;
    let (fleet, _) = session.fleet().await?;
    let known = fleet.root_version.unwrap_or(0);
    let roots = root_files(dir)?;
    let sent: Vec<u64> = (1..=roots.len() as u64).filter(|v| *v > known).collect();
    if !sent.is_empty() {
        let texts = roots.into_iter().map(String::from_utf8);
        let texts: Result<Vec<String>, _> = texts.collect();
        let texts = texts.map_err(|e| Failure::new(format!("root metadata: {e}")))?;
        // The whole chain at once: those between may have expired, and nothing is set by halves.
        session.client.put_roots(&texts).await?;
    }
    if shared.json {
        table::print_json(&json!({"uploaded": sent}));
        return Ok(Exit::Done);
    }
    let texts: Vec<String> = sent.iter().map(ToString::to_string).collect();
    table::print_line(&match sent.is_empty() {
        true => "the server has the newest root already".to_owned(),
        false => format!("uploaded root version {}", texts.join(", ")),
    });
    Ok(Exit::Done)
}
