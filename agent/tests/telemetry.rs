//! The telemetry buffer as a whole: killed, on a full disk, with a damaged store.
//!
//! The test binary runs itself again as the writer that is killed or that fills a disk, told by
//! an environment variable which of the two to be.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use dunlin_agent::telemetry::{Limits, Outgoing, TelemetryHandle};
use dunlin_protocol::command::Ack;
use dunlin_protocol::id::BootId;
use dunlin_protocol::telemetry::{Body, Class, Event, LogLine, Record, Segment};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const ROLE: &str = "DUNLIN_TEST_TELEMETRY_ROLE";
const DIR: &str = "DUNLIN_TEST_TELEMETRY_DIR";
const FIRST: &str = "DUNLIN_TEST_TELEMETRY_FIRST";
const KILLS: u64 = 48;

fn event(code: String) -> Record {
    Record {
        time_ms: 1,
        body: Body::Event(Event {
            code,
            detail: "x".repeat(300),
            bundle: None,
        }),
    }
}

/// A log line that does not compress to less than about half.
fn noisy_log(seed: u64, length: usize) -> Record {
    let block = |at: u64| dunlin_protocol::id::Digest::of(format!("{seed}-{at}").as_bytes());
    let text: String = (0..)
        .map(|at| block(at).to_string())
        .take(length / 64)
        .collect();
    Record {
        time_ms: 1,
        body: Body::Log(LogLine {
            level: "info".to_owned(),
            text,
        }),
    }
}

fn decode(outgoing: &Outgoing) -> Segment {
    Segment::decode(outgoing.class, &outgoing.payload).unwrap()
}

fn ack_of(boot: BootId, batch: &[Outgoing]) -> Ack {
    Ack {
        boot,
        segments: batch.iter().map(|o| o.segment).collect(),
        server_time_ms: None,
    }
}

/// Everything that is buffered, acknowledged as it is read.
async fn drain(handle: &TelemetryHandle, boot: BootId) -> Vec<Segment> {
    let mut all = Vec::new();
    handle.reset_inflight().await;
    loop {
        let batch = handle.next_batch().await;
        if batch.is_empty() {
            return all;
        }
        assert_eq!(handle.ack(ack_of(boot, &batch)).await, batch.len());
        all.extend(batch.iter().map(decode));
    }
}

/// This binary once more, doing only `test` in the given role.
fn again(wrap: &[&str], test: &str, role: &str, dir: &Path) -> Command {
    let this = std::env::current_exe().unwrap();
    let mut words = wrap.iter().map(|w| w.to_string()).collect::<Vec<_>>();
    words.push(this.to_string_lossy().into_owned());
    let mut command = Command::new(&words[0]);
    command
        .args(&words[1..])
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env(DIR, dir)
        .stdout(Stdio::piped());
    command
}

fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

/// Pushes numbered events, two at a time, and prints each number once it is durable.
async fn write_until_killed(dir: &Path) {
    let first: u64 = std::env::var(FIRST).unwrap().parse().unwrap();
    let (handle, report) = TelemetryHandle::open(dir, Limits::default()).await.unwrap();
    assert_eq!(report.events(), []);
    for number in (first..).step_by(2) {
        for n in [number, number + 1] {
            handle.push(event(format!("n-{n}"))).await.unwrap();
            handle.push(noisy_log(n, 2000)).await.unwrap();
        }
        handle.flush().await.unwrap();
        let mut out = std::io::stdout().lock();
        writeln!(out, "durable {number} {}", number + 1).unwrap();
        out.flush().unwrap();
    }
}

/// The numbers a writer printed before it was killed after `life`.
fn kill_after(mut child: Child, life: Duration) -> Vec<u64> {
    let lines = BufReader::new(child.stdout.take().unwrap());
    let reader = std::thread::spawn(move || {
        let mut numbers = Vec::new();
        for line in lines.lines().map_while(Result::ok) {
            if let Some(rest) = line.strip_prefix("durable ") {
                numbers.extend(rest.split(' ').filter_map(|n| n.parse::<u64>().ok()));
            }
        }
        numbers
    });
    std::thread::sleep(life);
    let end = child.try_wait().unwrap();
    assert_eq!(end, None, "the writer ended by itself");
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap()
}

#[tokio::test]
async fn what_was_durable_survives_being_killed_at_any_moment() {
    if role().as_deref() == Some("writer") {
        return write_until_killed(Path::new(&std::env::var(DIR).unwrap())).await;
    }
    const NAME: &str = "what_was_durable_survives_being_killed_at_any_moment";
    let dir = tempfile::tempdir().unwrap();
    let (mut durable, mut first) = (BTreeSet::new(), 0);
    for n in 0..KILLS {
        // Every other one dies early: while it opens what the one before left.
        let span = [400, 40][usize::try_from(n % 2).unwrap()];
        let life = (n * 37 + 17) * span / 100 % span;
        let child = again(&[], NAME, "writer", dir.path())
            .env(FIRST, first.to_string())
            .spawn()
            .unwrap();
        let printed = kill_after(child, Duration::from_millis(life));
        durable.extend(printed);
        first += 1_000_000;
    }
    assert!(durable.len() > 100, "only {} numbers", durable.len());

    let (handle, report) = TelemetryHandle::open(dir.path(), Limits::default())
        .await
        .unwrap();
    assert_eq!(report.events(), []);
    let (mut found, mut segments) = (BTreeMap::new(), BTreeSet::new());
    // Again, for a store that is made smaller once it is drained says so.
    while handle.stats().await.segments > 0 {
        handle.flush().await.unwrap();
        for segment in drain(&handle, report.boot).await {
            assert!(segments.insert(segment.segment), "a number twice");
            for record in segment.records {
                let Body::Event(event) = record.body else {
                    continue;
                };
                match event.code.strip_prefix("n-") {
                    Some(number) => *found.entry(number.parse::<u64>().unwrap()).or_insert(0) += 1,
                    None => assert_eq!(event.code, "telemetry_store_compacted"),
                }
            }
        }
    }
    let missing: Vec<_> = durable.iter().filter(|n| !found.contains_key(n)).collect();
    assert!(missing.is_empty(), "durable and gone: {missing:?}");
    assert!(found.values().all(|times| *times == 1));
    handle.close().await;
}

#[tokio::test]
async fn a_snapshot_that_a_kill_cut_off_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let open = async || TelemetryHandle::open(dir.path(), Limits::default()).await;
    let (handle, report) = open().await.unwrap();
    assert_eq!(report.events(), []);
    handle.push(event("n-1".to_owned())).await.unwrap();
    handle.flush().await.unwrap();
    handle.close().await;

    // Cut while sled wrote down what it had recovered.
    for (name, content) in [("F", &b""[..]), ("E", &[7; 40])] {
        let name = format!("snap.{}.generating", name.repeat(16));
        std::fs::write(dir.path().join("store").join(name), content).unwrap();
    }
    let (handle, report) = open().await.unwrap();
    assert_eq!(report.events(), []);
    assert_eq!(drain(&handle, report.boot).await.len(), 1);
    handle.close().await;
}

/// In its own mount namespace, on a disk of 24 MiB that something else fills.
async fn fill_a_disk(dir: &Path) {
    let open = || TelemetryHandle::open(dir, Limits::default());
    let (handle, report) = open().await.unwrap();
    let (mut logs, mut bursts) = (0, 0);
    let mut push = async |handle: &TelemetryHandle, count: u64| {
        for _ in 0..count {
            logs += 1;
            handle.push(noisy_log(logs, 40_000)).await.unwrap();
        }
        bursts += 1;
        let code = format!("after-{logs}");
        handle.push(event(code)).await.unwrap();
        (logs, bursts)
    };
    push(&handle, 10).await;
    handle.flush().await.unwrap();

    // Somebody else takes all the room, and the logs go on.
    let hog = dir.join("hog");
    let full = std::fs::write(&hog, vec![7; 64 << 20]);
    assert_eq!(full.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    for _ in 0..20 {
        push(&handle, 8).await;
        let problem = handle.flush().await.unwrap_err().to_string();
        assert!(problem.contains("bytes of disk are free"), "{problem}");
    }
    // What is durable can still be sent.
    assert_eq!(handle.next_batch().await.len(), 11);

    // Room again: the buffer gets over it by itself.
    std::fs::remove_file(&hog).unwrap();
    handle.flush().await.unwrap();
    push(&handle, 5).await;
    handle.flush().await.unwrap();
    handle.close().await;

    // A start on a full disk goes on with what is there.
    std::fs::write(&hog, vec![7; 64 << 20]).unwrap_err();
    let (handle, again) = open().await.unwrap();
    assert_eq!(again.boot, report.boot);
    assert_eq!(again.events(), []);
    // A little is durable even there: the journal has its room already.
    push(&handle, 1).await;
    handle.flush().await.unwrap();
    let (pushed, bursts) = push(&handle, 20).await;
    handle.flush().await.unwrap_err();
    std::fs::remove_file(&hog).unwrap();
    handle.flush().await.unwrap();
    assert_eq!(handle.stats().await.problem, None);

    let (mut events, mut arrived, mut gone) = (BTreeSet::new(), 0, 0);
    let mut recovered = 0;
    for segment in drain(&handle, report.boot).await {
        for record in segment.records {
            match record.body {
                Body::Event(e) if e.code == "telemetry_store_recovered" => {
                    assert!(e.detail.contains("bytes of disk are free"), "{e:?}");
                    recovered += 1;
                }
                Body::Event(e) => assert!(events.insert(e.code), "an event twice"),
                Body::Log(_) => arrived += 1,
                Body::Gap(gap) => {
                    assert_eq!(gap.class, Class::Log, "events outlive logs");
                    gone += gap.records;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    println!("{arrived} arrived, {gone} gone of {pushed}");
    assert_eq!(events.len(), bursts, "every event is there");
    assert_eq!(recovered, 2, "each full disk is told of once it is over");
    assert_eq!(
        arrived + gone,
        pushed,
        "every log line is there or in a gap"
    );
    assert!(gone > 0, "the disk was never full");
    handle.close().await;
}

#[tokio::test]
async fn a_full_disk_costs_the_newest_logs_before_events_and_all_is_accounted_for() {
    if role().as_deref() == Some("filler") {
        return fill_a_disk(Path::new(&std::env::var(DIR).unwrap())).await;
    }
    const NAME: &str = "a_full_disk_costs_the_newest_logs_before_events_and_all_is_accounted_for";
    let dir = tempfile::tempdir().unwrap();
    // A mount namespace of its own: no rights needed, and nothing to clean up.
    let mount = format!(
        "mount -t tmpfs -o size=24m none '{}' && exec \"$@\"",
        dir.path().display()
    );
    let wrap = ["unshare", "-rm", "sh", "-c", &mount, "sh"];
    let child = again(&wrap, NAME, "filler", dir.path()).spawn().unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
}

#[tokio::test]
async fn a_store_of_garbage_is_set_aside_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    let open = || TelemetryHandle::open(dir.path(), Limits::default());
    let (handle, before) = open().await.unwrap();
    handle.push(event("kept".to_owned())).await.unwrap();
    handle.close().await;
    let db = dir.path().join("store/db");
    let length = std::fs::metadata(&db).unwrap().len().min(1 << 20);
    std::fs::write(&db, vec![0xa5; usize::try_from(length).unwrap()]).unwrap();

    let (handle, report) = open().await.unwrap();
    assert_eq!(report.boot, before.boot);
    let (code, detail) = report.events().remove(0);
    assert_eq!(code, "telemetry_store_set_aside");
    assert!(detail.contains("store.corrupt-0"), "{detail}");
    assert!(dir.path().join("store.corrupt-0/db").exists());
    handle.push(event("new".to_owned())).await.unwrap();
    handle.close().await;
    let (handle, after) = open().await.unwrap();
    assert_eq!((after.boot, after.events()), (report.boot, vec![]));
    // What the journal had is there.
    assert_eq!(drain(&handle, after.boot).await.len(), 2);
}

#[tokio::test]
async fn sealed_records_wake_the_sender_and_stay_until_they_are_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let open = || TelemetryHandle::open(dir.path(), Limits::default());
    let (handle, report) = open().await.unwrap();
    handle.push(event("a".to_owned())).await.unwrap();
    let woken = tokio::time::timeout(Duration::from_secs(5), handle.changed()).await;
    assert!(woken.is_ok(), "sealed without a flush");
    let batch = handle.next_batch().await;
    assert_eq!(decode(&batch[0]).records, [event("a".to_owned())]);
    assert!(handle.next_batch().await.is_empty(), "it is under way");
    handle.reset_inflight().await;
    assert_eq!(
        handle.next_batch().await,
        batch,
        "a repeat is the same message"
    );
    let other = BootId([0; 16]);
    assert_eq!(handle.ack(ack_of(other, &batch)).await, 0);
    let twin = handle.clone();
    handle.close().await;
    assert!(twin.push(event("late".to_owned())).await.is_err());
    assert!(twin.next_batch().await.is_empty());

    let (handle, again) = open().await.unwrap();
    assert_eq!((again.boot, again.segments), (report.boot, 1));
    assert_eq!(handle.next_batch().await, batch, "also after a restart");
    assert_eq!(handle.ack(ack_of(again.boot, &batch)).await, 1);
    assert_eq!(handle.stats().await.segments, 0);
}

#[tokio::test]
async fn a_second_process_is_told_that_the_folder_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let (_handle, _) = TelemetryHandle::open(dir.path(), Limits::default())
        .await
        .unwrap();
    let second = TelemetryHandle::open(dir.path(), Limits::default()).await;
    let problem = second.unwrap_err().to_string();
    assert!(problem.contains("in use by another process"), "{problem}");
}
