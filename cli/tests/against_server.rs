//! An operator's day against a real fleet server process: every answer of the admin API is read by
//! the code that users run.

#![allow(clippy::unwrap_used)]

mod operator;

use operator::Operator;

#[test]
fn a_model_goes_from_the_key_holders_to_the_server() {
    let operator = Operator::begin();
    operator.ok("keys init --dir keys");
    operator.refused("token create --keys keys", "keys upload-root");
    operator.ok("keys upload-root --dir keys");
    assert!(
        operator
            .ok("keys upload-root --dir keys")
            .contains("already")
    );
    assert_eq!(operator.json("keys show --dir keys")["root_version"], 1);

    // Two holders sign one after the other; one signature is not enough.
    operator.pack(1);
    operator.ok("bundle sign p1 --keys keys --key targets-1 --out t.json");
    operator.refused("bundle publish p1 --targets t.json", "threshold");
    operator.ok(
        "bundle sign --add-signature --targets t.json --keys keys --key targets-2 --out t.json",
    );
    operator.ok("bundle publish p1 --targets t.json");

    // The next version builds on what the server has.
    operator.pack(2);
    let both = "--keys keys --key targets-2 --key targets-3 --out t2.json";
    let signed = operator.json(&format!("bundle sign p2 {both}"));
    assert_eq!(signed["version"], 2);
    assert_eq!(signed["targets"].as_array().unwrap().len(), 2);
    operator.refused("bundle publish p2 --targets t.json", "does not list");
    let published = operator.json("bundle publish p2 --targets t2.json");
    assert_eq!(published["uploaded"], 4);
    assert_eq!(operator.json("bundle list").as_array().unwrap().len(), 2);
    assert!(operator.ok("bundle list").contains("digits"));
    let one = operator.json("bundle inspect --published digits/2");
    assert_eq!(one["manifest"]["version"], 2);
    operator.refused("bundle inspect --published digits/9", "not_found");

    let claim = operator.json("token create --keys keys --uses 3 --label site=a");
    let token: dunlin_protocol::enroll::ClaimToken =
        claim["token"].as_str().unwrap().parse().unwrap();
    let root = std::fs::read(operator.file("keys/1.root.json")).unwrap();
    assert_eq!(token.root_sha256, dunlin_protocol::id::Digest::of(&root));
    assert!(operator.ok("token list").contains("site=a"));
    operator.ok(&format!("token revoke {}", claim["id"].as_str().unwrap()));
    assert!(operator.ok("token list").contains("no claim token"));

    assert!(
        operator
            .ok("device list --label site=a --online")
            .contains("no device")
    );
    operator.refused("device show edge-1", "not_found");
    operator.refused("rollout create digits 2", "no_devices");
    assert!(operator.ok("rollout list").contains("no rollout"));
    operator.refused("rollout show r-1 --watch", "not_found");
    assert!(operator.ok("drift digits").contains("no inferences"));
}

#[test]
fn keys_of_another_fleet_and_a_replaced_server_are_noticed() {
    let operator = Operator::begin();
    operator.ok("keys init --dir keys");
    operator.ok("keys upload-root --dir keys");
    operator.ok("keys init --dir others");
    operator.refused("token create --keys others", "key folder of this fleet");

    let context = operator.file("context.toml");
    let text = std::fs::read_to_string(&context).unwrap();
    let pin = text
        .lines()
        .find(|l| l.starts_with("fleet_ca_sha256"))
        .unwrap();
    let other = format!("fleet_ca_sha256 = \"{}\"", "ab".repeat(32));
    std::fs::write(&context, text.replace(pin, &other)).unwrap();
    operator.refused("token create --keys keys", "pinned at login");
}
