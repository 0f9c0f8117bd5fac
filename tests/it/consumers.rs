//! Programs besides the fleet's own: each reads what it was given, over both brokers, and nothing
//! that it tries gets it more.

#![allow(clippy::unwrap_used, clippy::panic)]

use dunlin::api::IssuedConsumer;
use dunlin::args::ConsumerFiles;
use dunlin_protocol::telemetry::{Class, Segment};
use dunlin_protocol::topic::Channel;
use dunlin_server::pki::{PemFiles, client_tls_from_files};
use dunlin_tests::fleet::{Broker, Fleet, FleetBuilder};
use dunlin_tests::mqtt::{Client, Message};
use dunlin_tests::operator::eventually;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

const PROGRAM: &str = env!("CARGO_BIN_EXE_dunlin-under-test");
const BROKERS: [Broker; 2] = [Broker::Embedded, Broker::Mosquitto];
const ALL: &str = "dunlin/v1/test/+/metrics";

type Tls = Arc<rustls::ClientConfig>;

/// A consumer with its files.
struct Consumer {
    id: String,
    folder: PathBuf,
    tls: Tls,
}

fn broker(fleet: &Fleet) -> SocketAddr {
    let external = fleet.mosquitto.as_ref();
    external.map_or_else(
        || fleet.server().mqtt.unwrap(),
        |mosquitto| SocketAddr::from(([127, 0, 0, 1], mosquitto.port)),
    )
}

/// Has an external broker read the ACL file that the server has just written.
fn reload(fleet: &Fleet) {
    if let Some(mosquitto) = &fleet.mosquitto {
        mosquitto.reload().unwrap();
    }
}

fn tls(folder: &std::path::Path) -> Tls {
    let files = PemFiles {
        ca: folder.join("ca.pem"),
        cert: folder.join("client.pem"),
        key: folder.join("client.key"),
    };
    client_tls_from_files(&files).unwrap()
}

async fn added(fleet: &Fleet, name: &str, channels: &[&str], devices: &[&str]) -> Consumer {
    let owned = |texts: &[&str]| -> Vec<String> { texts.iter().map(|t| (*t).into()).collect() };
    let folder = fleet.dir.path().join(name);
    let files = ConsumerFiles {
        out: Some(folder.clone()),
        csr: None,
    };
    let (channels, devices) = (owned(channels), owned(devices));
    let session = &fleet.operator.session;
    let issued: IssuedConsumer = dunlin::consumer::add(session, name, &channels, &devices, &files)
        .await
        .unwrap();
    reload(fleet);
    Consumer {
        id: issued.client_id,
        tls: tls(&folder),
        folder,
    }
}

impl Consumer {
    async fn connect(&self, fleet: &Fleet) -> anyhow::Result<Client> {
        Client::connect(broker(fleet), &self.id, self.tls.clone()).await
    }
}

async fn fleet(broker: Broker, devices: usize) -> Fleet {
    let builder = FleetBuilder::new(PROGRAM).devices(devices);
    builder.broker(broker).boot().await.unwrap()
}

/// Which record a `metrics` message is.
fn identity(message: &Message) -> (String, u64) {
    let segment = Segment::decode(Class::Metrics, &message.payload).unwrap();
    (message.topic.clone(), segment.segment)
}

/// Waits until so many more messages are heard.
async fn hears(client: &Client, more: usize) {
    let before = client.heard().len();
    eventually("messages are heard", async || {
        let now = client.heard().len();
        let enough = now >= before + more;
        Ok(if enough {
            Ok(())
        } else {
            Err(format!("{now}"))
        })
    })
    .await
    .unwrap();
}

fn told<T>(result: anyhow::Result<T>) -> String {
    result.err().map(|e| e.to_string()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_consumer_reads_the_metrics_of_every_device() {
    for kind in BROKERS {
        let fleet = fleet(kind, 2).await;
        let consumer = added(&fleet, "grafana", &["metrics"], &[]).await;
        let client = consumer.connect(&fleet).await.unwrap();
        client.subscribe(ALL).await.unwrap();
        let wanted: BTreeSet<String> = ["dev-01", "dev-02"]
            .map(|d| format!("dunlin/v1/test/{d}/metrics"))
            .into();
        eventually("metrics of both devices", async || {
            let topics: BTreeSet<String> = client.heard().into_iter().map(|m| m.topic).collect();
            Ok(if topics == wanted {
                Ok(())
            } else {
                Err(format!("{topics:?}"))
            })
        })
        .await
        .unwrap();
        // Flat, in order for each device, and nothing of it late.
        let mut last = std::collections::BTreeMap::new();
        for message in client.heard() {
            let segment = Segment::decode(Class::Metrics, &message.payload).unwrap();
            assert!(!segment.backfilled);
            let before = last.insert(message.topic, segment.segment);
            assert!(before < Some(segment.segment), "{kind:?}");
        }
        fleet.end().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_consumer_publishes_nothing_and_takes_nobodys_name() {
    for kind in BROKERS {
        let fleet = fleet(kind, 1).await;
        let consumer = added(&fleet, "rogue", &["metrics", "event"], &[]).await;
        let witness = added(&fleet, "witness", &["metrics", "event"], &[]).await;
        let witness = witness.connect(&fleet).await.unwrap();
        witness.subscribe(ALL).await.unwrap();
        witness.subscribe("dunlin/v1/test/+/event").await.unwrap();
        let ids = ["dev-01", "dunlin-server", "rogue", "consumer+witness", "x"];
        for id in ids {
            // Mosquitto gives it its certificate's name whatever it says.
            let connected = Client::connect(broker(&fleet), id, consumer.tls.clone()).await;
            let refused = told(connected.map(drop));
            let embedded = kind == Broker::Embedded;
            assert_eq!(
                refused.contains("NotAuthorized"),
                embedded,
                "{id}: {refused}"
            );
        }
        let will = "dunlin/v1/test/dev-01/event";
        let with_will =
            Client::connect_with_will(broker(&fleet), &consumer.id, consumer.tls.clone(), will);
        // Mosquitto looks at a will's topic when it is due: the connection is cut.
        let refused = told(with_will.await.map(drop));
        assert_eq!(refused.is_empty(), kind == Broker::Mosquitto, "{refused}");

        let client = consumer.connect(&fleet).await.unwrap();
        for device in ["dev-01", "rogue", "consumer", "nobody"] {
            for channel in Channel::ALL {
                let topic = format!("dunlin/v1/test/{device}/{}", channel.as_str());
                let refused = told(client.publish(&topic, b"{}".to_vec()).await);
                assert!(
                    refused.contains("NotAuthorized"),
                    "{kind:?} {topic}: {refused:?}"
                );
            }
        }
        hears(&witness, 2).await;
        for message in witness.heard() {
            assert!(
                message.topic.starts_with("dunlin/v1/test/dev-01/"),
                "{message:?}"
            );
            assert!(message.payload.len() > 2, "{message:?}");
        }
        fleet.end().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_consumer_hears_no_more_than_it_was_given() {
    for kind in BROKERS {
        let mut fleet = fleet(kind, 2).await;
        let consumer = added(&fleet, "narrow", &["metrics"], &["dev-01"]).await;
        let client = consumer.connect(&fleet).await.unwrap();
        for filter in [
            "#",
            "dunlin/v1/test/#",
            "dunlin/v1/test/+/+",
            ALL,
            "dunlin/v1/test/dev-01/#",
            "dunlin/v1/test/dev-02/metrics",
            "dunlin/v1/test/dev-01/desired",
            "dunlin/v1/test/dev-01/command",
            "dunlin/v1/test/dev-01/reported",
            "dunlin/v1/test/+/presence",
            "dunlin/v1/test/narrow/metrics",
            "$share/x/dunlin/v1/test/dev-01/metrics",
            "$SYS/#",
        ] {
            let refused = told(client.subscribe(filter).await);
            // Mosquitto lets everybody subscribe, and looks when it delivers.
            let denied = refused.contains("NotAuthorized") || kind == Broker::Mosquitto;
            assert!(denied, "{filter}: {refused:?}");
        }
        client
            .subscribe("dunlin/v1/test/dev-01/metrics")
            .await
            .unwrap();
        hears(&client, 1).await;
        // A new connection says presence and reported, and is told what it should run.
        let before = fleet.operator.reported(&fleet.devices[0].id).await.unwrap();
        fleet.restart_device(0).await.unwrap();
        fleet.restart_device(1).await.unwrap();
        eventually("a newer report", async || {
            let now = fleet.operator.reported(&fleet.devices[0].id).await?;
            let newer = now.map(|r| r.sequence) > before.as_ref().map(|r| r.sequence);
            Ok(if newer {
                Ok(())
            } else {
                Err("none".to_owned())
            })
        })
        .await
        .unwrap();
        hears(&client, 2).await;
        for message in client.heard() {
            assert_eq!(message.topic, "dunlin/v1/test/dev-01/metrics", "{kind:?}");
        }
        fleet.end().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_revoked_consumer_hears_nothing_more() {
    for kind in BROKERS {
        let fleet = fleet(kind, 1).await;
        let consumer = added(&fleet, "leaver", &["metrics"], &[]).await;
        let witness = added(&fleet, "witness", &["metrics"], &[]).await;
        let witness = witness.connect(&fleet).await.unwrap();
        let client = consumer.connect(&fleet).await.unwrap();
        for each in [&witness, &client] {
            each.subscribe(ALL).await.unwrap();
        }
        hears(&client, 1).await;
        let api = fleet.operator.client();
        api.revoke_consumer("leaver").await.unwrap();
        api.revoke_consumer("leaver").await.unwrap();
        reload(&fleet);
        if kind == Broker::Embedded {
            eventually("the connection is dropped", async || {
                let ended = client.has_ended();
                Ok(if ended {
                    Ok(())
                } else {
                    Err("it goes on".to_owned())
                })
            })
            .await
            .unwrap();
            let refused = told(consumer.connect(&fleet).await.map(drop));
            assert!(refused.contains("NotAuthorized"), "{refused}");
        }
        // From the first message on that the witness alone hears.
        let alone = eventually("a message that it does not hear", async || {
            let heard: BTreeSet<_> = client.heard().iter().map(identity).collect();
            let all: Vec<_> = witness.heard().iter().map(identity).collect();
            let alone = all.iter().rev().take_while(|m| !heard.contains(*m)).count();
            Ok(if alone >= 2 {
                Ok(all.len() - alone)
            } else {
                Err(format!("{alone}"))
            })
        });
        let alone = alone.await.unwrap();
        if kind == Broker::Mosquitto {
            // Nor by a connection of its own afterwards.
            let again = consumer.connect(&fleet).await.unwrap();
            again.subscribe(ALL).await.unwrap();
            hears(&witness, 2).await;
            assert_eq!(again.heard(), []);
            assert!(
                told(again.publish("dunlin/v1/test/dev-01/event", vec![1]).await)
                    .contains("NotAuthorized")
            );
        }
        let heard: BTreeSet<_> = client.heard().iter().map(identity).collect();
        for message in witness.heard().iter().skip(alone).map(identity) {
            assert!(!heard.contains(&message), "{message:?}");
        }
        // Its name is gone with it.
        let files = ConsumerFiles {
            out: Some(fleet.dir.path().join("again")),
            csr: None,
        };
        let channels = ["metrics".to_owned()];
        let again =
            dunlin::consumer::add(&fleet.operator.session, "leaver", &channels, &[], &files).await;
        assert!(
            again
                .unwrap_err()
                .to_string()
                .contains("a name is given once")
        );
        fleet.end().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_renewed_certificate_takes_the_place_of_the_one_before() {
    let fleet = fleet(Broker::Embedded, 1).await;
    let consumer = added(&fleet, "grafana", &["metrics"], &[]).await;
    let client = consumer.connect(&fleet).await.unwrap();
    client.subscribe(ALL).await.unwrap();
    let admin = format!("http://{}", fleet.server().admin);
    let renewed = Command::new(PROGRAM)
        .args(["consumer", "renew", "grafana", "--out"])
        .arg(&consumer.folder)
        .env("DUNLIN_SERVER", &admin)
        .env(
            "DUNLIN_TOKEN",
            fleet.server().first_admin_token.as_ref().unwrap(),
        )
        .env("DUNLIN_CONTEXT", fleet.dir.path().join("none.toml"))
        .output()
        .unwrap();
    assert!(renewed.status.success(), "{renewed:?}");
    eventually("the connection is dropped", async || {
        let ended = client.has_ended();
        Ok(if ended {
            Ok(())
        } else {
            Err("it goes on".to_owned())
        })
    })
    .await
    .unwrap();
    let refused = told(consumer.connect(&fleet).await.map(drop));
    assert!(refused.contains("NotAuthorized"), "{refused}");
    let renewed = Consumer {
        tls: tls(&consumer.folder),
        ..consumer
    };
    let client = renewed.connect(&fleet).await.unwrap();
    client.subscribe(ALL).await.unwrap();
    hears(&client, 1).await;

    // At the devices' other door it is nobody.
    let file = |name: &str| renewed.folder.join(name);
    let url = format!(
        "https://{}/repository/metadata/timestamp.json",
        fleet.server().devices
    );
    let output = Command::new("curl")
        .args([
            "--silent",
            "--output",
            "/dev/null",
            "--write-out",
            "%{http_code}",
        ])
        .arg("--cacert")
        .arg(file("ca.pem"))
        .arg("--cert")
        .arg(file("client.pem"))
        .arg("--key")
        .arg(file("client.key"))
        .arg(url)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "401", "{output:?}");
    fleet.end().await.unwrap();
}

/// The command that `dunlin consumer add` prints is run as it stands.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn mosquitto_sub_reads_metrics_with_what_the_command_prints() {
    for kind in BROKERS {
        let fleet = fleet(kind, 1).await;
        let admin = format!("http://{}", fleet.server().admin);
        let output = Command::new(PROGRAM)
            .args(["consumer", "add", "shell"])
            .env("DUNLIN_SERVER", &admin)
            .env(
                "DUNLIN_TOKEN",
                fleet.server().first_admin_token.as_ref().unwrap(),
            )
            .env("DUNLIN_CONTEXT", fleet.dir.path().join("none.toml"))
            .current_dir(fleet.dir.path())
            .output()
            .unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{printed}");
        reload(&fleet);
        let command = printed.split_once("\n\n").unwrap().1.trim_end();
        assert!(command.starts_with("mosquitto_sub "), "{printed}");
        let listening = tokio::process::Command::new("sh")
            .args(["-c", &format!("{command} -C 3")])
            .current_dir(fleet.dir.path())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .output();
        let limit = std::time::Duration::from_secs(60);
        let heard = tokio::time::timeout(limit, listening)
            .await
            .unwrap()
            .unwrap();
        let text = String::from_utf8(heard.stdout.clone()).unwrap();
        assert_eq!(text.lines().count(), 3, "{kind:?} {heard:?}");
        for line in text.lines() {
            let flat: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(
                flat["uptime_s"].is_u64() && flat["time_ms"].is_i64(),
                "{line}"
            );
        }
        fleet.end().await.unwrap();
    }
}
