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
fn a_hold_counts_by_the_time_that_is_known_for_sure() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("agent.toml");
    std::fs::write(&config, format!("state_dir = {:?}\n", dir.path())).unwrap();
    // Beside this floor the machine's clock is one that was never set.
    std::fs::create_dir(dir.path().join("trust")).unwrap();
    let floor = dir.path().join("trust/time_floor");
    std::fs::write(floor, "2199-05-01T00:00:00Z").unwrap();
    let floor_ms = 7_236_950_400_000;

    assert!(agent(&config, &["hold", "--for", "1h"]).status.success());
    let hold = held(&config);
    assert!(hold["since_ms"].as_i64().unwrap() >= floor_ms, "{hold}");
    // One that ended before the floor is over.
    let ended = r#"{"reason":"x","since_ms":1,"until_ms":7236950399999}"#;
    std::fs::write(dir.path().join("hold.json"), ended).unwrap();
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

/// The agent's user may put links wherever root would write: root works there as that user.
#[test]
fn what_root_does_is_done_as_the_owner_of_the_state_folder() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
    const NOBODY: u32 = 65_534;
    let dir = tempfile::tempdir().unwrap();
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).unwrap();
    // Another user must be able to reach the program.
    let program = dir.path().join("dunlin-agent");
    std::fs::copy(env!("CARGO_BIN_EXE_dunlin-agent"), &program).unwrap();
    let (state, config) = (dir.path().join("state"), dir.path().join("agent.toml"));
    std::fs::create_dir(&state).unwrap();
    std::fs::write(&config, format!("state_dir = {state:?}\n")).unwrap();
    let is_root = std::fs::metadata(&state).unwrap().uid() == 0;
    if is_root {
        chown(&state, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let owner = std::fs::metadata(&state).unwrap();
    let call = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        let command = command.args(arguments).arg("--config").arg(&config);
        command.output().unwrap()
    };
    let done = call(&["hold", "--reason", "of root"]);
    assert!(done.status.success(), "{done:?}");
    let file = std::fs::metadata(state.join("hold.json")).unwrap();
    assert_eq!((file.uid(), file.gid()), (owner.uid(), owner.gid()));
    // The exit status is passed on.
    let done = call(&["install", "of-root.tar"]);
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    assert!(!state.join("inbox").exists());
    assert!(call(&["release"]).status.success());
}
