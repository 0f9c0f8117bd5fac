//! An operator with a fleet server process of their own, and a folder to work in.

#![allow(clippy::unwrap_used, dead_code)]

use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

pub(crate) struct Operator {
    folder: tempfile::TempDir,
    server: Child,
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Operator {
    /// A server with its own state on free ports, and an operator logged in to it.
    pub(crate) fn begin() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("server.toml");
        let state = folder.path().join("state");
        let listen = "listen = \"127.0.0.1:0\"\n";
        let text = format!(
            "fleet = \"test\"\nstate_dir = {state:?}\n[admin]\n{listen}[devices]\n{listen}[mqtt]\n{listen}"
        );
        std::fs::write(&config, text).unwrap();
        let mut server = Command::new(env!("CARGO_BIN_EXE_dunlin"))
            .args(["server", "--print-addresses-json", "--config"])
            .arg(&config)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let out = server.stdout.take().unwrap();
        BufReader::new(out).read_line(&mut line).unwrap();
        let operator = Self { folder, server };
        let addresses: Value = serde_json::from_str(&line).unwrap();
        let token = operator.file("token");
        std::fs::write(&token, addresses["token"].as_str().unwrap()).unwrap();
        let url = format!("http://{}", addresses["admin"].as_str().unwrap());
        operator.ok(&format!(
            "login --server {url} --token-file {}",
            token.display()
        ));
        operator
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn run(&self, line: &str) -> (i32, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dunlin"));
        for name in [
            "DUNLIN_SERVER",
            "DUNLIN_TOKEN",
            "DUNLIN_TOKEN_FILE",
            "DUNLIN_CA",
            "DUNLIN_PASSPHRASE_FILE",
        ] {
            command.env_remove(name);
        }
        let output = command
            .env("DUNLIN_CONTEXT", self.file("context.toml"))
            .current_dir(self.folder.path())
            .args(line.split_whitespace())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let status = output.status.code().unwrap();
        (status, text(&output.stdout), text(&output.stderr))
    }

    pub(crate) fn ok(&self, line: &str) -> String {
        let (status, out, err) = self.run(line);
        assert_eq!(status, 0, "dunlin {line}: {err}");
        out
    }

    pub(crate) fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.ok(&format!("{line} --json"))).unwrap()
    }

    pub(crate) fn refused(&self, line: &str, says: &str) {
        let (status, _, err) = self.run(line);
        assert_eq!(status, 1, "dunlin {line}: {err}");
        assert!(err.contains(says), "dunlin {line}: {err}");
        assert_eq!(err.trim_end().lines().count(), 1, "one clear line: {err}");
    }

    pub(crate) fn pack(&self, version: u64) {
        let folder = format!("../tests/models/digits/v{version}");
        let spec = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        self.ok(&format!("bundle pack {} --out p{version}", spec.display()));
    }
}
