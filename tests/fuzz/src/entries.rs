//! One function for each kind of bytes that others send. It panics if a property does not hold;
//! what is merely refused is fine.
//!
//! Shared by the fuzzer's targets and by the replay of the committed inputs, hence no dependency
//! but ours, JSON and the image decoders.

pub use dunlin_agent::inference::fuzz::image;
use dunlin_agent::inference::fuzz::{grpc_request, rest_request};
use dunlin_protocol::archive::{Index, length_max};
use dunlin_protocol::bundle::{GoldenSet, Manifest, Profile};
use dunlin_protocol::command::{self, Ack, Command, Desired};
use dunlin_protocol::enroll::{
    ClaimToken, EnrollRequest, EnrollResponse, RecoverRequest, RecoveryNonce, RenewRequest,
};
use dunlin_protocol::id::{DeviceId, FleetId};
use dunlin_protocol::patch::fuzz_apply;
use dunlin_protocol::report::{Presence, Reported};
use dunlin_protocol::telemetry::Segment;
use dunlin_protocol::topic::{Channel, Topic, device_may_publish, device_may_subscribe};
use dunlin_protocol::trust::canonical::{canonical as write_canonical, parse};
use dunlin_protocol::trust::{
    Envelope, Key, Lookup, Metadata, Role, RootMetadata, SigningKey, SnapshotMetadata,
    TARGETS_MAX_BYTES, TargetsMetadata, TimestampMetadata, TrustedSet, new_root, sign_envelope,
};
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// Reads bytes of a stranger's; panics if a property does not hold.
pub type Entry = fn(&[u8]);

/// Entries by name, which is also their target's and their folder of inputs'.
pub const ALL: [(&str, Entry); 11] = [
    ("archive", archive),
    ("canonical", canonical),
    ("grpc", grpc),
    ("image", image),
    ("manifest", manifest),
    ("messages", messages),
    ("metadata", metadata),
    ("patch", patch),
    ("request", request),
    ("signed", signed),
    ("topic", topic),
];

/// 2026-01-01.
fn now() -> Timestamp {
    Timestamp::from_second(1_767_225_600).expect("a date")
}

/// An archive from a stick that anybody may have held.
pub fn archive(data: &[u8]) {
    let Ok(index) = Index::read(&mut std::io::Cursor::new(data)) else {
        return;
    };
    let mut ranges = Vec::new();
    for (file, length) in index.files() {
        let range = index.get(file).expect("listed");
        assert_eq!(range.end - range.start, length);
        assert!(range.end <= data.len() as u64, "lies in the archive");
        assert!(length <= length_max(file), "bounded by kind");
        assert_eq!(file.to_string().parse().as_ref(), Ok(file), "one name");
        ranges.push(range);
    }
    ranges.sort_by_key(|range| range.start);
    let overlap = ranges.windows(2).any(|pair| pair[0].end > pair[1].start);
    assert!(!overlap, "no two files share bytes");
}

/// Metadata files as a stranger sends them: none is signed by anybody known.
pub fn metadata(data: &[u8]) {
    for role in Role::ALL {
        let _ = Envelope::parse(data, role.max_bytes());
    }
    let Ok(envelope) = Envelope::parse(data, TARGETS_MAX_BYTES) else {
        return;
    };
    envelope
        .signed_bytes()
        .expect("what was read can be signed");
    let bytes = envelope.to_bytes();
    let again = Envelope::parse(&bytes, usize::MAX).expect("what was written can be read");
    assert_eq!(again, envelope, "unknown fields are kept");
    let _ = (
        envelope.role(),
        RootMetadata::read(&envelope),
        TimestampMetadata::read(&envelope),
        SnapshotMetadata::read(&envelope),
        TargetsMetadata::read(&envelope),
    );
    let _ = TrustedSet::from_root(data, now());
    let mut set = a_trusted_set();
    assert!(set.update_root(data).is_err(), "signed by nobody known");
    set.finish_root().expect("its root is current");
    assert!(
        set.update_timestamp(data).is_err(),
        "signed by nobody known"
    );
}

/// Metadata as whoever holds every key but the root's can make them: up to three documents, parted by
/// zero bytes, signed and offered as timestamp, snapshot and targets, then a path that is looked for.
pub fn signed(data: &[u8]) {
    let mut parts = data.split(|b| *b == 0);
    let mut next = || {
        let document = parse(parts.next()?).ok()?;
        let envelope = sign_envelope(document, &[&key()]).ok()?;
        Some(envelope.to_bytes())
    };
    let (timestamp, snapshot, targets) = (next(), next(), next());
    let mut set = a_trusted_set();
    set.finish_root().expect("its root is current");
    let Some(timestamp) = timestamp else { return };
    if set.update_timestamp(&timestamp).is_err() {
        return;
    }
    assert!(set.timestamp().is_ok());
    let Some(snapshot) = snapshot else { return };
    if set.update_snapshot(&snapshot).is_err() {
        return;
    }
    let Some(targets) = targets else { return };
    if set.update_targets(&targets).is_err() {
        return;
    }
    let path = parts.next().unwrap_or_default();
    let path = String::from_utf8_lossy(path);
    if let Ok(Lookup::Needs(file)) = set.find(&path) {
        let _ = set.update_delegated(&file, &targets);
        let _ = set.find(&path);
    }
}

fn key() -> SigningKey {
    SigningKey::from_seed(&[0x5d; 32])
}

/// Made once: signing takes longer than most inputs.
fn a_trusted_set() -> TrustedSet {
    static ROOT: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let own: Vec<Key> = vec![key().public_key()];
        let offline = SigningKey::from_seed(&[0x5e; 32]);
        let mut roles: BTreeMap<_, _> = Role::ALL.map(|role| (role, (own.clone(), 1))).into();
        roles.insert(Role::Root, (vec![offline.public_key()], 1));
        let expires = now() + jiff::SignedDuration::from_hours(24);
        let root = new_root(1, expires, &roles).expect("a root");
        let root = sign_envelope(root, &[&offline]).expect("signed");
        root.to_bytes()
    });
    TrustedSet::from_root(&ROOT, now()).expect("trusted")
}

/// Reading, writing in the one form and reading again gives the same.
pub fn canonical(data: &[u8]) {
    let Ok(value) = parse(data) else { return };
    let written = write_canonical(&value).expect("what was read can be written");
    // Canonical JSON escapes only two characters: with raw control characters it is not JSON.
    match parse(&written) {
        Ok(again) => {
            assert_eq!(again, value);
            assert_eq!(write_canonical(&again).as_ref(), Ok(&written));
        }
        Err(_) => assert!(written.iter().any(|b| *b < 0x20), "not JSON"),
    }
}

/// Inference requests over gRPC.
pub fn grpc(data: &[u8]) {
    let _ = grpc_request(data);
}

/// Inference requests over REST.
pub fn request(data: &[u8]) {
    let _ = rest_request(data);
}

/// Manifests, and the documents that are read in the light of one.
pub fn manifest(data: &[u8]) {
    static KNOWN: LazyLock<Manifest> =
        LazyLock::new(|| Manifest::parse(MANIFEST).expect("the committed manifest"));
    let _ = GoldenSet::parse(data, &KNOWN);
    let _ = Profile::parse(data, &KNOWN);
    let Ok(manifest) = Manifest::parse(data) else {
        return;
    };
    manifest.check().expect("what was read is checked");
    let bytes = manifest.to_bytes().expect("what was read can be written");
    let again = Manifest::parse(&bytes).expect("what was written can be read");
    assert_eq!(again, manifest);
    assert!(!manifest.target_path().contains(".."));
}

const MANIFEST: &[u8] = include_bytes!("../../../protocol/tests/golden/messages/manifest.json");

/// A patch against a small file.
pub fn patch(data: &[u8]) {
    fuzz_apply(data);
}

/// Every message of the wire, as each of them.
pub fn messages(data: &[u8]) {
    round_trip::<Desired>(data);
    round_trip::<Command>(data);
    round_trip::<Ack>(data);
    round_trip::<Presence>(data);
    round_trip::<Reported>(data);
    round_trip::<Segment>(data);
    round_trip::<EnrollRequest>(data);
    round_trip::<EnrollResponse>(data);
    round_trip::<RenewRequest>(data);
    round_trip::<RecoveryNonce>(data);
    round_trip::<RecoverRequest>(data);
    let text = String::from_utf8_lossy(data);
    if let Ok(token) = text.parse::<ClaimToken>() {
        assert_eq!(token.to_string().parse(), Ok(token));
    }
}

/// What was read means the same once it was written and read again.
fn round_trip<T: Serialize + DeserializeOwned>(data: &[u8]) {
    let Ok(message) = command::parse::<T>("message", 1 << 20, data) else {
        return;
    };
    let written = serde_json::to_value(&message).expect("what was read can be written");
    let bytes = serde_json::to_vec(&written).expect("JSON");
    let again: T = command::parse("message", usize::MAX, &bytes).expect("can be read again");
    let again: Value = serde_json::to_value(&again).expect("can be written");
    assert_eq!(again, written);
}

/// Topics and filters: a device reaches its own channels and nothing else, however it asks.
pub fn topic(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(topic) = text.parse::<Topic>() {
        assert_eq!(topic.to_string(), text, "one topic, one text");
    }
    let fleet: FleetId = "demo".parse().expect("a fleet");
    let device: DeviceId = "edge-1".parse().expect("a device");
    let own = |channel: Channel| Topic::new(&fleet, &device, channel).to_string();
    let (up, down): (Vec<_>, Vec<_>) = Channel::ALL.into_iter().partition(|c| !c.is_down());
    let is_own = |channels: &[Channel]| channels.iter().any(|c| own(*c) == text);
    assert_eq!(device_may_publish(&fleet, &device, &text), is_own(&up));
    assert_eq!(device_may_subscribe(&fleet, &device, &text), is_own(&down));
}
