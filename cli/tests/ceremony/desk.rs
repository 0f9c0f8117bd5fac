//! Somebody's machine without a network, and what people do there.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Somebody's machine: a folder, no server, a passphrase file.
pub(crate) struct Desk(tempfile::TempDir);

pub(crate) const PASSPHRASE: &str = "correct horse battery";

impl Desk {
    pub(crate) fn new() -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        desk.write("p", &format!("{PASSPHRASE}\n"));
        desk.write("server.json", &server_keys(1));
        desk
    }

    pub(crate) fn folder(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    pub(crate) fn run(&self, line: &str) -> (i32, String, String) {
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

    pub(crate) fn ok(&self, line: &str) -> String {
        let (status, out, err) = self.run(line);
        assert_eq!(status, 0, "dunlin {line}: {out}{err}");
        out
    }

    pub(crate) fn fails(&self, line: &str, says: &str) {
        let (status, out, err) = self.run(line);
        assert_eq!(status, 1, "dunlin {line}: {out}{err}");
        assert!(
            format!("{out}{err}").contains(says),
            "dunlin {line}: {out}{err}"
        );
    }

    pub(crate) fn openssl(&self, line: &str) -> Output {
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
    pub(crate) fn first_root(&self) {
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
    pub(crate) fn sign_and_combine(&self, version: u64, people: &[&str]) {
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
    pub(crate) fn signature(&self, request: &str, name: &str) -> String {
        let file = format!("{request}.{name}.sig");
        assert!(self.path(&file).is_file(), "{file}");
        file
    }

    pub(crate) fn root(&self, version: u64) -> Vec<u8> {
        self.read(&format!("keys/{version}.root.json"))
    }
}

pub(crate) fn server_keys(seed: u8) -> String {
    let key = |n: u8| {
        let key = dunlin_protocol::trust::SigningKey::from_seed(&[n; 32]);
        key.public_key().to_json().clone()
    };
    serde_json::json!({"snapshot": key(100 + seed), "timestamp": key(200 + seed)}).to_string()
}

pub(crate) fn is_private(path: &Path) -> bool {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777 == 0o600
}
