//! A device comes back from everything at once, without a hand on it: it was away past the end of its
//! certificate, ten root versions went by, its clock reads 1970.
//!
//! The agent is the real program, its clock set by libfaketime (Debian: faketime).

#![allow(clippy::unwrap_used, clippy::expect_used)]

use dunlin::demo::stream::{Stream, feed};
use dunlin::keys;
use dunlin_agent::identity::Identity;
use dunlin_protocol::id::RolloutId;
use dunlin_protocol::trust::{Key, Role, SigningKey, new_root, sign_envelope};
use dunlin_server::rollout::model::RolloutState;
use dunlin_server::{Server, Settings};
use dunlin_tests::fleet::agent_settings;
use dunlin_tests::operator::{Operator, all_at_once, eventually};
use dunlin_tests::process::Process;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

const PROGRAM: &str = env!("CARGO_BIN_EXE_dunlin-under-test");
const ROOTS: u64 = 10;
/// Long enough to install a version, short enough to wait for.
const CERTIFICATE_S: u32 = 30;

/// The library that `faketime` preloads.
fn faketime() -> PathBuf {
    let under_lib = std::fs::read_dir("/usr/lib").unwrap();
    let found = under_lib
        .map(|entry| entry.unwrap().path().join("faketime/libfaketime.so.1"))
        .find(|path| path.exists());
    found.expect("libfaketime.so.1: install faketime (tests/run does)")
}

/// Rotates the root keys again and again: each version is signed by the keys before and its own.
async fn rotate_roots(operator: &Operator, keys_dir: &Path) {
    let load = |role: &str| {
        let mut names = keys::key_names(keys_dir).unwrap();
        names.retain(|name| name.starts_with(role));
        keys::load(keys_dir, &names).unwrap()
    };
    let public = |keys: &[SigningKey]| keys.iter().map(SigningKey::public_key).collect();
    let online_keys = operator.client().fleet().await.unwrap().online_keys;
    let online = |json: &Value| (vec![Key::from_json(json).unwrap()], 1);
    let targets = load("targets");
    let mut before = load("root");
    for version in 2..2 + ROOTS {
        let seed = |n: u8| [u8::try_from(version).unwrap() * 3 + n; 32];
        let own: Vec<_> = (0..3).map(|n| SigningKey::from_seed(&seed(n))).collect();
        let roles = BTreeMap::from([
            (Role::Root, (public(&own), 2)),
            (Role::Targets, (public(&targets), 2)),
            (Role::Snapshot, online(&online_keys.snapshot)),
            (Role::Timestamp, online(&online_keys.timestamp)),
        ]);
        let expires = Timestamp::now() + SignedDuration::from_hours(24 * 365);
        let signed = new_root(version, expires, &roles).unwrap();
        let signers: Vec<_> = before.iter().chain(&own).collect();
        let bytes = sign_envelope(signed, &signers).unwrap().to_bytes();
        operator.client().put_root(&bytes).await.unwrap();
        std::fs::write(keys_dir.join(format!("{version}.root.json")), &bytes).unwrap();
        before = own;
    }
}

/// Signs, publishes and gives a version to the device.
async fn publish(operator: &mut Operator, model: &str, version: u64) -> RolloutId {
    let bundle = operator.pack(model, version, 1).unwrap();
    operator.publish(&bundle).await.unwrap();
    operator.roll_out(version, all_at_once(1)).await.unwrap()
}

/// Version of the newest root that the device has accepted.
fn trusted_root_version(state_dir: &Path) -> u64 {
    let bytes = std::fs::read(state_dir.join("trust/root.json")).unwrap();
    let root: Value = serde_json::from_slice(&bytes).unwrap();
    root["signed"]["version"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_comes_back_after_its_certificates_end_with_its_clock_at_1970_and_ten_roots_behind()
 {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    let state_dir = dir.path().join("server");
    let mut settings = Settings::loopback("test".parse().unwrap(), state_dir);
    settings.rollout_tick_ms = 100;
    settings.enrolment.certificate_life_s = CERTIFICATE_S;
    let server = Server::start(settings).await.unwrap();
    let token = server.first_admin_token.clone().unwrap();
    let admin = server.admin.to_string();
    let mut operator = Operator::new(dir.path(), &admin, &token).await.unwrap();

    // A life before: enrolled, on version 1.
    let home = dir.path().join("edge-1");
    let device_settings = agent_settings(&home, "edge-1").unwrap();
    let state = device_settings.state_dir.clone();
    let claim = operator.claim(1).await.unwrap();
    let enrolled = dunlin_agent::enroll::enroll(&device_settings, &claim).await;
    let device = enrolled.unwrap().device;
    let config = home.join("agent.toml");
    let run = ["agent", "run", "--config", config.to_str().unwrap()];
    let log = home.join("agent.log");
    let mut agent = Process::start(Path::new(PROGRAM), &run, &log).unwrap();
    let (stop, stopped) = watch::channel(false);
    let stream = Stream::new(1, 1, Arc::default());
    let socket = device_settings.inference.socket.clone();
    let feeder = tokio::spawn(feed(socket, stream, Duration::from_millis(20), stopped));
    publish(&mut operator, "v1", 1).await;
    operator.on_version(&device, 1).await.unwrap();
    assert!(agent.terminate().await.unwrap().success());
    assert_eq!(trusted_root_version(&state), 1);

    // Away: the certificate ends, ten roots go by, a version is rolled out.
    rotate_roots(&operator, &dir.path().join("keys")).await;
    let rollout = publish(&mut operator, "v2", 2).await;
    let identity = Identity::load(&state).unwrap().unwrap();
    let (old, end) = (identity.certificate_sha256(), identity.validity().not_after);
    eventually("the certificate ends", async || {
        let left = end.as_second() - Timestamp::now().as_second();
        Ok((left < 0).then_some(()).ok_or(format!("{left} s left")))
    })
    .await
    .unwrap();
    // What the device last knew of the time is from before the server's certificate was made, which
    // therefore is not valid yet as far as the device can tell.
    std::fs::write(state.join("trust/time_floor"), "2026-01-01T00:00:00Z\n").unwrap();

    let library = faketime();
    let variables = [
        ("LD_PRELOAD", library.to_str().unwrap()),
        ("FAKETIME", "@1970-01-01 00:00:30"),
        // Timers go by the monotonic clock, which no battery sets back.
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ];
    let mut agent = Process::start_with(Path::new(PROGRAM), &run, &variables, &log).unwrap();
    let started = std::time::Instant::now();
    let back = operator.on_version(&device, 2).await;
    assert!(back.is_ok(), "{back:?}\n{}", agent.log_tail());
    println!(
        "back, {ROOTS} roots and a version on, {:.1} s after its start",
        started.elapsed().as_secs_f64()
    );
    let ended = operator.ended(&rollout).await.unwrap();
    assert_eq!(ended.state, RolloutState::Finished);

    assert_eq!(trusted_root_version(&state), 1 + ROOTS);
    let identity = Identity::load(&state).unwrap().unwrap();
    assert_ne!(identity.certificate_sha256(), old);
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(
        text.contains("1970-01-01T00:00:3"),
        "the clock was set back"
    );
    eventually("the server's note and the device's event", async || {
        let path = format!("/api/v1/devices/{device}/events");
        let events: Value = operator.client().get(&path).await?;
        let text = events.to_string();
        let count = text.matches("certificate_recovered").count();
        Ok((count >= 2).then_some(()).ok_or(text))
    })
    .await
    .unwrap();
    stop.send(true).unwrap();
    feeder.await.unwrap();
    assert!(agent.terminate().await.unwrap().success());
    server.shutdown().await;
}
