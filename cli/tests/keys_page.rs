//! Follows `docs/keys.md` to the letter: every command of its `sh` blocks, in one shell on a terminal,
//! against a real fleet server, with the questions answered as people would. Then a device that knows
//! only the first root installs what the page's last signers released.

#![allow(clippy::unwrap_used)]

mod operator;

use operator::Operator;
use serde_json::Value;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PASSPHRASE: &str = "a passphrase of this page";
const TIMEOUT: Duration = Duration::from_secs(120);

/// The commands of every `sh` block, in order.
fn commands(page: &str) -> Vec<String> {
    let mut inside = false;
    let mut commands = Vec::new();
    for line in page.lines() {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            command if inside && !command.is_empty() => commands.push(command.to_owned()),
            _ => {}
        }
    }
    commands
}

/// Runs the commands in one shell that ends at the first that fails; answers passphrases and
/// questions; what the screen showed.
fn follow(operator: &Operator, commands: &[String]) -> (bool, String) {
    let mut script = "set -e\n".to_owned();
    for command in commands {
        script.push_str(&format!("echo '$ {command}'\n{command}\n"));
    }
    std::fs::write(operator.file("page.sh"), script).unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_dunlin"));
    let path = format!(
        "{}:{}",
        program.parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let mut shell = Command::new("script")
        .args(["-qefc", "bash page.sh", "/dev/null"])
        .current_dir(operator.folder())
        .env("PATH", path)
        .env("DUNLIN_CONTEXT", operator.file("context.toml"))
        .env_remove("DUNLIN_PASSPHRASE_FILE")
        .env_remove("DUNLIN_SERVER")
        .env_remove("DUNLIN_TOKEN_FILE")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut keyboard, mut screen) = (shell.stdin.take().unwrap(), shell.stdout.take().unwrap());
    let (mut shown, mut line) = (Vec::new(), Vec::new());
    let mut byte = [0_u8; 1];
    // A terminal that is closed reads as an error on Linux.
    while matches!(screen.read(&mut byte), Ok(1)) {
        shown.push(byte[0]);
        match byte[0] {
            b'\n' => line.clear(),
            other => line.push(other),
        }
        let asked = String::from_utf8_lossy(&line).into_owned();
        if asked.ends_with("Type yes: ") {
            keyboard.write_all(b"yes\n").unwrap();
            line.clear();
        } else if asked.ends_with(": ")
            && ["Passphrase of", "New passphrase", "The same again"]
                .iter()
                .any(|start| asked.starts_with(start))
        {
            keyboard
                .write_all(format!("{PASSPHRASE}\n").as_bytes())
                .unwrap();
            line.clear();
        }
    }
    let done = shell.wait().unwrap().success();
    (done, String::from_utf8_lossy(&shown).into_owned())
}

/// An agent of this binary that is ended with the test.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn enrolled_agent(operator: &Operator) -> Agent {
    let state = operator.file("device");
    let config = operator.file("agent.toml");
    std::fs::write(&config, format!("state_dir = {state:?}\n")).unwrap();
    let claim = operator.json("token create --keys keys --uses 1");
    let mut enroll = Command::new(env!("CARGO_BIN_EXE_dunlin"))
        .args(["agent", "enroll", "--device", "edge-1", "--config"])
        .arg(&config)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let token = claim["token"].as_str().unwrap();
    enroll
        .stdin
        .take()
        .unwrap()
        .write_all(token.as_bytes())
        .unwrap();
    assert!(enroll.wait().unwrap().success());
    let agent = Command::new(env!("CARGO_BIN_EXE_dunlin"))
        .args(["agent", "run", "--config"])
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Agent(agent.unwrap())
}

fn eventually(operator: &Operator, what: &str, done: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        let shown = operator.json("device show edge-1");
        if done(&shown) {
            return shown;
        }
        assert!(begun.elapsed() < TIMEOUT, "{what}: {shown}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn the_page_is_true_and_a_device_installs_what_the_team_released() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/keys.md");
    let page = std::fs::read_to_string(page).unwrap();
    let commands = commands(&page);
    let first = page.split("\n## A release").next().unwrap();
    assert_eq!(
        self::commands(first).len(),
        10,
        "a walk-through in ten commands"
    );

    let operator = Operator::begin();
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests");
    std::os::unix::fs::symlink(models, operator.file("tests")).unwrap();
    let (done, shown) = follow(&operator, &commands);
    assert!(done, "{shown}");
    assert!(!shown.contains(PASSPHRASE), "{shown}");
    for words in [
        "root version 4, after version 3",
        "+ delegated: digits/*/* to role digits",
        "published digits version 1",
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }

    let status = operator.json("keys status --dir keys");
    assert_eq!(status["state"], "ok");
    let roles: Vec<&str> = status["metadata"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["role"].as_str().unwrap())
        .collect();
    let all = ["root", "root", "timestamp", "snapshot", "targets", "digits"];
    assert_eq!(roles, all);
    let (exit, out, _) = operator.run("keys status --dir keys --warn-days 400");
    assert_eq!(exit, 2, "{out}");
    assert!(out.contains("EXPIRES SOON"), "{out}");

    // The device is sealed to the first root and follows the three after it.
    let _agent = enrolled_agent(&operator);
    eventually(&operator, "online", |d| d["online"] == true);
    operator.ok("device pin edge-1 digits 2");
    eventually(&operator, "installed", |d| d["active"][0]["version"] == 2);
}
