//! Records go from topics, folders and standard input through the real agent to topics, files and
//! standard output; nothing is lost on the way, and what a policy drops is counted.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use dunlin_agent::config::Settings;
use dunlin_protocol::telemetry::Class;
use dunlin_tests::fleet::{Fleet, FleetBuilder};
use dunlin_tests::local_broker::{Heard, LocalBroker};
use dunlin_tests::operator::{all_at_once, eventually};
use dunlin_tests::process::{Process, children_of, kill_child};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use tokio::io::AsyncWriteExt as _;

const PROGRAM: &str = env!("CARGO_BIN_EXE_dunlin-under-test");
/// 64 pixels of 0 to 16, then the label.
const FIELD: &[u8] = include_bytes!("../models/digits/field.bin");

fn pixels(n: usize) -> &'static [u8] {
    &FIELD.chunks_exact(65).nth(n).unwrap()[..64]
}

fn csv(n: usize) -> String {
    let numbers: Vec<String> = pixels(n).iter().map(u8::to_string).collect();
    numbers.join(",")
}

/// One device; with these pipelines instead of none.
async fn with_pipelines(fleet: &mut Fleet, text: &str) {
    fleet.devices[0].stop().await.unwrap();
    let dir = fleet.dir.path().join("dev-01");
    let mut config = std::fs::read_to_string(dir.join("agent.toml")).unwrap();
    config += text;
    let settings = Settings::parse(&config, Path::new("agent.toml"));
    fleet.devices[0].settings = settings.unwrap_or_else(|e| panic!("{e}"));
    fleet.start_device(0).unwrap();
}

async fn install(fleet: &mut Fleet) {
    let v1 = fleet.operator.pack("v1", 1, 1).unwrap();
    fleet.operator.publish(&v1).await.unwrap();
    fleet.operator.roll_out(1, all_at_once(1)).await.unwrap();
    let device = fleet.devices[0].id.clone();
    fleet.operator.on_version(&device, 1).await.unwrap();
}

/// Waits until the device's newest metrics have these values.
async fn metrics(fleet: &Fleet, wanted: &[(&str, u64)]) {
    let (store, id) = (&fleet.server().store, &fleet.devices[0].id);
    eventually("metrics", async || {
        let newest = store.records(id, Class::Metrics, 1).await?;
        let text = serde_json::to_string(&newest.first().map(|stored| &stored.record))?;
        let has = |(name, n): &(&str, u64)| {
            let pair = format!("\"{name}\":{n}");
            text.contains(&format!("{pair},")) || text.contains(&format!("{pair}}}"))
        };
        Ok(if wanted.iter().all(has) {
            Ok(())
        } else {
            Err(text)
        })
    })
    .await
    .unwrap();
}

async fn until(what: &str, mut is_so: impl FnMut() -> Result<(), String>) {
    eventually(what, async || Ok(is_so())).await.unwrap();
}

/// The answers heard, their payloads read.
fn answers(heard: &Heard) -> Vec<Value> {
    let lines = heard.lines();
    let payloads = lines.iter().map(|line| line.split('|').nth(1).unwrap());
    payloads.map(|p| serde_json::from_str(p).unwrap()).collect()
}

/// What the API itself answers, but for the id.
async fn asked(fleet: &Fleet, n: usize) -> Value {
    let body = json!({"inputs": [{
        "name": "pixels", "shape": [1, 64], "datatype": "FP32", "data": pixels(n)
    }]});
    let request = dunlin_tests::http::request(
        "POST",
        "/v2/models/digits/infer",
        &[("content-type", "application/json")],
        body.to_string().as_bytes(),
    );
    let socket = &fleet.devices[0].settings.inference.socket;
    let answer = dunlin_tests::http::over_unix(socket, &request)
        .await
        .unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

fn without_id(mut answer: Value) -> Value {
    answer.as_object_mut().unwrap().remove("id");
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_topic_goes_in_and_results_come_out() {
    let mut fleet = FleetBuilder::new(PROGRAM).boot().await.unwrap();
    install(&mut fleet).await;
    let dir = fleet.dir.path().to_owned();
    let broker = LocalBroker::start(&dir, Some(("sensor", "a secret"))).unwrap();
    let secret = dir.join("credentials");
    std::fs::write(&secret, "sensor\na secret\n").unwrap();
    with_pipelines(
        &mut fleet,
        &format!(
            "[[pipelines]]\nsource = \"mqtt://127.0.0.1:{port}/line3/+\"\nmodel = \"digits\"\n\
             sink = \"mqtt://127.0.0.1:{port}/results/digits\"\ncredentials = {secret:?}\n",
            port = broker.port()
        ),
    )
    .await;
    let results = broker.subscribe("results/#", "results").await.unwrap();
    let replies = broker.subscribe("reply/7", "replies").await.unwrap();
    // The agent may not have subscribed yet: a retained message reaches it all the same.
    let bare = json!([pixels(0)]).to_string();
    broker.publish("line3/a", &bare, &["-r"]).await.unwrap();
    until("the first answer", || match results.lines().len() {
        0 => Err("none".to_owned()),
        _ => Ok(()),
    })
    .await;

    let named = json!({"pixels": pixels(1)}).to_string();
    let asking = [
        "-D",
        "publish",
        "response-topic",
        "reply/7",
        "-D",
        "publish",
        "correlation-data",
        "c-7",
    ];
    broker.publish("line3/b", &named, &asking).await.unwrap();
    broker.publish("line3/b", "[1, 2, 3]", &[]).await.unwrap();
    broker.publish("line3/b", "no json", &[]).await.unwrap();
    let whole = json!({"id": "mine", "inputs": [{
        "name": "pixels", "shape": [1, 64], "datatype": "FP32", "data": pixels(2)
    }]});
    broker
        .publish("line3/c", &whole.to_string(), &[])
        .await
        .unwrap();
    until("three answers", || match results.lines().len() {
        3 => Ok(()),
        _ => Err(format!("{:?}", results.lines())),
    })
    .await;
    let got = answers(&results);
    let ids: Vec<&str> = got.iter().map(|a| a["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["line3/a", "line3/b", "mine"]);
    for (n, answer) in got.into_iter().enumerate() {
        assert_eq!(without_id(answer), without_id(asked(&fleet, n).await));
    }
    until("the reply", || match replies.lines().len() {
        1 => Ok(()),
        _ => Err(format!("{:?}", replies.lines())),
    })
    .await;
    assert!(
        replies.lines()[0].ends_with("|application/json|c-7"),
        "{:?}",
        replies.lines()
    );
    let payload = json!(pixels(3)).to_string();
    let reply = broker
        .request("line3/d", "reply/mine", &payload)
        .await
        .unwrap();
    let reply: Value = serde_json::from_str(reply.trim()).unwrap();
    assert_eq!(without_id(reply), without_id(asked(&fleet, 3).await));
    metrics(
        &fleet,
        &[
            ("pipeline.digits.received", 6),
            ("pipeline.digits.answered", 4),
            ("pipeline.digits.failed", 2),
        ],
    )
    .await;
    let (store, id) = (&fleet.server().store, &fleet.devices[0].id);
    eventually("an event of what failed", async || {
        let events = store.events(id, 100).await?;
        let texts = events.iter().map(|e| serde_json::to_string(&e.record));
        let texts = texts.collect::<Result<Vec<_>, _>>()?;
        let told =
            |text: &String| text.contains("pipeline_record_failed") && text.contains("line3/b");
        Ok(if texts.iter().any(told) {
            Ok(())
        } else {
            Err(format!("{texts:?}"))
        })
    })
    .await
    .unwrap();
    fleet.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_policy_drops_what_it_says_and_counts_it() {
    let mut fleet = FleetBuilder::new(PROGRAM).boot().await.unwrap();
    let broker = LocalBroker::start(fleet.dir.path(), None).unwrap();
    let pipelines: Vec<String> = ["block", "drop_oldest", "drop_newest"]
        .map(|policy| {
            format!(
                "[[pipelines]]\nname = \"{policy}\"\nsource = \"mqtt://127.0.0.1:{port}/{policy}/in\"\n\
                 model = \"digits\"\nsink = \"mqtt://127.0.0.1:{port}/{policy}/out\"\n\
                 when_full = \"{policy}\"\nqueue = 4\n",
                port = broker.port()
            )
        })
        .into();
    with_pipelines(&mut fleet, &pipelines.concat()).await;
    // The first message of each is retained: it arrives even if it is earlier than the subscription.
    let mut heard = Vec::new();
    for policy in ["block", "drop_oldest", "drop_newest"] {
        heard.push(
            broker
                .subscribe(&format!("{policy}/out"), policy)
                .await
                .unwrap(),
        );
        let first = message(0).to_string();
        broker
            .publish(&format!("{policy}/in"), &first, &["-r"])
            .await
            .unwrap();
    }
    metrics(
        &fleet,
        &["block", "drop_oldest", "drop_newest"].map(|policy| {
            let name: &'static str =
                Box::leak(format!("pipeline.{policy}.waiting").into_boxed_str());
            (name, 1)
        }),
    )
    .await;
    let lines: Vec<String> = (1..20).map(|n| format!("{}\n", message(n))).collect();
    let file = fleet.dir.path().join("lines");
    std::fs::write(&file, lines.concat()).unwrap();
    for policy in ["block", "drop_oldest", "drop_newest"] {
        broker
            .publish_lines(&format!("{policy}/in"), &file)
            .await
            .unwrap();
    }
    // No model yet: the queues are full.
    metrics(
        &fleet,
        &[
            ("pipeline.block.received", 4),
            ("pipeline.block.waiting", 4),
            ("pipeline.drop_oldest.received", 20),
            ("pipeline.drop_oldest.dropped_oldest", 16),
            ("pipeline.drop_oldest.dropped_newest", 0),
            ("pipeline.drop_newest.received", 20),
            ("pipeline.drop_newest.dropped_newest", 16),
            ("pipeline.drop_newest.dropped_oldest", 0),
        ],
    )
    .await;
    install(&mut fleet).await;
    metrics(
        &fleet,
        &[
            ("pipeline.block.answered", 20),
            ("pipeline.drop_oldest.answered", 4),
            ("pipeline.drop_newest.answered", 4),
        ],
    )
    .await;
    let expected = [0..20, 16..20, 0..4];
    for (heard, expected) in heard.iter().zip(expected) {
        let expected: Vec<String> = expected.map(|n: i32| format!("m{n}")).collect();
        until("the answers", || {
            let got = answers(heard);
            let ids: Vec<&str> = got.iter().map(|a| a["id"].as_str().unwrap()).collect();
            if ids == expected {
                Ok(())
            } else {
                Err(format!("{ids:?}, not {expected:?}"))
            }
        })
        .await;
    }
    fleet.end().await.unwrap();
}

/// Waits until the file has as many results as are expected, and compares their ids.
async fn ids_in(file: &Path, expected: &[usize]) {
    let lines = || std::fs::read_to_string(file).unwrap_or_default();
    until("the results", || match lines().lines().count() {
        n if n >= expected.len() => Ok(()),
        n => Err(format!("{n} of {} in {}", expected.len(), file.display())),
    })
    .await;
    let text = lines();
    let answers = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let ids: Vec<String> = answers
        .map(|a| a["id"].as_str().unwrap().to_owned())
        .collect();
    let expected: Vec<String> = expected.iter().map(|n| format!("m{n}")).collect();
    assert_eq!(ids, expected, "{}", file.display());
}

/// A mosquitto whose `max_inflight_messages` is above the agreed Receive Maximum does not keep to
/// the latter.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_broker_that_sends_more_than_agreed_stops_no_pipeline() {
    const FLOOD: usize = 3000;
    // From a broker that sends nearly all at once.
    const DELUGE: usize = 5000;
    let mut fleet = FleetBuilder::new(PROGRAM).boot().await.unwrap();
    let dir = fleet.dir.path().to_owned();
    let brokers = [("a", 1000), ("b", 60_000)].map(|(name, inflight)| {
        let more = format!("max_inflight_messages {inflight}");
        let folder = dir.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        LocalBroker::start_with(&folder, None, &more).unwrap()
    });
    let cases = [
        ("block", "block", &brokers[0], FLOOD),
        ("drop_oldest", "drop_oldest", &brokers[0], FLOOD),
        ("drop_newest", "drop_newest", &brokers[0], FLOOD),
        ("deluge", "block", &brokers[1], DELUGE),
    ];
    let file = |name: &str| dir.join(format!("{name}.jsonl"));
    let pipelines = cases.map(|(name, policy, broker, _)| {
        format!(
            "[[pipelines]]\nname = \"{name}\"\nsource = \"mqtt://127.0.0.1:{}/{name}\"\nmodel = \"digits\"\n\
             sink = {:?}\nwhen_full = \"{policy}\"\nqueue = 4\n",
            broker.port(),
            format!("file:{}", file(name).display()),
        )
    });
    with_pipelines(&mut fleet, &pipelines.concat()).await;
    for (name, _, broker, _) in &cases {
        let first = message(0).to_string();
        broker.publish(name, &first, &["-r"]).await.unwrap();
    }
    metrics(
        &fleet,
        &[
            ("pipeline.block.waiting", 1),
            ("pipeline.drop_oldest.waiting", 1),
            ("pipeline.drop_newest.waiting", 1),
            ("pipeline.deluge.waiting", 1),
        ],
    )
    .await;
    let rows = FIELD.len() / 65;
    for (name, _, broker, count) in &cases {
        let lines = (1..*count).map(|n| {
            let mut message = message(n % rows);
            message["id"] = json!(format!("m{n}"));
            format!("{message}\n")
        });
        let lines: Vec<String> = lines.collect();
        let path = dir.join("lines");
        std::fs::write(&path, lines.concat()).unwrap();
        broker.publish_lines(name, &path).await.unwrap();
    }
    // No model yet.
    let (flood, dropped) = (FLOOD as u64, FLOOD as u64 - 4);
    metrics(
        &fleet,
        &[
            ("pipeline.block.received", 4),
            ("pipeline.block.waiting", 4),
            ("pipeline.drop_oldest.received", flood),
            ("pipeline.drop_oldest.dropped_oldest", dropped),
            ("pipeline.drop_oldest.dropped_newest", 0),
            ("pipeline.drop_newest.received", flood),
            ("pipeline.drop_newest.dropped_newest", dropped),
            ("pipeline.drop_newest.dropped_oldest", 0),
            ("pipeline.deluge.received", 4),
        ],
    )
    .await;
    install(&mut fleet).await;
    let all: Vec<usize> = (0..DELUGE).collect();
    ids_in(&file("drop_oldest"), &all[FLOOD - 4..FLOOD]).await;
    ids_in(&file("drop_newest"), &all[..4]).await;
    ids_in(&file("block"), &all[..FLOOD]).await;
    ids_in(&file("deluge"), &all).await;
    metrics(
        &fleet,
        &[
            ("pipeline.block.answered", flood),
            ("pipeline.block.returned", 0),
            ("pipeline.deluge.answered", DELUGE as u64),
            ("pipeline.deluge.dropped_newest", 0),
        ],
    )
    .await;
    for (name, folder) in [("block", "a"), ("drop_oldest", "a"), ("drop_newest", "a")] {
        let log = dir.join(folder).join("local-broker/mosquitto.log");
        let log = std::fs::read_to_string(log).unwrap();
        let client = format!(" as dunlin-{}-{name}-in ", fleet.devices[0].id);
        let connections = log.lines().filter(|line| line.contains(&client)).count();
        assert_eq!(connections, 1, "{name}: {log}");
    }
    fleet.end().await.unwrap();
}

fn message(n: usize) -> Value {
    json!({"id": format!("m{n}"), "inputs": [{
        "name": "pixels", "shape": [1, 64], "datatype": "FP32", "data": pixels(n)
    }]})
}

/// A child of the agent by its subcommand.
fn child(subcommand: &str, agent: &Process) -> Option<i32> {
    children_of(agent.pid()).into_iter().find(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.split('\0').any(|word| word == subcommand)
    })
}

async fn kill_soon(subcommand: &str, agent: &Process) {
    let pid = eventually("a child to kill", async || {
        Ok(child(subcommand, agent).ok_or_else(|| format!("no {subcommand}")))
    });
    kill_child(pid.await.unwrap()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_when_any_of_them_dies() {
    const MESSAGES: usize = 400;
    let mut fleet = FleetBuilder::new(PROGRAM).boot().await.unwrap();
    install(&mut fleet).await;
    let mut broker = LocalBroker::start(fleet.dir.path(), None).unwrap();
    // The agent as a process: its children are told from those of other tests.
    fleet.devices[0].stop().await.unwrap();
    let folder = fleet.dir.path().join("dev-01");
    let config = folder.join("agent.toml");
    let mut text = std::fs::read_to_string(&config).unwrap();
    text += &format!(
        "[[pipelines]]\nsource = \"mqtt://127.0.0.1:{port}/in\"\nmodel = \"digits\"\n\
         sink = \"mqtt://127.0.0.1:{port}/out\"\nqueue = 16\n",
        port = broker.port()
    );
    std::fs::write(&config, text).unwrap();
    let run = ["agent", "run", "--config", config.to_str().unwrap()];
    let mut agent = Process::start(Path::new(PROGRAM), &run, &folder.join("log")).unwrap();
    let heard = broker.subscribe("out", "listener").await.unwrap();
    broker
        .publish("in", &message(0).to_string(), &["-r"])
        .await
        .unwrap();
    let ids = |heard: &Heard| -> BTreeSet<String> {
        let got = answers(heard);
        got.iter()
            .map(|a| a["id"].as_str().unwrap().to_owned())
            .collect()
    };
    until("the first answer", || match ids(&heard).len() {
        0 => Err("none".to_owned()),
        _ => Ok(()),
    })
    .await;
    let lines: Vec<String> = (1..MESSAGES).map(|n| format!("{}\n", message(n))).collect();
    for (round, part) in lines.chunks(MESSAGES / 8).enumerate() {
        let file = folder.join("lines");
        std::fs::write(&file, part.concat()).unwrap();
        let before = ids(&heard).len();
        broker.publish_lines("in", &file).await.unwrap();
        // In the midst of the work, not before or after it.
        until("some answers", || match ids(&heard).len() {
            n if n > before => Ok(()),
            n => Err(format!("{n} after {before}")),
        })
        .await;
        match round % 3 {
            0 => kill_soon("pipelines", &agent).await,
            1 => kill_soon("infer", &agent).await,
            _ => broker.restart().unwrap(),
        }
    }
    until("every answer", || match ids(&heard).len() {
        MESSAGES => Ok(()),
        n => Err(format!("{n} of {MESSAGES}")),
    })
    .await;
    let (store, id) = (&fleet.server().store, &fleet.devices[0].id);
    eventually("an event of the death", async || {
        let events = store.events(id, 1000).await?;
        let texts = events.iter().map(|e| serde_json::to_string(&e.record));
        let texts = texts.collect::<Result<Vec<_>, _>>()?;
        let told = texts.iter().any(|text| text.contains("pipelines_died"));
        Ok(if told {
            Ok(())
        } else {
            Err(format!("{texts:?}"))
        })
    })
    .await
    .unwrap();
    let status = agent.terminate().await.unwrap();
    assert!(status.success(), "{}", agent.log_tail());
    fleet.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn folders_and_standard_input_are_answered() {
    let mut fleet = FleetBuilder::new(PROGRAM).boot().await.unwrap();
    install(&mut fleet).await;
    let dir = fleet.dir.path().to_owned();
    let (spool, kept) = (dir.join("spool"), dir.join("kept"));
    for folder in [&spool, &kept] {
        std::fs::create_dir_all(folder).unwrap();
    }
    let (results, kept_results) = (dir.join("results.jsonl"), dir.join("kept.jsonl"));
    let pipelines = format!(
        "[[pipelines]]\nsource = \"folder:{}\"\nmodel = \"digits\"\nsink = \"file:{}\"\n\
         [[pipelines]]\nname = \"kept\"\nsource = \"folder:{}\"\nmodel = \"digits\"\nsink = \"file:{}\"\nafter = \"keep\"\n",
        spool.display(),
        results.display(),
        kept.display(),
        kept_results.display()
    );
    let names: Vec<String> = (0..64).map(|n| format!("p{n}")).collect();
    std::fs::write(
        spool.join("a.csv"),
        format!("{}\n{}\n{}\n", names.join(","), csv(0), csv(1)),
    )
    .unwrap();
    std::fs::write(spool.join("b.json"), json!(pixels(2)).to_string()).unwrap();
    std::fs::write(spool.join("c.json"), "[1]").unwrap();
    std::fs::write(spool.join("d.json.part"), "[").unwrap();
    std::fs::write(spool.join(".hidden.json"), "[").unwrap();
    std::fs::write(kept.join("k.json"), json!(pixels(4)).to_string()).unwrap();
    with_pipelines(&mut fleet, &pipelines).await;
    let lines = |path: &Path| -> Vec<Value> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let is_there = |path: &Path| match path.exists() {
        true => Ok(()),
        false => Err(format!("no {}", path.display())),
    };
    for name in ["done/a.csv", "done/b.json", "failed/c.json"] {
        until("a file is put away", || is_there(&spool.join(name))).await;
    }
    until("the kept one", || match lines(&kept_results).len() {
        1 => Ok(()),
        n => Err(n.to_string()),
    })
    .await;
    let got = lines(&results);
    for (n, id) in ["a.csv#2", "a.csv#3", "b.json"].into_iter().enumerate() {
        assert_eq!(got[n]["id"], id);
        assert_eq!(
            without_id(got[n].clone()),
            without_id(asked(&fleet, n).await)
        );
    }
    assert!(spool.join("d.json.part").exists() && spool.join(".hidden.json").exists());

    // After a restart what was kept is not read again; what comes is.
    fleet.restart_device(0).await.unwrap();
    std::fs::write(kept.join("l.json"), json!(pixels(5)).to_string()).unwrap();
    until("the next one", || match lines(&kept_results).len() {
        n if n >= 2 => Ok(()),
        n => Err(n.to_string()),
    })
    .await;
    let ids: Vec<Value> = lines(&kept_results)
        .iter()
        .map(|a| a["id"].clone())
        .collect();
    assert_eq!(ids, ["k.json", "l.json"]);

    standard_input(&fleet).await;
    fleet.end().await.unwrap();
}

async fn standard_input(fleet: &Fleet) {
    let socket = fleet.devices[0].settings.inference.socket.clone();
    let pipe = async |format: &str, input: String| {
        let mut child = tokio::process::Command::new(PROGRAM)
            .args([
                "agent", "pipe", "--model", "digits", "--format", format, "--socket",
            ])
            .arg(&socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let write = async {
            stdin.write_all(input.as_bytes()).await.unwrap();
            drop(stdin);
        };
        let ((), output) = tokio::join!(write, child.wait_with_output());
        output.unwrap()
    };
    let rows: Vec<String> = (0..200).map(|n| format!("{}\n", csv(n))).collect();
    let output = pipe("csv", rows.concat()).await;
    let (text, told) = (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    );
    assert!(output.status.success(), "{told}");
    assert!(told.contains("200 records, 200 answered"), "{told}");
    let ids: Vec<String> = text
        .lines()
        .map(|line| {
            let answer: Value = serde_json::from_str(line).unwrap();
            answer["id"].as_str().unwrap().to_owned()
        })
        .collect();
    let expected: Vec<String> = (1..=200).map(|n| format!("stdin#{n}")).collect();
    assert_eq!(ids, expected);

    let output = pipe(
        "json",
        format!("{}\n[1]\n\n{}\n", json!(pixels(0)), json!(pixels(1))),
    )
    .await;
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains("stdin#2") && told.contains("FP32 [1, 64]") && told.contains("1 failed"),
        "{told}"
    );
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 2);
}
