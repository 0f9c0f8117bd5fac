//! Command lines and files.

use super::PROGRAM;
use dunlin_tests::operator::eventually;
use dunlin_tests::process::{Process, descendants_of, is_alive};
use std::path::Path;
use std::process::{Command, Output};

fn run(arguments: &[&str]) -> (Output, String) {
    let output = Command::new(PROGRAM).args(arguments).output().unwrap();
    let told = String::from_utf8(output.stderr.clone()).unwrap();
    (output, told)
}

fn expect(told: &str, words: &[&str]) {
    for word in words {
        assert!(told.contains(word), "{word:?} is not in: {told}");
    }
}

#[test]
fn broken_configurations_are_told_as_a_whole_and_exit_64() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.toml");
    let path = file.to_str().unwrap();

    let agent = "state_dir = 7\ndevice = \"a b\"\ncolour = 1\n[inference]\nwindow_ms = 1\n\
                 listen = \"0.0.0.0:80\"\n[telemetry]\nmax_mib = \"much\"\n";
    std::fs::write(&file, agent).unwrap();
    let (output, told) = run(&["agent", "run", "--config", path]);
    assert_eq!(output.status.code(), Some(64), "{told}");
    let keys = [
        "state_dir",
        "device",
        "colour",
        "inference.window_ms",
        "inference.listen",
    ];
    expect(&told, &keys);
    expect(&told, &[path, "telemetry.max_mib", "expected", "got"]);

    let server = "fleet = \"a b\"\ncolour = 1\n[admin]\nlisten = \"0.0.0.0:1\"\n\
                  [rollout]\ntick_ms = -1\n[mqtt]\nmode = \"pigeon\"\n";
    std::fs::write(&file, server).unwrap();
    let (output, told) = run(&["server", "--config", path]);
    assert_eq!(output.status.code(), Some(64), "{told}");
    let keys = [
        "fleet:",
        "colour:",
        "state_dir:",
        "admin.tls:",
        "rollout.tick_ms:",
        "mqtt.mode:",
    ];
    expect(&told, &keys);
    expect(&told, &[path]);

    std::fs::write(&file, "fleet = ").unwrap();
    for noun in [&["agent", "run"][..], &["server"]] {
        let (output, told) = run(&[noun, &["--config", path]].concat());
        assert_eq!(output.status.code(), Some(64), "{told}");
        expect(&told, &[path, "line 1"]);
        let (output, told) = run(&[noun, &["--config", "/nowhere/x.toml"]].concat());
        assert_eq!(output.status.code(), Some(64), "{told}");
        expect(&told, &["/nowhere/x.toml"]);
    }
}

#[test]
fn a_model_that_does_not_parse_is_refused_where_it_is_packed() {
    let dir = tempfile::tempdir().unwrap();
    let spec = dunlin::demo::models::write("v1", dir.path()).unwrap();
    let (model, out) = (spec.join("model.onnx"), dir.path().join("out"));
    let good = std::fs::read(&model).unwrap();
    let cut = good[..good.len() / 2].to_vec();
    for bad in [b"this is no protobuf".to_vec(), cut, Vec::new()] {
        std::fs::write(&model, &bad).unwrap();
        let (spec, out_text) = (spec.to_str().unwrap(), out.to_str().unwrap());
        let (output, told) = run(&["bundle", "pack", spec, "--out", out_text]);
        assert_eq!(output.status.code(), Some(1), "{} bytes: {told}", bad.len());
        expect(&told, &["model.onnx"]);
        assert_eq!(told.lines().count(), 1, "{told}");
        let left = std::fs::read_dir(&out).map_or(0, Iterator::count);
        assert_eq!(left, 0, "something was packed");
    }
    std::fs::write(&model, good).unwrap();
    let (spec, out) = (spec.to_str().unwrap(), out.to_str().unwrap());
    let (output, told) = run(&["bundle", "pack", spec, "--out", out]);
    assert!(output.status.success(), "{told}");
}

#[tokio::test]
async fn an_interrupted_demo_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let temp = dir.path().join("tmp");
    std::fs::create_dir(&temp).unwrap();
    let wrapped = ["demo", "--seed", "3"];
    let variable = ("TMPDIR", temp.to_str().unwrap());
    let log = dir.path().join("demo.log");
    let mut demo = Process::start_with(Path::new(PROGRAM), &wrapped, &[variable], &log).unwrap();
    // A server, some agents and their workers.
    let family = eventually("the demo has started a fleet", async || {
        assert!(is_alive(demo.pid()), "it ended: {}", demo.log_tail());
        let family = descendants_of(demo.pid());
        let n = family.len();
        Ok(if n >= 8 {
            Ok(family)
        } else {
            Err(format!("{n} processes"))
        })
    });
    let family = family.await.unwrap();
    demo.signal(rustix::process::Signal::INT).unwrap();
    let status = demo.ended().await.unwrap();
    assert_eq!(status.code(), Some(1), "{}", demo.log_tail());
    eventually("every process ends", async || {
        let left: Vec<i32> = family.iter().copied().filter(|p| is_alive(*p)).collect();
        Ok(if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        })
    })
    .await
    .unwrap();
    let left: Vec<_> = std::fs::read_dir(&temp).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_killed_demo_takes_its_processes_along() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("demo.log");
    let variable = ("TMPDIR", dir.path().to_str().unwrap());
    let mut demo = Process::start_with(Path::new(PROGRAM), &["demo"], &[variable], &log).unwrap();
    let family = eventually("the demo has started a fleet", async || {
        let family = descendants_of(demo.pid());
        let n = family.len();
        Ok(if n >= 5 {
            Ok(family)
        } else {
            Err(format!("{n} processes"))
        })
    });
    let family = family.await.unwrap();
    demo.kill().await.unwrap();
    eventually("every process ends", async || {
        let left: Vec<i32> = family.iter().copied().filter(|p| is_alive(*p)).collect();
        Ok(if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        })
    })
    .await
    .unwrap();
}
