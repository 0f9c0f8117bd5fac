//! The program as systemd runs it: exit codes, addresses, a drained stop.

use serde_json::Value;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dunlin-server"));
    command
        .env_remove("STATE_DIRECTORY")
        .env_remove("NOTIFY_SOCKET");
    command
}

fn run_with(dir: &Path, configuration: &str) -> Output {
    let file = dir.join("server.toml");
    std::fs::write(&file, configuration).unwrap();
    program().arg("--config").arg(file).output().unwrap()
}

#[test]
fn configuration_errors_are_told_all_at_once_and_exit_64() {
    let dir = tempfile::tempdir().unwrap();
    let ended = run_with(
        dir.path(),
        "fleet = \"a b\"\ncolour = 1\n[admin]\nlisten = \"0.0.0.0:1\"\n",
    );
    let told = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(64), "{told}");
    for key in ["fleet:", "colour:", "admin.tls:", "state_dir:"] {
        assert!(told.contains(key), "{key} is not in {told}");
    }
    let missing = program()
        .args(["--config", "/nowhere/server.toml"])
        .output()
        .unwrap();
    assert_eq!(missing.status.code(), Some(64));
    assert_eq!(
        program().arg("--colour").output().unwrap().status.code(),
        Some(64)
    );
    assert_eq!(
        program().arg("--help").output().unwrap().status.code(),
        Some(0)
    );
}

#[test]
fn what_cannot_start_exits_70() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let ended = run_with(
        dir.path(),
        &format!("fleet = \"demo\"\nstate_dir = \"{}\"", file.display()),
    );
    let told = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(70), "{told}");
    assert!(told.contains(file.to_str().unwrap()), "{told}");
}

#[test]
fn it_tells_where_it_listens_and_stops_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("server.toml");
    let free = "listen = \"127.0.0.1:0\"";
    let configuration =
        format!("fleet = \"demo\"\n[admin]\n{free}\n[devices]\n{free}\n[mqtt]\n{free}\n");
    std::fs::write(&file, configuration).unwrap();
    let mut server = program()
        .arg("--config")
        .arg(file)
        .arg("--state-dir")
        .arg(dir.path().join("state"))
        .arg("--print-addresses-json")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let told: Value = serde_json::from_str(&line).unwrap();
    assert!(
        told["admin"].as_str().unwrap().starts_with("127.0.0.1:"),
        "{line}"
    );
    assert_eq!(told["token"].as_str().unwrap().len(), 64);
    assert!(told["mqtt"].is_string() && told["devices"].is_string());
    let pid = server.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(server.wait().unwrap().code(), Some(0));
}
