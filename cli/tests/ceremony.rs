//! The key ceremony as people go through it: keys on machines of their own, signatures as files,
//! OpenSSL on the other side, and devices that follow.

#![allow(clippy::unwrap_used)]

mod operator;

use dunlin_protocol::trust::{TrustError, TrustedSet};
use jiff::Timestamp;
use operator::Operator;
use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Somebody's machine: a folder, no server, a passphrase file.
struct Desk(tempfile::TempDir);

const PASSPHRASE: &str = "correct horse battery";

impl Desk {
    fn new() -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        desk.write("p", &format!("{PASSPHRASE}\n"));
        desk.write("server.json", &server_keys(1));
        desk
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    fn run(&self, line: &str) -> (i32, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dunlin"));
        let output = command
            .env_clear()
            .env("DUNLIN_CONTEXT", "/nonexistent")
            .env("DUNLIN_PASSPHRASE_FILE", self.path("p"))
            .current_dir(self.0.path())
            .args(line.split_whitespace())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(
            !out.contains(PASSPHRASE) && !err.contains(PASSPHRASE),
            "dunlin {line}"
        );
        (output.status.code().unwrap(), out, err)
    }

    fn ok(&self, line: &str) -> String {
        let (status, out, err) = self.run(line);
        assert_eq!(status, 0, "dunlin {line}: {out}{err}");
        out
    }

    fn fails(&self, line: &str, says: &str) {
        let (status, out, err) = self.run(line);
        assert_eq!(status, 1, "dunlin {line}: {out}{err}");
        assert!(
            format!("{out}{err}").contains(says),
            "dunlin {line}: {out}{err}"
        );
    }

    fn openssl(&self, line: &str) -> Output {
        let output = Command::new("openssl")
            .args(line.split_whitespace())
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "openssl {line}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        output
    }

    /// Alice, Bob and Carol with a key each, two of three for root and targets, and `keys/1.root.json`.
    fn first_root(&self) {
        for name in ["alice", "bob", "carol"] {
            self.ok(&format!("keys generate {name}"));
        }
        self.ok(
            "keys root new --root alice.pub --root bob.pub --root carol.pub --root-threshold 2 \
             --targets alice.pub --targets bob.pub --targets carol.pub --targets-threshold 2 \
             --server-keys server.json --out 1.request",
        );
        self.sign_and_combine(1, &["alice", "bob"]);
    }

    /// These people sign `N.request`; the new root goes to `keys/`.
    fn sign_and_combine(&self, version: u64, people: &[&str]) {
        let request = format!("{version}.request");
        for name in people {
            self.ok(&format!("keys sign {request} --key {name}.pem --yes"));
        }
        let signatures: Vec<String> = people
            .iter()
            .map(|name| self.signature(&request, name))
            .collect();
        let signatures = signatures.join(" ");
        self.ok(&format!("keys combine {request} {signatures} --dir keys"));
    }

    /// The file that somebody's key left beside a request.
    fn signature(&self, request: &str, name: &str) -> String {
        let file = format!("{request}.{name}.sig");
        assert!(self.path(&file).is_file(), "{file}");
        file
    }

    fn root(&self, version: u64) -> Vec<u8> {
        self.read(&format!("keys/{version}.root.json"))
    }
}

fn server_keys(seed: u8) -> String {
    let key = |n: u8| {
        let key = dunlin_protocol::trust::SigningKey::from_seed(&[n; 32]);
        key.public_key().to_json().clone()
    };
    serde_json::json!({"snapshot": key(100 + seed), "timestamp": key(200 + seed)}).to_string()
}

fn is_private(path: &Path) -> bool {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777 == 0o600
}

#[test]
fn openssl_reads_what_dunlin_encrypts_and_the_other_way_round() {
    let desk = Desk::new();
    desk.ok("keys generate alice");
    assert!(is_private(&desk.path("alice.pem")));
    let text = String::from_utf8(desk.read("alice.pem")).unwrap();
    assert!(text.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"));
    // The public half that OpenSSL derives is the one that was handed over.
    let derived = desk.openssl("pkey -in alice.pem -passin file:p -pubout");
    std::fs::write(desk.path("derived.pub"), &derived.stdout).unwrap();
    let public: Value = serde_json::from_slice(&desk.read("alice.pub")).unwrap();
    let der = desk.openssl("pkey -in alice.pem -passin file:p -pubout -outform DER");
    let raw = hex::encode(&der.stdout[der.stdout.len() - 32..]);
    assert_eq!(public["key"]["keyval"]["public"], raw.as_str());
    let asn1 = desk.openssl("asn1parse -in alice.pem");
    let asn1 = String::from_utf8_lossy(&asn1.stdout).into_owned();
    assert!(
        asn1.contains("scrypt") && asn1.contains("aes-256-cbc"),
        "{asn1}"
    );

    // A key is never overwritten.
    let before = desk.read("alice.pem");
    desk.fails("keys generate alice", "alice.pem already");
    assert_eq!(desk.read("alice.pem"), before);

    // OpenSSL's own: plain, PBKDF2, scrypt; and a passphrase that is wrong.
    desk.openssl("genpkey -algorithm ed25519 -out plain.pem");
    desk.openssl("pkcs8 -topk8 -in plain.pem -passout file:p -v2 aes-256-cbc -v2prf hmacWithSHA256 -out pbkdf2.pem");
    desk.openssl("pkcs8 -topk8 -in plain.pem -passout file:p -scrypt -out scrypt.pem");
    let der = desk.openssl("pkey -in plain.pem -pubout -outform DER");
    let raw = hex::encode(&der.stdout[der.stdout.len() - 32..]);
    for from in ["plain", "pbkdf2", "scrypt"] {
        desk.ok(&format!("keys import {from}.pem --name of-{from}"));
        let public: Value = serde_json::from_slice(&desk.read(&format!("of-{from}.pub"))).unwrap();
        assert_eq!(public["key"]["keyval"]["public"], raw.as_str(), "{from}");
        assert!(is_private(&desk.path(&format!("of-{from}.pem"))));
    }
    desk.write("wrong", "not it at all\n");
    desk.fails(
        "keys import scrypt.pem --name x --passphrase-file wrong",
        "scrypt.pem: wrong passphrase",
    );
    desk.openssl("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out rsa.pem");
    desk.fails("keys import rsa.pem --name x", "rsa.pem");
    assert!(!desk.path("x.pem").exists());

    // Passphrase changed, then taken away; OpenSSL agrees each time.
    desk.write("p2", "another one, longer\n");
    desk.ok("keys passphrase alice.pem --new-passphrase-file p2");
    desk.openssl("pkey -in alice.pem -passin file:p2 -noout");
    desk.fails("keys passphrase alice.pem --remove", "wrong passphrase");
    desk.ok("keys passphrase alice.pem --remove --passphrase-file p2");
    desk.openssl("pkey -in alice.pem -noout");
    assert!(is_private(&desk.path("alice.pem")));
}

#[test]
fn a_passphrase_is_asked_twice_on_the_terminal_and_never_shown() {
    let desk = Desk::new();
    let typed = |first: &str, second: &str, name: &str| {
        let line = format!("{} keys generate {name}", env!("CARGO_BIN_EXE_dunlin"));
        let mut child = Command::new("script")
            .args(["-qefc", &line, "/dev/null"])
            .env_remove("DUNLIN_PASSPHRASE_FILE")
            .current_dir(desk.0.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut keyboard, mut screen) =
            (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut seen = String::new();
        let mut until = |seen: &mut String, words: &str| {
            let mut byte = [0_u8; 1];
            while !seen.contains(words) && screen.read(&mut byte).unwrap() == 1 {
                seen.push(char::from(byte[0]));
            }
        };
        until(&mut seen, "New passphrase");
        until(&mut seen, ": ");
        keyboard.write_all(format!("{first}\n").as_bytes()).unwrap();
        until(&mut seen, "The same again: ");
        keyboard
            .write_all(format!("{second}\n").as_bytes())
            .unwrap();
        until(&mut seen, "never on the screen");
        (child.wait().unwrap().success(), seen)
    };
    // The second has a typing error that is taken back.
    let (done, seen) = typed("geheime Wörter", "geheime Wörtez\u{7f}r", "alice");
    assert!(done && !seen.contains("geheime"), "{seen}");
    desk.write("typed", "geheime Wörter\n");
    desk.openssl("pkey -in alice.pem -passin file:typed -noout");
    let (done, seen) = typed("geheime Wörter", "something else", "bob");
    assert!(!done && seen.contains("differ"), "{seen}");
    assert!(!desk.path("bob.pem").exists());
}

#[test]
fn without_a_terminal_or_consent_nothing_is_signed() {
    let desk = Desk::new();
    desk.first_root();
    desk.ok("keys root edit --dir keys --out 2.request");
    desk.fails("keys sign 2.request --key alice.pem", "--yes");
    assert!(!desk.path("2.request.alice.sig").exists());
    // No terminal, no file: said, not hung. setsid takes the terminal away.
    let output = Command::new("setsid")
        .args([
            "-w",
            env!("CARGO_BIN_EXE_dunlin"),
            "keys",
            "generate",
            "dave",
        ])
        .env_remove("DUNLIN_PASSPHRASE_FILE")
        .current_dir(desk.0.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && said.contains("--passphrase-file"),
        "{said}"
    );
    // By file descriptor.
    let line = format!(
        "{} keys generate dave --passphrase-fd 7 7<p",
        env!("CARGO_BIN_EXE_dunlin")
    );
    let status = Command::new("sh")
        .args(["-c", &line])
        .current_dir(desk.0.path())
        .status()
        .unwrap();
    assert!(status.success());
    desk.openssl("pkey -in dave.pem -passin file:p -noout");
}

#[test]
fn signatures_travel_as_files_and_only_those_asked_for_count() {
    let desk = Desk::new();
    desk.first_root();
    let (status, shown, _) = desk.run("keys inspect 1.request");
    assert_eq!(status, 0);
    for words in [
        "FIRST root",
        "root: 2 of 3 keys must sign",
        "+ alice (",
        "+ server (",
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }

    desk.ok("keys root edit --dir keys --targets-threshold 3 --out 2.request");
    let (_, shown, _) = desk.run("keys inspect 2.request");
    assert!(shown.contains("targets: 3 (before: 2) of 3"), "{shown}");
    desk.ok("keys generate mallory");
    desk.fails("keys sign 2.request --key mallory.pem --yes", "not asked");
    desk.ok("keys sign 2.request --key alice.pem --yes");

    // One of two: kept, and told who is missing.
    let carol: Value = serde_json::from_slice(&desk.read("carol.pub")).unwrap();
    let alice = desk.signature("2.request", "alice");
    let (status, said, _) = desk.run(&format!("keys combine 2.request {alice} --dir keys"));
    assert_eq!(status, 1, "{said}");
    assert!(said.contains("1 missing"), "{said}");
    assert!(said.contains(&format!("carol ({})", carol["keyid"].as_str().unwrap())));
    assert!(!desk.path("keys/2.root.json").exists());
    // The same signature again is no second one.
    desk.fails(&format!("keys combine 2.request {alice}"), "1 missing");

    // A stranger's signature, one over other content, and a forged one.
    let text = String::from_utf8(desk.read(&alice)).unwrap();
    let mallory: Value = serde_json::from_slice(&desk.read("mallory.pub")).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    let keyid = value["keyid"].as_str().unwrap();
    desk.write(
        "forged.sig",
        &text.replace(keyid, mallory["keyid"].as_str().unwrap()),
    );
    desk.fails("keys combine 2.request forged.sig", "not asked");
    desk.write(
        "forged.sig",
        &text.replace(keyid, carol["keyid"].as_str().unwrap()),
    );
    desk.fails("keys combine 2.request forged.sig", "does not verify");
    desk.ok("keys root edit --dir keys --targets-threshold 1 --out other.request");
    desk.ok("keys sign other.request --key bob.pem --yes");
    desk.fails(
        "keys combine 2.request other.request.bob.sig",
        "other content",
    );

    desk.ok("keys sign 2.request --key bob.pem --yes");
    desk.ok("keys combine 2.request 2.request.bob.sig --dir keys");
    let mut set = TrustedSet::from_root(&desk.root(1), Timestamp::now()).unwrap();
    let _ = set.update_root(&desk.root(2)).unwrap();

    // Whoever trusts version 2 does not sign what rests on version 1.
    desk.fails(
        "keys sign other.request --key alice.pem --dir keys --yes",
        "rests on",
    );
}

#[test]
fn what_is_shown_is_what_is_signed_whatever_the_request_says() {
    let desk = Desk::new();
    desk.first_root();
    desk.ok("keys root edit --dir keys --root-threshold 1 --out 2.request");
    let mut request: Value = serde_json::from_slice(&desk.read("2.request")).unwrap();
    request["summary"] = serde_json::json!(["nothing changes"]);
    request["metadata"]["signed"]["x\u{1b}[2K\u{202e}"] = "y".into();
    desk.write("2.request", &request.to_string());
    let (_, _, shown) = desk.run("keys sign 2.request --key alice.pem --yes");
    assert!(shown.contains("root: 1 (before: 2) of 3"), "{shown}");
    assert!(!shown.contains("nothing changes"), "{shown}");
    assert!(
        !shown.contains('\u{1b}') && !shown.contains('\u{202e}'),
        "{shown}"
    );
    assert!(shown.contains("also signed"), "{shown}");
}

#[test]
fn devices_follow_ten_roots_and_a_revoked_key_signs_nothing() {
    let desk = Desk::new();
    desk.first_root();
    // Ten people take each other's seats; the one before last and the newest sign.
    for version in 2..=10_u64 {
        let (old, new) = (version - 2, version - 1);
        let old = if old == 0 {
            "carol".to_owned()
        } else {
            format!("p{old}")
        };
        let new = format!("p{new}");
        desk.ok(&format!("keys generate {new} --no-passphrase"));
        desk.ok(&format!(
            "keys rotate {old} {new}.pub --dir keys --out {version}.request"
        ));
        desk.sign_and_combine(version, &["alice", "bob"]);
    }
    desk.write("next.json", &server_keys(2));
    desk.ok("keys root edit --dir keys --server-keys next.json --out 11.request");
    desk.sign_and_combine(11, &["alice", "p9"]);

    // A device that has seen only the first one.
    let mut set = TrustedSet::from_root(&desk.root(1), Timestamp::now()).unwrap();
    for version in 2..=11 {
        let _ = set.update_root(&desk.root(version)).unwrap();
    }
    set.finish_root().unwrap();
    assert_eq!(set.root().version, 11);

    // Bob's key is stolen: without it, two are left and both must sign.
    desk.ok("keys revoke bob --dir keys --out 12.request");
    // Old AND new: bob could help the old threshold, but then one of the new is missing.
    desk.ok("keys sign 12.request --key bob.pem --yes");
    desk.ok("keys sign 12.request --key alice.pem --yes");
    let (status, said, _) =
        desk.run("keys combine 12.request 12.request.bob.sig 12.request.alice.sig --dir keys");
    assert_eq!(status, 1, "{said}");
    assert!(
        said.contains("root version 11 asks for 2: enough"),
        "{said}"
    );
    assert!(
        said.contains("root version 12 asks for 2: 1 missing"),
        "{said}"
    );
    desk.sign_and_combine(12, &["p9"]);
    let _ = TrustedSet::from_root(&desk.root(11), Timestamp::now())
        .unwrap()
        .update_root(&desk.root(12))
        .unwrap();
    // From now on bob is a stranger, and too few are left to lose another one.
    desk.ok("keys root edit --dir keys --out 13.request");
    desk.fails("keys sign 13.request --key bob.pem --yes", "not asked");
    desk.fails(
        "keys revoke alice --dir keys --out 13.request",
        "--root-threshold",
    );

    // A root that skips the chain is refused as devices refuse it.
    let skipped = TrustedSet::from_root(&desk.root(1), Timestamp::now())
        .unwrap()
        .update_root(&desk.root(12))
        .unwrap_err();
    assert!(
        matches!(
            skipped,
            TrustError::Threshold { .. } | TrustError::NotNextRoot { .. }
        ),
        "{skipped}"
    );
}

#[test]
fn releases_are_signed_by_the_same_requests() {
    let operator = Operator::begin();
    std::fs::write(operator.file("p"), format!("{PASSPHRASE}\n")).unwrap();
    let with = "--passphrase-file p";
    for name in ["alice", "bob"] {
        operator.ok(&format!("keys generate {name} --dir {name} {with}"));
    }
    operator.ok(
        "keys root new --root alice/alice.pub --root bob/bob.pub --targets alice/alice.pub --targets bob/bob.pub \
         --out root.request",
    );
    for name in ["alice", "bob"] {
        operator.ok(&format!(
            "keys sign root.request --key {name}/{name}.pem --yes {with}"
        ));
    }
    operator.ok("keys combine root.request root.request.alice.sig root.request.bob.sig --dir keys");
    operator.ok("keys upload-root --dir keys");

    operator.pack(1);
    operator.ok("bundle sign p1 --keys keys --request targets.request");
    let shown = operator.ok("keys inspect targets.request");
    assert!(shown.contains("+ digits/1/manifest.json"), "{shown}");
    for name in ["alice", "bob"] {
        operator.ok(&format!(
            "keys sign targets.request --key {name}/{name}.pem --dir keys --yes {with}"
        ));
    }
    operator.ok("keys combine targets.request targets.request.alice.sig targets.request.bob.sig --out t.json");
    operator.ok("bundle publish p1 --targets t.json");
    assert!(operator.ok("bundle list").contains("digits"));

    // A targets key is rotated; the list is renewed by the keys of now, on what the old ones signed.
    operator.ok(&format!("keys generate carol --dir carol {with}"));
    operator.ok("keys revoke bob --replace-with carol/carol.pub --dir keys --out root.request");
    for name in ["alice", "bob", "carol"] {
        operator.ok(&format!(
            "keys sign root.request --key {name}/{name}.pem --yes {with}"
        ));
    }
    operator.ok(
        "keys combine root.request root.request.alice.sig root.request.bob.sig root.request.carol.sig --dir keys",
    );
    operator.ok("keys upload-root --dir keys");
    operator.ok("bundle sign --renew --keys keys --request targets.request");
    for name in ["alice", "carol"] {
        operator.ok(&format!(
            "keys sign targets.request --key {name}/{name}.pem --dir keys --yes {with}"
        ));
    }
    operator.ok("keys combine targets.request targets.request.alice.sig targets.request.carol.sig --out t.json");
    operator.ok("bundle publish p1 --targets t.json");
}

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
