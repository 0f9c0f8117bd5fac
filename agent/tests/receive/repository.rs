//! A signed repository in memory: keys, bundles, metadata.

use dunlin_protocol::bundle::{
    Blob, DType, Files, Limits, Lineage, Manifest, Packed, Resources, Steps, TensorSpec,
};
use dunlin_protocol::command::{DesiredBundle, Probation};
use dunlin_protocol::id::Digest;
use dunlin_protocol::trust::{
    Delegations, MetaFile, PathScope, Role, RoleName, SigningKey, TargetCustom, TargetEntry,
    new_delegating_targets, new_root, new_snapshot, new_targets, new_timestamp, sign_envelope,
};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;

/// What a bundle is made of.
pub(crate) struct Release {
    pub(crate) version: u64,
    pub(crate) floor: u64,
    pub(crate) hardware: &'static str,
    pub(crate) ram_bytes: u64,
    pub(crate) arch: &'static str,
    pub(crate) agent_min: &'static str,
    /// The version of whose model this one's is a slight change.
    pub(crate) like: Option<u64>,
}

impl Release {
    pub(crate) fn version(version: u64) -> Self {
        Self {
            version,
            floor: 1,
            hardware: "any",
            ram_bytes: 1 << 20,
            arch: "any",
            agent_min: "0.1.0",
            like: None,
        }
    }

    pub(crate) fn model(&self, words: usize) -> Vec<u8> {
        let Some(like) = self.like else {
            return model_of(self.version, words);
        };
        let mut bytes = model_of(like, words);
        for at in (0..bytes.len()).step_by(100_000) {
            bytes[at] ^= u8::try_from(self.version).unwrap();
        }
        bytes
    }
}

pub(crate) struct Repository {
    pub(crate) root: SigningKey,
    pub(crate) targets: [SigningKey; 2],
    pub(crate) snapshot: SigningKey,
    pub(crate) timestamp: SigningKey,
    /// Content by path below `/repository/`.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// Size of the models added from now on, in 8-byte words.
    pub(crate) model_words: usize,
    entries: Vec<TargetEntry>,
    teams: Vec<Team>,
    version: u64,
}

/// A delegated role.
struct Team {
    role: RoleName,
    pattern: String,
    key: SigningKey,
    entries: Vec<TargetEntry>,
}

pub(crate) const MODEL_WORDS: usize = 150_000;

/// 1.2 MB that compress badly, other ones for every version.
pub(crate) fn model(version: u64) -> Vec<u8> {
    model_of(version, MODEL_WORDS)
}

/// As [`model`], of so many 8-byte words.
pub(crate) fn model_of(version: u64, words: usize) -> Vec<u8> {
    let mut state = version.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let word = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    word.take(words).flatten().collect()
}

pub(crate) fn golden() -> Vec<u8> {
    br#"{"schema":"dunlin.golden/1","producer":"p","cases":[]}"#.repeat(40)
}

fn soon() -> Timestamp {
    Timestamp::now() + SignedDuration::from_hours(24)
}

impl Repository {
    pub(crate) fn new() -> Self {
        let key = |n| SigningKey::from_seed(&[n; 32]);
        let mut repository = Self {
            root: key(1),
            targets: [key(2), key(3)],
            snapshot: key(4),
            timestamp: key(5),
            files: BTreeMap::new(),
            model_words: MODEL_WORDS,
            entries: Vec::new(),
            teams: Vec::new(),
            version: 0,
        };
        repository.sign_root(1, &[]);
        repository
    }

    pub(crate) fn metadata(&self, name: &str) -> Vec<u8> {
        self.files[&format!("metadata/{name}")].clone()
    }

    /// A root with the present keys, signed by the root key and by `also`.
    pub(crate) fn sign_root(&mut self, version: u64, also: &[&SigningKey]) {
        let one = |key: &SigningKey| (vec![key.public_key()], 1);
        let targets = self.targets.iter().map(SigningKey::public_key).collect();
        let roles = BTreeMap::from([
            (Role::Root, one(&self.root)),
            (Role::Targets, (targets, 2)),
            (Role::Snapshot, one(&self.snapshot)),
            (Role::Timestamp, one(&self.timestamp)),
        ]);
        let signed = new_root(version, soon(), &roles).unwrap();
        let keys: Vec<_> = std::iter::once(&self.root)
            .chain(also.iter().copied())
            .collect();
        let bytes = sign_envelope(signed, &keys).unwrap().to_bytes();
        self.files
            .insert(format!("metadata/{version}.root.json"), bytes);
    }

    /// Adds a bundle; [`Self::publish`] makes it known.
    pub(crate) fn add(&mut self, release: &Release) -> DesiredBundle {
        let model = release.model(self.model_words);
        let mut blob = |bytes: &[u8], pack: bool| {
            let packed = pack.then(|| {
                let packed = zstd::encode_all(bytes, 3).unwrap();
                let sha256 = Digest::of(&packed);
                let length = packed.len() as u64;
                self.files.insert(format!("blobs/{sha256}"), packed);
                Packed {
                    encoding: "zstd".to_owned(),
                    sha256,
                    length,
                }
            });
            let sha256 = Digest::of(bytes);
            if packed.is_none() {
                self.files.insert(format!("blobs/{sha256}"), bytes.to_vec());
            }
            Blob {
                sha256,
                length: bytes.len() as u64,
                packed,
            }
        };
        let files = Files {
            model: blob(&model, false),
            golden: blob(&golden(), true),
            profile: None,
            card: Some(blob(b"# A card", false)),
        };
        let manifest = manifest(release, files);
        let bytes = manifest.to_bytes().unwrap();
        let custom = TargetCustom {
            family: manifest.family.clone(),
            version: release.version,
            hardware: vec![release.hardware.to_owned()],
            rollback_floor: release.floor,
            kind: "model".to_owned(),
        };
        let entry = TargetEntry::of(manifest.target_path(), &bytes, &custom);
        self.files
            .insert(format!("targets/{}", entry.consistent_path()), bytes);
        let want = DesiredBundle {
            family: manifest.family,
            version: release.version,
            target: entry.path.clone(),
            digest: entry.sha256().unwrap(),
            rollout: None,
            probation: Probation::default(),
            asked: None,
        };
        self.entries.push(entry);
        want
    }

    /// Hands `pattern` on to a role of this name, which lists all that was added since the last one.
    pub(crate) fn hand_to(&mut self, name: &str, pattern: &str) {
        self.teams.push(Team {
            role: RoleName::delegated(name).unwrap(),
            pattern: pattern.to_owned(),
            key: SigningKey::from_seed(&[31; 32]),
            entries: std::mem::take(&mut self.entries),
        });
    }

    /// Takes back what was handed on.
    pub(crate) fn take_back(&mut self) {
        self.teams.clear();
    }

    /// The teams' files of version `v`, and the delegations to them.
    fn publish_teams(&mut self, v: u64, meta: &mut BTreeMap<String, MetaFile>) -> Delegations {
        let mut delegations = Delegations::none();
        for team in &self.teams {
            let scope = PathScope::patterns([team.pattern.as_str()]);
            let (name, key) = (team.role.as_str(), team.key.public_key());
            delegations.delegate(name, &[key], 1, false, scope).unwrap();
            let signed = new_targets(v, soon(), &team.entries);
            let bytes = sign_envelope(signed, &[&team.key]).unwrap().to_bytes();
            meta.insert(team.role.listed_name(), MetaFile::of(v, &bytes));
            let name = team.role.file_name(v, true);
            self.files.insert(format!("metadata/{name}"), bytes);
        }
        delegations
    }

    pub(crate) fn publish(&mut self) {
        let [a, b] = &self.targets;
        let targets = [
            SigningKey::from_pkcs8_pem(a.to_pkcs8_pem().unwrap().expose()).unwrap(),
            SigningKey::from_pkcs8_pem(b.to_pkcs8_pem().unwrap().expose()).unwrap(),
        ];
        self.publish_by(&[&targets[0], &targets[1]], soon());
    }

    /// New targets signed by `signers`, new snapshot, new timestamp that ends at `expires`.
    pub(crate) fn publish_by(&mut self, signers: &[&SigningKey], expires: Timestamp) {
        self.version += 1;
        let v = self.version;
        let mut meta = BTreeMap::new();
        let delegations = self.publish_teams(v, &mut meta);
        let signed = new_delegating_targets(v, soon(), &self.entries, &delegations);
        let targets = sign_envelope(signed, signers).unwrap().to_bytes();
        meta.insert("targets.json".to_owned(), MetaFile::of(v, &targets));
        let snapshot = sign_envelope(new_snapshot(v, soon(), &meta), &[&self.snapshot])
            .unwrap()
            .to_bytes();
        let newest = MetaFile::of(v, &snapshot);
        let timestamp = sign_envelope(new_timestamp(v, expires, &newest), &[&self.timestamp])
            .unwrap()
            .to_bytes();
        let mut put = |name: String, bytes| self.files.insert(format!("metadata/{name}"), bytes);
        put(format!("{v}.targets.json"), targets);
        put(format!("{v}.snapshot.json"), snapshot);
        put("timestamp.json".to_owned(), timestamp);
    }
}

fn manifest(release: &Release, files: Files) -> Manifest {
    let tensor = |name: &str| TensorSpec {
        name: name.to_owned(),
        dtype: DType::FP32,
        shape: vec![1, 4],
        layout: None,
    };
    Manifest {
        schema: Manifest::SCHEMA.to_owned(),
        kind: "model".to_owned(),
        family: "digits".parse().unwrap(),
        version: release.version,
        inputs: vec![tensor("x")],
        outputs: vec![tensor("y")],
        steps: Steps::default(),
        application: None,
        labels: Vec::new(),
        limits: Limits {
            tolerance_abs: 1e-4,
            latency_budget_ms: 50,
        },
        resources: Resources {
            ram_bytes: release.ram_bytes,
            disk_bytes: 1 << 20,
            arch: vec![release.arch.to_owned()],
            agent_min: release.agent_min.to_owned(),
        },
        lineage: Lineage::default(),
        capture: None,
        files,
    }
}
