//! Holding updates back by hand, with the agent's own program and no agent running.

#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn agent(config: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dunlin-agent"))
        .args(arguments)
        .arg("--config")
        .arg(config)
        .output()
        .unwrap()
}

fn held(config: &Path) -> Value {
    let status = agent(config, &["status", "--json"]);
    let document: Value = serde_json::from_slice(&status.stdout).unwrap();
    document["hold"].clone()
}

#[test]
fn updates_are_held_with_a_reason_until_they_are_released() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("agent.toml");
    std::fs::write(&config, format!("state_dir = {:?}\n", dir.path())).unwrap();
    assert_eq!(held(&config), Value::Null);

    let done = agent(&config, &["hold", "--for", "8h", "--reason", "line 3"]);
    assert!(done.status.success(), "{done:?}");
    let hold = held(&config);
    assert_eq!(hold["reason"], "line 3");
    let (since, until) = (&hold["since_ms"], &hold["until_ms"]);
    let hours = until.as_i64().unwrap() - since.as_i64().unwrap();
    assert_eq!(hours, 8 * 3_600_000);
    let status = agent(&config, &["status"]);
    let text = String::from_utf8(status.stdout).unwrap();
    assert!(
        text.contains("hold       updates are held back until"),
        "{text}"
    );

    // Again, without an end.
    assert!(agent(&config, &["hold"]).status.success());
    assert_eq!(held(&config)["until_ms"], Value::Null);
    assert!(agent(&config, &["release"]).status.success());
    assert!(agent(&config, &["release"]).status.success());
    assert_eq!(held(&config), Value::Null);
}

#[test]
fn what_is_no_time_or_too_long_a_reason_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("agent.toml");
    std::fs::write(&config, format!("state_dir = {:?}\n", dir.path())).unwrap();
    for time in ["8", "h", "0h", "-1h", "8w", "1.5h"] {
        let done = agent(&config, &["hold", &format!("--for={time}")]);
        assert_eq!(done.status.code(), Some(64), "{time}");
    }
    let long = "x".repeat(201);
    let done = agent(&config, &["hold", "--reason", &long]);
    assert_eq!(done.status.code(), Some(1));
    assert_eq!(held(&config), Value::Null);
}
