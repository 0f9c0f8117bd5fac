//! Bundles that a team signs to which the targets keys handed a family on.

use super::{Fleet, Release, Repository, TrustStore};
use dunlin_agent::bundle::Kind;
use dunlin_agent::files::Disk;
use dunlin_protocol::command::DesiredBundle;
use dunlin_protocol::trust::SigningKey;
use std::path::PathBuf;

/// A fleet whose bundles are a team's.
async fn fleet_of(team: &str, pattern: &str, releases: &[Release]) -> (Fleet, Vec<DesiredBundle>) {
    let mut fleet = Fleet::new().await;
    let wants = releases.iter().map(|r| fleet.repository.add(r)).collect();
    fleet.repository.hand_to(team, pattern);
    publish(&mut fleet);
    (fleet, wants)
}

fn publish(fleet: &mut Fleet) {
    Repository::publish(&mut fleet.repository);
    fleet.upload();
}

fn kept(fleet: &Fleet) -> Vec<String> {
    let folder = fleet.dir.path().join("trust/delegated");
    let names = std::fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<String> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn trust(fleet: &Fleet, name: &str) -> PathBuf {
    fleet.dir.path().join("trust").join(name)
}

#[tokio::test]
async fn a_team_signs_its_family_and_its_metadata_is_fetched_once() {
    let (mut fleet, wants) = fleet_of("team a/b", "digits/*/*", &[Release::version(1)]).await;
    fleet.receive(&wants[0]).await.unwrap();
    assert_eq!(kept(&fleet), ["team%20a%2Fb.json"]);
    fleet.server.asked("");
    fleet.receive(&wants[0]).await.unwrap();
    let asked: Vec<_> = fleet.server.asked("").into_iter().map(|(p, _)| p).collect();
    assert_eq!(asked, ["metadata/2.root.json", "metadata/timestamp.json"]);
    // Taken back, it signs nothing more, whatever the device keeps of it.
    fleet.repository.take_back();
    fleet.repository.hand_to("team a/b", "letters/*/*");
    publish(&mut fleet);
    let error = fleet.receive(&wants[0]).await.unwrap_err();
    assert_eq!((error.kind, error.code), (Kind::Refused, "unknown_target"));
}

#[tokio::test]
async fn a_team_signs_no_other_family() {
    let (fleet, wants) = fleet_of("team", "letters/*/*", &[Release::version(1)]).await;
    let error = fleet.receive(&wants[0]).await.unwrap_err();
    assert_eq!((error.kind, error.code), (Kind::Refused, "unknown_target"));
    assert_eq!(kept(&fleet), [""; 0]);
}

#[tokio::test]
async fn a_role_named_like_a_file_of_the_device_overwrites_nothing() {
    for name in ["floors", "enrolled_root", "../floors", "../../ledger"] {
        let (fleet, wants) = fleet_of(name, "digits/*/*", &[Release::version(1)]).await;
        let anchor = std::fs::read(trust(&fleet, "enrolled_root.json")).unwrap();
        fleet.receive(&wants[0]).await.unwrap();
        assert_eq!(
            std::fs::read(trust(&fleet, "enrolled_root.json")).unwrap(),
            anchor
        );
        let floors = std::fs::read_to_string(trust(&fleet, "floors.json")).unwrap();
        assert_eq!(floors, r#"{"digits":1}"#);
        assert_eq!(kept(&fleet).len(), 1);
    }
}

#[tokio::test]
async fn the_floor_that_a_team_raised_stays() {
    let newer = Release {
        floor: 2,
        ..Release::version(2)
    };
    let (mut fleet, wants) = fleet_of("team", "digits/*/*", &[Release::version(1), newer]).await;
    let error = fleet.receive(&wants[0]).await.unwrap_err();
    assert_eq!((error.kind, error.code), (Kind::Refused, "below_floor"));
    // Also once the version that raised it is no longer listed.
    fleet.repository.take_back();
    let again = fleet.repository.add(&Release::version(1));
    fleet.repository.hand_to("team", "digits/*/*");
    publish(&mut fleet);
    assert_eq!(fleet.receive(&again).await.unwrap_err().code, "below_floor");
    let store = TrustStore::new(&Disk::native(), fleet.dir.path());
    assert_eq!(store.floors().unwrap()[&again.family], 2);
}

#[tokio::test]
async fn roles_that_are_no_longer_listed_leave_no_files() {
    let (mut fleet, wants) = fleet_of("team", "digits/*/*", &[Release::version(1)]).await;
    fleet.receive(&wants[0]).await.unwrap();
    assert_eq!(kept(&fleet), ["team.json"]);
    // Only with another snapshot key may a role leave the snapshot.
    fleet.repository.take_back();
    fleet.repository.snapshot = SigningKey::from_seed(&[14; 32]);
    fleet.repository.sign_root(2, &[]);
    let want = fleet.repository.add(&Release::version(2));
    publish(&mut fleet);
    fleet.receive(&want).await.unwrap();
    assert_eq!(kept(&fleet), [""; 0]);
}
