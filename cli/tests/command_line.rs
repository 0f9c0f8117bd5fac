//! The binary as its users call it: help, exit statuses, errors.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

fn dunlin(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dunlin"));
    for name in [
        "DUNLIN_SERVER",
        "DUNLIN_TOKEN",
        "DUNLIN_TOKEN_FILE",
        "DUNLIN_CA",
    ] {
        command.env_remove(name);
    }
    let none = std::env::temp_dir().join("dunlin-no-such-context.toml");
    command
        .env("DUNLIN_CONTEXT", none)
        .args(args)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_help_is_the_committed_one() {
    let got = text(&dunlin(&["--help"]).stdout);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/help.txt");
    if std::env::var_os("DUNLIN_BLESS").is_some() {
        std::fs::write(&file, &got).unwrap();
    }
    let committed = std::fs::read_to_string(&file).unwrap();
    assert_eq!(
        got, committed,
        "if this is meant, run again with DUNLIN_BLESS=1"
    );
}

#[test]
fn every_kind_of_failure_has_its_exit_status() {
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "secret-token").unwrap();
    let token = token.to_str().unwrap();
    let cases: [(&[&str], i32, &str); 6] = [
        (&["nonsense"], 64, "nonsense"),
        (&["device", "list"], 64, "dunlin login"),
        (
            &[
                "device",
                "list",
                "--server",
                "http://far.example",
                "--token-file",
                token,
            ],
            64,
            "plain http",
        ),
        (
            &["device", "list", "--server", &closed, "--token-file", token],
            69,
            "cannot be reached",
        ),
        (
            &["bundle", "inspect", "/no/such/folder"],
            1,
            "/no/such/folder",
        ),
        (
            &["keys", "show", "--dir", folder.path().to_str().unwrap()],
            1,
            "1.root.json",
        ),
    ];
    for (args, status, says) in cases {
        let output = dunlin(args);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {error}");
        assert!(error.contains(says), "{args:?}: {error}");
        assert!(
            output.stdout.is_empty() && !error.contains("secret-token"),
            "{args:?}"
        );
    }
}

#[test]
fn completion_and_version_print_and_succeed() {
    for args in [
        &["completion", "bash"][..],
        &["completion", "zsh"],
        &["completion", "fish"],
        &["--version"],
    ] {
        let output = dunlin(args);
        assert!(
            output.status.success() && text(&output.stdout).contains("dunlin"),
            "{args:?}"
        );
    }
}

#[test]
fn a_model_is_packed_from_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let spec = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/models/digits/v2");
    let out = folder.path().join("packed");
    let (spec, out) = (spec.to_str().unwrap(), out.to_str().unwrap());
    let packed = dunlin(&["bundle", "pack", spec, "--out", out]);
    assert!(packed.status.success(), "{}", text(&packed.stderr));
    assert!(
        text(&packed.stdout).contains("12 golden cases met"),
        "{}",
        text(&packed.stdout)
    );
    let shown = text(&dunlin(&["bundle", "inspect", out, "--json"]).stdout);
    assert!(
        shown.contains("\"target\": \"digits/2/manifest.json\""),
        "{shown}"
    );
}

#[test]
fn a_profile_is_made_from_rows_and_packed() {
    let folder = tempfile::tempdir().unwrap();
    let spec = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/models/digits/v2");
    let golden = std::fs::read(spec.join("golden.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_slice(&golden).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    // "validation row 3, a 7"
    let rows = cases.iter().cycle().take(120).map(|case| {
        let name = case["name"].as_str().unwrap();
        let digit = name.rsplit(' ').next().unwrap();
        let row = serde_json::json!({"inputs": case["inputs"], "label": digit});
        format!("{row}\n")
    });
    let data = folder.path().join("rows.jsonl");
    std::fs::write(&data, rows.collect::<String>()).unwrap();
    let (profile, out) = (
        folder.path().join("profile.json"),
        folder.path().join("packed"),
    );
    let [spec, data, profile, out] =
        [&spec, &data, &profile, &out].map(|path| path.to_str().unwrap());
    let made = dunlin(&[
        "bundle",
        "profile",
        spec,
        "--data",
        data,
        "-o",
        profile,
        "--segment-key",
        "camera",
        "--segment",
        "north",
        "--json",
    ]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let said: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!(
        (&said["rows"], &said["features"]),
        (&120.into(), &64.into())
    );
    assert_eq!(said["calibration"]["rows"], 120);
    let written: serde_json::Value =
        serde_json::from_slice(&std::fs::read(profile).unwrap()).unwrap();
    assert_eq!(written["segments"]["values"], serde_json::json!(["north"]));
    let mix: u64 = written["outputs"]["counts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_u64().unwrap())
        .sum();
    assert_eq!(mix, 120);
    let packed = dunlin(&["bundle", "pack", spec, "--profile", profile, "--out", out]);
    assert!(packed.status.success(), "{}", text(&packed.stderr));

    std::fs::write(data, "{\"inputs\":{\"pixels\":[1,2]}}\n").unwrap();
    let refused = dunlin(&["bundle", "profile", spec, "--data", data, "-o", profile]);
    let problem = text(&refused.stderr);
    assert!(
        problem.contains("rows.jsonl:1:") && problem.contains("[1, 64]"),
        "{problem}"
    );
}
