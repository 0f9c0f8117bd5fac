//! The systemd units that ship are accepted by systemd itself, stay confined, and name accounts
//! that the shipped `sysusers.d` file makes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const UNITS: [&str; 2] = ["dunlin-agent.service", "dunlin-server.service"];

/// Highest exposure that `systemd-analyze security` may give, in tenths (its scale ends at 10.0).
const EXPOSURE_TENTHS_MAX: u32 = 20;

fn common() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../firmware-images/common")
}

fn unit_text(name: &str) -> String {
    let path = common().join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All values of `key` in the unit, in order.
fn values<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(found, _)| *found == key)
        .map(|(_, value)| value)
        .collect()
}

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .env("SYSTEMD_COLORS", "0")
        .env("SYSTEMD_PAGER", "")
        .output()
        .unwrap_or_else(|error| panic!("{program} does not start ({error}); tests/run installs it"))
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// A copy of the unit whose program exists: `verify` looks for it, and the shipped one is only
/// on the device.
fn copy_with_existing_program(name: &str, folder: &Path) -> String {
    let copied: String = unit_text(name)
        .lines()
        .map(|line| match line.strip_prefix("ExecStart=") {
            Some(command) => {
                let arguments = command.split_once(' ').map_or("", |(_, rest)| rest);
                format!("ExecStart=/bin/true {arguments}\n")
            }
            None => format!("{line}\n"),
        })
        .collect();
    let path = folder.join(name);
    fs::write(&path, copied).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn systemd_accepts_the_units_without_a_word() {
    let folder = tempfile::tempdir().unwrap();
    for name in UNITS {
        let path = copy_with_existing_program(name, folder.path());
        let arguments = ["verify", "--man=no", "--recursive-errors=no", &path];
        let output = run("systemd-analyze", &arguments);
        let said = said(&output);
        // An unknown or misspelt key is only a warning to systemd, which names the file: a fault here.
        assert!(
            output.status.success() && !said.contains(name),
            "systemd-analyze verify {name} ({}):\n{said}",
            output.status
        );
    }
}

#[test]
fn the_units_stay_confined() {
    let folder = tempfile::tempdir().unwrap();
    let threshold = format!("--threshold={EXPOSURE_TENTHS_MAX}");
    for name in UNITS {
        let path = copy_with_existing_program(name, folder.path());
        let arguments = ["security", "--offline=yes", "--no-pager", &threshold, &path];
        let output = run("systemd-analyze", &arguments);
        assert!(
            output.status.success(),
            "{name} is exposed more than {EXPOSURE_TENTHS_MAX} tenths:\n{}",
            said(&output)
        );
    }
}

#[test]
fn the_units_notify_are_watched_and_come_back() {
    let wanted = [
        (
            "dunlin-agent.service",
            "/usr/bin/dunlin-agent run --config /etc/dunlin/agent.toml",
        ),
        (
            "dunlin-server.service",
            "/usr/bin/dunlin-server --config /etc/dunlin/server.toml",
        ),
    ];
    for (name, command) in wanted {
        let text = unit_text(name);
        let account = name.trim_end_matches(".service");
        for (key, value) in [
            ("ExecStart", command),
            ("Type", "notify"),
            ("WatchdogSec", "30"),
            ("Restart", "always"),
            ("StartLimitIntervalSec", "0"),
            ("User", account),
            ("StateDirectory", account),
            ("StateDirectoryMode", "0700"),
            ("NoNewPrivileges", "yes"),
        ] {
            assert_eq!(values(&text, key), [value], "{name}: {key}=");
        }
    }
}

#[test]
fn the_accounts_are_made_by_the_shipped_sysusers_file() {
    let path = common()
        .join("sysusers.d/dunlin.conf")
        .canonicalize()
        .unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let made: Vec<_> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_whitespace().nth(1))
        .collect();
    for name in UNITS {
        let unit = unit_text(name);
        let user = values(&unit, "User")[0];
        assert!(
            made.contains(&user),
            "{name}: User={user} is not in {}",
            path.display()
        );
    }
    let output = run("systemd-sysusers", &["--dry-run", path.to_str().unwrap()]);
    assert!(
        output.status.success(),
        "systemd-sysusers:\n{}",
        said(&output)
    );
}
