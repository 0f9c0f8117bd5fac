//! Each folder of `golden/trust/attacks` is an attack: what a device has, what it is offered, and how
//! that must end. Here the pure rules are led through all of them, as an agent leads them.
#![allow(clippy::unwrap_used, clippy::panic)]

use dunlin_protocol::id::Family;
use dunlin_protocol::trust::{
    FileRequest, FoundTarget, Lookup, OnlineKeys, Role, RoleName, SelectionError, TrustError,
    TrustedSet, check_target, raise_delegated_floors, raise_floors,
};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const NOW: &str = "2026-06-01T00:00:00Z";
const HARDWARE: &str = "x86_64";

type Floors = BTreeMap<Family, u64>;

/// The step that refused, and its code.
#[derive(Debug)]
struct Refusal(&'static str, String);

fn at<T>(step: &'static str, result: Result<T, TrustError>) -> Result<T, Refusal> {
    result.map_err(|e| Refusal(step, e.code().to_owned()))
}

/// One folder, as a device that meets it.
struct Attack {
    folder: PathBuf,
    stored: BTreeMap<String, Vec<u8>>,
}

impl Attack {
    fn open(folder: &Path) -> Self {
        let mut stored = BTreeMap::new();
        let files = fs::read_dir(folder.join("stored")).into_iter().flatten();
        for file in files.map(Result::unwrap) {
            let name = file.file_name().into_string().unwrap();
            stored.insert(name, fs::read(file.path()).unwrap());
        }
        Self {
            folder: folder.to_owned(),
            stored,
        }
    }

    /// What the repository answers; a caller stops reading one byte behind the limit.
    fn offered(&self, request: &FileRequest) -> Option<Vec<u8>> {
        let mut bytes = fs::read(self.folder.join("repository").join(&request.name)).ok()?;
        bytes.truncate(usize::try_from(request.max_bytes).unwrap() + 1);
        Some(bytes)
    }

    fn stored(&self, role: Role) -> Option<&Vec<u8>> {
        self.stored.get(&RoleName::from(role).stored_name())
    }

    fn top_level(&mut self) -> Result<TrustedSet, Refusal> {
        let trusted = fs::read(self.folder.join("trusted_root.json")).unwrap();
        let mut set = TrustedSet::from_root(&trusted, NOW.parse().unwrap()).unwrap();
        while let Some(bytes) = self.root(&set) {
            if at("root", set.update_root(&bytes))? == OnlineKeys::Rotated {
                self.stored.remove("timestamp.json");
                self.stored.remove("snapshot.json");
            }
        }
        at("root", set.finish_root())?;
        if let Some(bytes) = self.stored(Role::Timestamp) {
            let _ = set.load_trusted_timestamp(bytes);
        }
        let request = FileRequest {
            name: "timestamp.json".to_owned(),
            max_bytes: Role::Timestamp.max_bytes() as u64,
        };
        let bytes = self.offered(&request).unwrap();
        let _ = at("timestamp", set.update_timestamp(&bytes))?;
        if let Some(bytes) = self.stored(Role::Snapshot) {
            let _ = set.load_trusted_snapshot(bytes);
        }
        if let Some(request) = at("snapshot", set.snapshot_to_fetch())? {
            let bytes = self.offered(&request).unwrap();
            at("snapshot", set.update_snapshot(&bytes))?;
        }
        if let Some(bytes) = self.stored(Role::Targets) {
            let _ = set.load_trusted_targets(bytes);
        }
        if let Some(request) = at("targets", set.targets_to_fetch())? {
            let bytes = self.offered(&request).unwrap();
            at("targets", set.update_targets(&bytes))?;
        }
        Ok(set)
    }

    /// The next root, or what stands in its place: the attacker names the file.
    fn root(&self, set: &TrustedSet) -> Option<Vec<u8>> {
        self.offered(&set.root_to_fetch())
    }

    fn find(&self, set: &mut TrustedSet, path: &str) -> Result<FoundTarget, Refusal> {
        loop {
            let file = match at("search", set.find(path))? {
                Lookup::Found(found) => return Ok(found),
                Lookup::Needs(file) => file,
            };
            let stored = self.stored.get(&file.role().stored_name());
            if stored.is_some_and(|bytes| set.update_delegated(&file, bytes).is_ok()) {
                continue;
            }
            let bytes = self.offered(&file.request).unwrap();
            at("delegated", set.update_delegated(&file, &bytes))?;
        }
    }

    fn run(&mut self, floors: &mut Floors) -> Result<(), Refusal> {
        let mut set = self.top_level()?;
        let wanted = fs::read_to_string(self.folder.join("wanted")).unwrap();
        let found = self.find(&mut set, wanted.trim_end())?;
        let content = self.folder.join("repository/targets");
        let content = fs::read(content.join(found.consistent_path())).unwrap();
        raise_floors(floors, set.targets().unwrap());
        raise_delegated_floors(floors, &set, &found).unwrap();
        let device = |e: SelectionError| Refusal("device", e.code().to_owned());
        let target = check_target(found, floors, HARDWARE).map_err(device)?;
        at("content", target.entry().verify_bytes(&content))?;
        Ok(())
    }
}

fn attacks() -> Vec<PathBuf> {
    let folder = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap())
        .join("tests/golden/trust/attacks");
    let entries = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let mut folders: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

#[test]
fn every_attack_ends_in_the_error_that_is_written_beside_it() {
    let mut wrong = Vec::new();
    for folder in attacks() {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let expected = fs::read_to_string(folder.join("expected")).unwrap();
        let mut expected = expected.lines();
        let mut floors = Floors::new();
        let got = match Attack::open(&folder).run(&mut floors) {
            Ok(()) => "accepted".to_owned(),
            Err(Refusal(step, code)) => format!("refused {step} {code}"),
        };
        let verdict = expected.next().unwrap();
        if got != verdict {
            wrong.push(format!("{name}: expected {verdict:?}, got {got:?}"));
        }
        for line in expected {
            let (family, floor) = line
                .strip_prefix("floor ")
                .unwrap()
                .split_once(' ')
                .unwrap();
            let known = floors.get(&family.parse().unwrap()).copied().unwrap_or(0);
            if known.to_string() != floor {
                wrong.push(format!("{name}: expected {line:?}, got floor {known}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A folder lost in a merge would be an attack no longer tried.
#[test]
fn no_attack_is_missing() {
    let names: Vec<String> = attacks()
        .iter()
        .map(|p| p.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(names.len(), 70, "{names:?}");
    for folder in attacks() {
        for file in ["about", "expected", "wanted", "trusted_root.json"] {
            assert!(folder.join(file).is_file(), "{}: {file}", folder.display());
        }
    }
}
