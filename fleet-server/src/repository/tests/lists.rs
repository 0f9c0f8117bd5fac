//! What stands on the lists of several roles at once.

use super::*;
use dunlin_protocol::bundle::Manifest;
use dunlin_protocol::id::Digest;
use serde_json::json;

const MODEL: &[u8] = b"model";

/// A version of `vision`; bundles of another `budget_ms` are other bundles.
fn manifest(version: u64, budget_ms: u64) -> Manifest {
    let blob = json!({ "sha256": Digest::of(MODEL).to_string(), "length": MODEL.len() });
    let tensor = |name: &str| json!([{ "name": name, "dtype": "FP32", "shape": [1, 4] }]);
    let text = json!({
        "schema": "dunlin.manifest/1", "kind": "model", "family": "vision", "version": version,
        "inputs": tensor("x"), "outputs": tensor("y"),
        "limits": { "tolerance_abs": 0.5, "latency_budget_ms": budget_ms },
        "resources": { "arch": ["any"], "ram_bytes": 1, "disk_bytes": 1, "agent_min": "0.1.0" },
        "files": { "model": blob, "golden": blob },
    });
    Manifest::parse(text.to_string().as_bytes()).unwrap()
}

fn entry(path: &str, manifest: &Manifest) -> TargetEntry {
    let custom = TargetCustom {
        family: manifest.family.clone(),
        version: manifest.version,
        hardware: vec!["any".to_owned()],
        rollback_floor: 0,
        kind: "model".to_owned(),
    };
    TargetEntry::of(path, &manifest.to_bytes().unwrap(), &custom)
}

fn team(version: u64, days: i32, entries: &[TargetEntry]) -> Vec<u8> {
    let signed = new_targets(version, day(days), entries);
    sign_envelope(signed, &[&key(5)]).unwrap().to_bytes()
}

fn top(version: u64, entries: &[TargetEntry]) -> Vec<u8> {
    let signed = new_delegating_targets(version, day(365), entries, &delegated_to(5));
    sign_envelope(signed, &[&key(2)]).unwrap().to_bytes()
}

fn with_manifests(submission: Submission, manifests: &[&Manifest]) -> Submission {
    let manifests = manifests.iter().map(|m| m.to_bytes().unwrap());
    Submission {
        manifests: manifests.collect(),
        ..submission
    }
}

fn top_submission(list: Vec<u8>) -> Submission {
    Submission {
        targets: Some(list),
        ..Submission::default()
    }
}

fn fixture() -> Fixture {
    let fixture = Fixture::new();
    let sent = futures_util::stream::iter([Ok::<_, std::io::Error>(MODEL.into())]);
    let digest = Digest::of(MODEL);
    let put = fixture.blobs.put(&digest, sent);
    fixture.runtime.block_on(put).unwrap();
    fixture
}

fn listed(published: &Published) -> Vec<(&str, &str)> {
    let bundles = published.bundles.iter();
    bundles
        .map(|b| (b.role.as_str(), b.target.path.as_str()))
        .collect()
}

#[test]
fn one_version_of_a_family_is_one_bundle_whoever_lists_it() {
    let fixture = fixture();
    let publish = |submission: Submission, manifests: &[&Manifest]| {
        fixture.publish(&with_manifests(submission, manifests), day(0))
    };
    let (first, other) = (manifest(1, 100), manifest(1, 200));
    let (teams, tops) = ("vision/1/t.json", "vision/1/m.json");
    publish(top_submission(top(1, &[entry(tops, &first)])), &[&first]).unwrap();
    // A team takes the version of a bundle that runs; a list has two of one version.
    let refused = |submission: Submission, manifests: &[&Manifest]| {
        let error = publish(submission, manifests).unwrap_err();
        assert!(matches!(error, RepositoryError::VersionTaken(_)), "{error}");
        error.to_string()
    };
    let said = refused(
        team_submission(team(1, 300, &[entry(teams, &other)])),
        &[&other],
    );
    assert!(said.contains("role vision lists vision/1/t.json"), "{said}");
    let two = [entry(tops, &first), entry("vision/1/n.json", &other)];
    refused(top_submission(top(2, &two)), &[&other]);
    let shown = fixture.repository.published().unwrap().unwrap();
    assert_eq!(listed(&shown), [("targets", tops)]);

    // The same bundle twice is no quarrel, and the top level decides over a team.
    let list = team(1, 300, &[entry(teams, &first)]);
    let published = publish(team_submission(list), &[&first]).unwrap();
    assert_eq!(published.bundles.len(), 2);
    let list = top(2, &[entry(tops, &other)]);
    let published = publish(top_submission(list), &[&other]).unwrap();
    assert_eq!(listed(&published), [("targets", tops)]);
    let shown = fixture.repository.published().unwrap().unwrap();
    assert_eq!(listed(&shown), [("targets", tops)]);
}

#[test]
fn a_list_that_expired_meanwhile_stays_listed_and_one_whose_key_is_withdrawn_does_not() {
    let fixture = fixture();
    let publish = |submission: Submission, manifests: &[&Manifest], now| {
        fixture.publish(&with_manifests(submission, manifests), now)
    };
    let (first, path) = (manifest(1, 100), "vision/1/t.json");
    publish(top_submission(top(1, &[])), &[], day(0)).unwrap();
    let list = team(1, 10, &[entry(path, &first)]);
    publish(team_submission(list), &[&first], day(0)).unwrap();

    // Key holders publish while the team's list has expired; as after a start, it is listed.
    let published = publish(top_submission(top(2, &[])), &[], day(20)).unwrap();
    assert_eq!(listed(&published), [("vision", path)]);
    let shown = fixture.repository.published().unwrap().unwrap();
    assert_eq!(listed(&shown), listed(&published));
    // Sent now, an expired list is refused.
    let late = team(2, 15, &[entry(path, &first)]);
    let late = publish(team_submission(late), &[], day(20)).unwrap_err();
    assert!(late.to_string().contains("expired"), "{late}");
    // Without the team's key, expired or not, nothing of it is listed.
    let signed = new_delegating_targets(3, day(365), &[] as &[TargetEntry], &delegated_to(6));
    let withdrawn = sign_envelope(signed, &[&key(2)]).unwrap().to_bytes();
    let published = publish(top_submission(withdrawn), &[], day(20)).unwrap();
    assert_eq!(listed(&published), []);
}
