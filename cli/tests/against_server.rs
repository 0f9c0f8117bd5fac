//! An operator's day against a real fleet server process: every answer of the admin API is read by
//! the code that users run.

#![allow(clippy::unwrap_used)]

mod operator;

use operator::Operator;
use serde_json::Value;

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
    let patch = &published["patches"][0];
    assert_eq!(
        (&patch["bundle"], &patch["from_version"]),
        (&"digits/2".into(), &1.into())
    );
    let patch_bytes = patch["outcome"]["uploaded"]["patch_bytes"]
        .as_u64()
        .unwrap();
    assert!(
        patch_bytes
            < patch["outcome"]["uploaded"]["whole_bytes"]
                .as_u64()
                .unwrap()
    );
    let again = operator.json("bundle publish p2 --targets t2.json");
    assert_eq!(again["patches"][0]["outcome"], "already_there");
    let none = operator.json("bundle publish p2 --targets t2.json --patches 0");
    assert_eq!(none["patches"].as_array().unwrap().len(), 0);
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
fn a_consumer_is_added_listed_renewed_and_revoked() {
    use std::os::unix::fs::PermissionsExt as _;
    let operator = Operator::begin();
    assert!(operator.ok("consumer list").contains("no consumer yet"));
    let added = operator.json("consumer add grafana --channels metrics,event --devices a,b");
    assert_eq!(added["client_id"], "consumer+grafana");
    let filters = ["a/metrics", "b/metrics", "a/event", "b/event"];
    let filters = filters.map(|end| format!("dunlin/v1/test/{end}"));
    assert_eq!(added["filters"], serde_json::json!(filters));
    let key = operator.file("grafana/client.key");
    assert_eq!(key.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let openssl = |line: &str| {
        let output = std::process::Command::new("openssl")
            .current_dir(operator.folder())
            .args(line.split_whitespace())
            .output()
            .unwrap();
        assert!(output.status.success(), "openssl {line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let verified = openssl("verify -purpose sslclient -CAfile grafana/ca.pem grafana/client.pem");
    assert!(verified.contains("OK"), "{verified}");
    let public = |file: &str| openssl(&format!("x509 -in {file} -noout -pubkey"));
    let of_key = openssl("pkey -in grafana/client.key -pubout");
    assert_eq!(public("grafana/client.pem"), of_key);

    // Given once; a key that is there is never written over.
    operator.refused("consumer add grafana", "is there already");
    operator.refused("consumer add grafana --out other", "a name is given once");
    operator.refused("consumer add x --channels metrics,desired", "desired");
    operator.refused("consumer add y --devices a/b", "devices");
    let (status, _, told) = operator.run("consumer add a/b");
    assert!(status == 64 && told.contains("letters, digits"), "{told}");
    for folder in ["other", "x", "y", "a"] {
        assert!(!operator.file(folder).exists(), "{folder}");
    }

    operator.ok("consumer renew grafana");
    assert_ne!(openssl("pkey -in grafana/client.key -pubout"), of_key);

    // A key that was made elsewhere stays there.
    openssl(
        "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=root -keyout k -out c",
    );
    let foreign = operator.json("consumer add historian --csr c");
    assert!(foreign["key_file"].is_null());
    assert!(!operator.file("historian/client.key").exists());
    assert_eq!(
        public("historian/client.pem"),
        openssl("pkey -in k -pubout")
    );
    std::fs::write(operator.file("c"), "no request").unwrap();
    operator.refused("consumer add z --csr c", "PKCS #10");

    operator.ok("consumer revoke historian");
    operator.ok("consumer revoke historian");
    operator.refused("consumer renew historian", "revoked");
    operator.refused("consumer revoke nobody", "not_found");
    let all = operator.json("consumer list");
    let row = |at: usize, field: &str| all[at][field].clone();
    assert_eq!(
        (row(0, "name"), row(1, "name")),
        ("grafana".into(), "historian".into())
    );
    assert_eq!(
        (row(0, "created_by"), row(0, "renewed_by")),
        ("admin".into(), "admin".into())
    );
    assert_eq!(
        (row(0, "revoked_by"), row(1, "revoked_by")),
        (Value::Null, "admin".into())
    );
    assert!(operator.ok("consumer list").contains("a,b"));
}

#[test]
fn a_patch_is_written_and_applied_as_devices_do() {
    let operator = Operator::begin();
    operator.pack(2);
    operator.pack(3);
    let made = operator.json("bundle patch p2 p3 -o 2-3.patch");
    let patch = std::fs::read(operator.file("2-3.patch")).unwrap();
    assert_eq!(made["patch_bytes"], patch.len());
    assert!(
        operator
            .ok("bundle patch p2 p3 -o 2-3.patch")
            .contains("difference")
    );
    let applied = operator.json("bundle apply p2 2-3.patch -o model.onnx");
    assert_eq!(applied["sha256"], made["to"]);
    let model = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/models/digits/v3/model.onnx"
    );
    let model = std::fs::read(model).unwrap();
    assert_eq!(std::fs::read(operator.file("model.onnx")).unwrap(), model);
    operator.refused(
        "bundle apply p2 p2/manifest.json -o x",
        "patch: begins with",
    );
    assert!(!operator.file("x").exists());
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
