//! `dunlin keys status`: what expires when, from the metadata themselves, with an exit status for
//! cron.

use super::folder::{root_files, trusted_root};
use crate::args::{Shared, StatusArgs};
use crate::context::Session;
use crate::failure::{Exit, Failure};
use crate::sign::list;
use crate::table::{self, Table};
use dunlin_protocol::trust::{
    Envelope, Metadata, ROOT_MAX_BYTES, Role, RoleKeys, RootMetadata, SNAPSHOT_MAX_BYTES,
    SnapshotMetadata, TARGETS_MAX_BYTES, TIMESTAMP_MAX_BYTES, TargetsMetadata, TimestampMetadata,
};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use std::path::Path;

const DAY: SignedDuration = SignedDuration::from_hours(24);
/// The server signs anew at half of their life; less than this left means that it does not.
const TIMESTAMP_LEFT_MIN: SignedDuration = SignedDuration::from_hours(8);
const SNAPSHOT_LEFT_MIN: SignedDuration = SignedDuration::from_hours(2 * 24);

/// How one role stands.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Standing {
    place: &'static str,
    role: String,
    version: u64,
    expires: Timestamp,
    threshold: u64,
    keys: usize,
}

/// What is to be said of a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Fine,
    Soon,
    Expired,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            Self::Fine => "ok",
            Self::Soon => "EXPIRES SOON",
            Self::Expired => "EXPIRED",
        }
    }

    fn exit(self) -> Exit {
        match self {
            Self::Fine => Exit::Done,
            Self::Soon => Exit::ExpiresSoon,
            Self::Expired => Exit::Expired,
        }
    }
}

impl Standing {
    fn state(&self, warn: SignedDuration, now: Timestamp) -> State {
        let left = self.expires.duration_since(now);
        let least = match self.role.as_str() {
            "timestamp" => TIMESTAMP_LEFT_MIN,
            "snapshot" => SNAPSHOT_LEFT_MIN,
            _ => warn,
        };
        match left {
            left if left <= SignedDuration::ZERO => State::Expired,
            left if left < least => State::Soon,
            _ => State::Fine,
        }
    }

    fn left(&self, now: Timestamp) -> String {
        let hours = self.expires.duration_since(now).as_hours();
        match hours {
            -47..=47 => format!("{hours} h"),
            _ => format!("{} d", hours / 24),
        }
    }
}

/// `dunlin keys status`.
///
/// # Errors
/// Metadata that cannot be read or do not verify, or a server that cannot be reached.
pub async fn run(args: &StatusArgs, shared: &Shared) -> Result<Exit, Failure> {
    let now = Timestamp::now();
    let mut all = Vec::new();
    if let Some(dir) = &args.dir {
        all.extend(of_folder(dir, now)?);
    }
    if !args.offline {
        all.extend(of_server(shared, args.dir.as_deref(), now).await?);
    }
    let warn = DAY * i32::try_from(args.warn_days).unwrap_or(i32::MAX / 2);
    let worst = all.iter().map(|s| s.state(warn, now)).max();
    let worst = worst.unwrap_or(State::Fine);
    if shared.json {
        let rows = all.iter().map(|s| {
            json!({
                "place": s.place, "role": s.role, "version": s.version,
                "expires": s.expires.to_string(), "threshold": s.threshold, "keys": s.keys,
                "seconds_left": s.expires.duration_since(now).as_secs(),
                "state": s.state(warn, now).as_str(),
            })
        });
        let rows: Vec<_> = rows.collect();
        table::print_json(&json!({"state": worst.as_str(), "metadata": rows}));
        return Ok(worst.exit());
    }
    let mut rows = Table::new(&["", "role", "version>", "must sign", "expires", "left>", ""]);
    for standing in &all {
        rows.row([
            standing.place.to_owned(),
            standing.role.clone(),
            standing.version.to_string(),
            format!("{} of {}", standing.threshold, standing.keys),
            standing.expires.to_string(),
            standing.left(now),
            standing.state(warn, now).as_str().to_owned(),
        ]);
    }
    table::print(&rows.to_text());
    Ok(worst.exit())
}

fn of_folder(dir: &Path, now: Timestamp) -> Result<Vec<Standing>, Failure> {
    let root = trusted_root(dir, now)?;
    let keys = root.roles.get(&Role::Root);
    Ok(vec![standing("folder", "root", &root, keys)])
}

fn standing<M: Metadata>(
    place: &'static str,
    role: &str,
    metadata: &M,
    keys: Option<&RoleKeys>,
) -> Standing {
    Standing {
        place,
        role: role.to_owned(),
        version: metadata.version(),
        expires: metadata.expires(),
        threshold: keys.map_or(0, |k| k.threshold),
        keys: keys.map_or(0, |k| k.keyids.len()),
    }
}

/// What the server serves to devices, verified by its newest root; that root by the folder's, if
/// there is a folder.
async fn of_server(
    shared: &Shared,
    dir: Option<&Path>,
    now: Timestamp,
) -> Result<Vec<Standing>, Failure> {
    let session = Session::open(shared)?;
    let (fleet, _) = session.fleet().await?;
    let Some(version) = fleet.root_version else {
        return Err(Failure::new(
            "the server has no trust root: dunlin keys upload-root",
        ));
    };
    let bytes = fetch(&session, &format!("{version}.root.json")).await?;
    let envelope = Envelope::parse(&bytes, ROOT_MAX_BYTES)?;
    let root = RootMetadata::read(&envelope)?;
    root.verify(Role::Root, &envelope)?;
    if let Some(dir) = dir {
        check_same(dir, &bytes, version, now)?;
    }
    let keys = |role| root.roles.get(&role);
    let mut all = vec![standing("server", "root", &root, keys(Role::Root))];
    if fleet.targets_version.is_none() {
        return Ok(all);
    }
    let bytes = fetch(&session, "timestamp.json").await?;
    let envelope = Envelope::parse(&bytes, TIMESTAMP_MAX_BYTES)?;
    root.verify(Role::Timestamp, &envelope)?;
    let timestamp = TimestampMetadata::read(&envelope)?;
    all.push(standing(
        "server",
        "timestamp",
        &timestamp,
        keys(Role::Timestamp),
    ));
    let name = Role::Snapshot.file_name(timestamp.snapshot.version, true);
    let bytes = fetch(&session, &name).await?;
    let envelope = Envelope::parse(&bytes, SNAPSHOT_MAX_BYTES)?;
    root.verify(Role::Snapshot, &envelope)?;
    let snapshot = SnapshotMetadata::read(&envelope)?;
    all.push(standing(
        "server",
        "snapshot",
        &snapshot,
        keys(Role::Snapshot),
    ));
    let name = Role::Targets.file_name(snapshot.targets()?.version, true);
    let bytes = fetch(&session, &name).await?;
    let envelope = Envelope::parse(&bytes, TARGETS_MAX_BYTES)?;
    root.verify(Role::Targets, &envelope)?;
    let targets = TargetsMetadata::read(&envelope)?;
    all.push(standing("server", "targets", &targets, keys(Role::Targets)));
    let Some(delegations) = &targets.delegations else {
        return Ok(all);
    };
    for role in delegations.listed() {
        let Some(bytes) = list::newest(shared, &role.name).await? else {
            continue;
        };
        let envelope = Envelope::parse(&bytes, TARGETS_MAX_BYTES)?;
        let list = TargetsMetadata::read(&envelope)?;
        all.push(standing("server", &role.name, &list, Some(&role.keys)));
    }
    Ok(all)
}

async fn fetch(session: &Session, name: &str) -> Result<Vec<u8>, Failure> {
    let bytes = session.client.metadata_file(name).await?;
    bytes.ok_or_else(|| Failure::new(format!("the server does not have {name}")))
}

/// The server's newest root must be one of the folder's.
fn check_same(dir: &Path, bytes: &[u8], version: u64, now: Timestamp) -> Result<(), Failure> {
    trusted_root(dir, now)?;
    if root_files(dir)?.iter().any(|held| held == bytes) {
        return Ok(());
    }
    Err(Failure::new(format!(
        "the server's root version {version} is not among those in {}: it is newer, or another fleet's",
        dir.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_warned_in_days_the_server_in_hours() {
        let now = Timestamp::UNIX_EPOCH;
        let state = |role: &str, hours: i64| {
            let standing = Standing {
                place: "server",
                role: role.to_owned(),
                version: 1,
                expires: now + SignedDuration::from_hours(hours),
                threshold: 1,
                keys: 1,
            };
            standing.state(DAY * 30, now)
        };
        assert_eq!(state("root", 24 * 31), State::Fine);
        assert_eq!(state("root", 24 * 29), State::Soon);
        assert_eq!(state("vision", 24 * 29), State::Soon);
        assert_eq!(state("timestamp", 12), State::Fine);
        assert_eq!(state("timestamp", 7), State::Soon);
        assert_eq!(state("snapshot", 24 * 3), State::Fine);
        assert_eq!(state("snapshot", 24), State::Soon);
        assert_eq!(state("timestamp", 0), State::Expired);
        assert_eq!(state("targets", -1), State::Expired);
    }
}
