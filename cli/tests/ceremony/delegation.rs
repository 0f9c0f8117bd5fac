//! A family in a team's hands.

use crate::desk::{Desk, PASSPHRASE};
use crate::operator::Operator;
use serde_json::Value;

#[test]
fn a_forged_list_before_hides_nothing() {
    let operator = Operator::begin();
    delegating(&operator, "old-team");
    operator.pack(1);
    operator.ok("bundle sign p1 --keys keys --request t.request");
    let read = || -> Value {
        serde_json::from_slice(&std::fs::read(operator.file("t.request")).unwrap()).unwrap()
    };
    let mut request = read();
    let path = "+ digits/1/manifest.json";
    assert!(operator.ok("keys inspect t.request").contains(path));
    // As if the bundle had been on the list all the time.
    let forged = serde_json::json!({"signed": request["metadata"]["signed"], "signatures": []});
    request["previous"] = forged.to_string().into();
    std::fs::write(operator.file("t.request"), request.to_string()).unwrap();
    let shown = operator.ok("keys inspect t.request");
    assert!(
        shown.contains(path) && shown.contains("shown as new"),
        "{shown}"
    );
}

/// A fleet with Alice's key for root and targets, and a first list that delegates `digits`.
fn delegating(operator: &Operator, team: &str) {
    std::fs::write(operator.file("p"), format!("{PASSPHRASE}\n")).unwrap();
    for name in ["alice", "old-team", "new-team"] {
        operator.ok(&format!("keys generate {name} --no-passphrase"));
    }
    operator.ok("keys root new --root alice.pub --targets alice.pub --out root.request");
    operator.ok("keys sign root.request --key alice.pem --yes");
    operator.ok("keys combine root.request root.request.alice.sig --dir keys");
    operator.ok("keys upload-root --dir keys");
    hand_over(
        operator,
        &format!("delegate --family digits --to {team}.pub"),
    );
}

/// Proposes, signs and publishes the next top-level list.
fn hand_over(operator: &Operator, proposal: &str) {
    operator.ok(&format!("keys {proposal} --dir keys --out t.request"));
    operator.ok("keys sign t.request --key alice.pem --dir keys --yes");
    operator.ok("keys combine t.request t.request.alice.sig --out t.json");
    operator.ok("bundle publish --targets t.json");
}

/// A team signs version `version` of digits with its own key and publishes it.
fn release(operator: &Operator, version: u64, team: &str, first: &str) -> (i32, String, String) {
    for line in [
        format!("bundle sign p{version} --role digits --keys keys --request d.request {first}"),
        format!("keys sign d.request --key {team}.pem --dir keys --yes"),
        format!("keys combine d.request d.request.{team}.sig --out d.json"),
    ] {
        let (status, out, err) = operator.run(&line);
        if status != 0 {
            return (status, out, err);
        }
    }
    operator.run(&format!(
        "bundle publish p{version} --role digits --targets d.json"
    ))
}

#[test]
fn a_family_changes_hands_and_comes_back() {
    let operator = Operator::begin();
    delegating(&operator, "old-team");
    for version in [1, 2, 3] {
        operator.pack(version);
    }
    let (status, _, err) = release(&operator, 1, "new-team", "");
    assert_eq!(status, 1, "{err}");
    assert!(err.contains("not asked to sign"), "{err}");
    let (status, _, err) = release(&operator, 1, "old-team", "");
    assert_eq!(status, 0, "{err}");

    // Another team takes over: it neither needs nor trusts the list before, only counts on.
    hand_over(&operator, "delegate --family digits --to new-team.pub");
    let (status, _, err) = release(&operator, 2, "old-team", "");
    assert_eq!(status, 1, "{err}");
    let (status, _, err) = release(&operator, 2, "new-team", "");
    assert!(status == 1 && err.contains("--first"), "{err}");
    let (status, _, err) = release(&operator, 2, "new-team", "--first");
    assert_eq!(status, 0, "{err}");
    let listed = |version: u64| {
        let bundles = operator.json("bundle list");
        let bundles = bundles.as_array().unwrap().clone();
        let found = bundles.into_iter().find(|b| b["version"] == version);
        found.is_some_and(|b| b["listed"] == true)
    };
    assert!(!listed(1) && listed(2));

    // Taken back: the family is the targets keys' again.
    hand_over(&operator, "undelegate digits");
    assert!(!listed(2));
    let (status, _, err) = release(&operator, 3, "new-team", "");
    assert!(status == 1 && err.contains("nobody delegates"), "{err}");
    operator.refused(
        "keys undelegate digits --dir keys --out t.request",
        "nobody delegates",
    );
    std::fs::copy(operator.file("alice.pem"), operator.file("keys/alice.pem")).unwrap();
    let last = operator.ok("bundle sign p3 --keys keys --key alice --out t.json --targets t.json");
    assert!(last.contains("ready"), "{last}");
}

#[test]
fn a_delegation_that_covers_nothing_or_too_much_is_not_proposed() {
    let desk = Desk::new();
    desk.first_root();
    desk.ok("keys generate team");
    let delegate = "keys delegate --family vision --to team.pub --first --dir keys --out t.request";
    desk.fails(&format!("{delegate} --paths vision/*"), "vision/*/*");
    desk.fails(&format!("{delegate} --paths */*/*"), "begin with vision/");
    desk.fails(&format!("{delegate} --threshold 2"), "threshold 2");
    desk.fails(&format!("{delegate} --role targets"), "name");
    let shown = desk.ok(delegate);
    assert!(
        shown.contains("+ delegated: vision/*/* to role vision"),
        "{shown}"
    );
    assert!(shown.contains("team ("), "{shown}");
}
