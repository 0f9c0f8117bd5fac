//! Private keys: OpenSSL on the other side, passphrases on the terminal and elsewhere.

use crate::desk::{Desk, PASSPHRASE, is_private};
use serde_json::Value;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

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
            .current_dir(desk.folder())
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
        .current_dir(desk.folder())
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
        .current_dir(desk.folder())
        .status()
        .unwrap();
    assert!(status.success());
    desk.openssl("pkey -in dave.pem -passin file:p -noout");
}
