//! A process confined like the inference worker tries what a model that took it over would try.
//!
//! Called with `inside DIR`, this program is that process: confined, it tries, and prints what came of
//! it. Without, it is the test.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use dunlin_agent::inference::confine::{Confinement, Enforced, Needs, confine, seal};
use rustix::process::{Pid, Signal, getppid, kill_process};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

type Tried = BTreeMap<String, String>;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().position(|a| a == "inside") {
        Some(at) => inside(Path::new(&arguments[at + 1])),
        None => outside(),
    }
}

fn note<T>(tried: &mut Tried, what: &str, result: io::Result<T>) {
    let word = match result {
        Ok(_) => "done".to_owned(),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => "refused".to_owned(),
        Err(e) => e.to_string(),
    };
    tried.insert(what.to_owned(), word);
}

/// A free port, and one on which somebody listens.
fn ports() -> (u16, TcpListener) {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    (free.local_addr().unwrap().port(), other)
}

fn inside(dir: &Path) {
    let (port, other) = ports();
    let reachable = TcpListener::bind("127.0.0.1:0").unwrap();
    let needs = Needs {
        memory_limit_bytes: Some(1 << 30),
        read: vec![dir.join("slots")],
        change: vec![dir.join("spool")],
        socket_dirs: vec![dir.join("run")],
        listen_ports: vec![port],
        connect_ports: vec![reachable.local_addr().unwrap().port()],
    };
    let landlock = confine(&needs).unwrap();
    let mut tried = Tried::new();
    let t = &mut tried;
    note(
        t,
        "read a model",
        std::fs::read(dir.join("slots/a/model.onnx")),
    );
    note(t, "list the slots", std::fs::read_dir(dir.join("slots")));
    note(
        t,
        "read the key",
        std::fs::read(dir.join("identity/device.key")),
    );
    let up = dir.join("slots/../identity/device.key");
    note(t, "read the key by way of the slots", std::fs::read(up));
    note(
        t,
        "read the key by a link",
        std::fs::read(dir.join("slots/a/link")),
    );
    note(
        t,
        "change a model",
        std::fs::write(dir.join("slots/a/model.onnx"), b"x"),
    );
    let moved = std::fs::rename(dir.join("spool/part"), dir.join("spool/done/part"));
    note(t, "move what it may change", moved);
    note(
        t,
        "reach what it may reach",
        TcpStream::connect(reachable.local_addr().unwrap()),
    );
    note(
        t,
        "write beside its socket",
        std::fs::write(dir.join("run/x"), b"x"),
    );
    let parent = getppid().unwrap();
    let environment = format!("/proc/{}/environ", Pid::as_raw(Some(parent)));
    note(
        t,
        "read the supervisor's environment",
        std::fs::read(environment),
    );
    let (fresh, socket) = (dir.join("run/.1"), dir.join("run/infer.sock"));
    let unix = UnixListener::bind(&fresh).and_then(|unix| {
        std::fs::rename(&fresh, &socket)?;
        Ok(unix)
    });
    note(
        t,
        "open its socket",
        unix.as_ref().map_err(|e| e.kind().into()),
    );
    let tcp = TcpListener::bind(("127.0.0.1", port));
    note(
        t,
        "open its port",
        tcp.as_ref().map_err(|e| e.kind().into()),
    );
    note(t, "open another port", TcpListener::bind("127.0.0.1:0"));
    let reach = other.local_addr().unwrap();
    note(t, "reach a server", TcpStream::connect(reach));
    let signalled = kill_process(parent, Signal::CONT).map_err(io::Error::from);
    note(t, "signal the supervisor", signalled);

    let client = UnixStream::connect(&socket).unwrap();
    let seccomp = seal().unwrap();
    note(t, "answer on its socket", unix.unwrap().accept());
    drop(client);
    note(
        t,
        "start a thread",
        std::thread::Builder::new().spawn(|| ()).map(|t| t.join()),
    );
    let from_a_thread = std::thread::spawn(|| UdpSocket::bind("127.0.0.1:0").map(drop));
    note(
        t,
        "open a socket from a thread",
        from_a_thread.join().unwrap(),
    );
    note(t, "send datagrams", UdpSocket::bind("127.0.0.1:0"));
    note(t, "reach a Unix socket", UnixStream::connect(&socket));
    note(t, "start a program", Command::new("/bin/true").status());
    let confinement = Confinement { landlock, seccomp };
    println!(
        "{}",
        serde_json::json!({"confinement": confinement, "tried": tried})
    );
}

fn outside() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for folder in ["slots/a", "identity", "run", "spool/done"] {
        std::fs::create_dir_all(dir.join(folder)).unwrap();
    }
    std::fs::write(dir.join("slots/a/model.onnx"), b"model").unwrap();
    std::fs::write(dir.join("identity/device.key"), b"key").unwrap();
    std::fs::write(dir.join("spool/part"), b"part").unwrap();
    std::os::unix::fs::symlink(dir.join("identity/device.key"), dir.join("slots/a/link")).unwrap();
    let program = std::env::current_exe().unwrap();
    let output = Command::new(program)
        .arg("inside")
        .arg(dir)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let said: serde_json::Value = serde_json::from_str(&text).unwrap();
    let confinement: Confinement = serde_json::from_value(said["confinement"].clone()).unwrap();
    let tried: Tried = serde_json::from_value(said["tried"].clone()).unwrap();
    println!("{confinement}: {tried:#?}");

    let check = |what: &str, expected: &str| {
        assert_eq!(
            tried.get(what).map(String::as_str),
            Some(expected),
            "{what}"
        );
    };
    let allowed = [
        "read a model",
        "list the slots",
        "move what it may change",
        "reach what it may reach",
        "open its socket",
        "open its port",
        "answer on its socket",
        "start a thread",
    ];
    for what in allowed {
        check(what, "done");
    }
    // An older kernel has less of it, and says so.
    if confinement.landlock >= Enforced::Partly {
        let files = [
            "read the key",
            "read the key by way of the slots",
            "read the key by a link",
            "change a model",
            "write beside its socket",
            "read the supervisor's environment",
        ];
        for what in files {
            check(what, "refused");
        }
    }
    if confinement.landlock == Enforced::Fully {
        for what in [
            "open another port",
            "reach a server",
            "signal the supervisor",
        ] {
            check(what, "refused");
        }
    }
    if confinement.seccomp == Enforced::Fully {
        let calls = [
            "open a socket from a thread",
            "send datagrams",
            "reach a Unix socket",
            "start a program",
        ];
        for what in calls {
            check(what, "refused");
        }
    }
    println!("test result: ok");
}
