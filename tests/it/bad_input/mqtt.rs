//! What no agent and no server would say, at the broker.

use super::{event, fleet, goes_on, nothing_is_lost};
use dunlin_agent::identity::Identity;
use dunlin_protocol::SEGMENT_MAX_BYTES;
use dunlin_server::pki::{PemFiles, client_tls_from_files};
use dunlin_tests::fleet::{Fleet, agent_settings};
use dunlin_tests::http::{over_tcp, request};
use dunlin_tests::mqtt::{Client, is_cut_off_at};
use dunlin_tests::operator::eventually;
use std::net::SocketAddr;
use std::sync::Arc;

type Tls = Arc<rustls::ClientConfig>;

/// An enrolled device whose application speaks MQTT by itself.
async fn rogue(fleet: &Fleet, name: &str) -> (SocketAddr, Tls) {
    let settings = agent_settings(&fleet.dir.path().join(name), name).unwrap();
    let claim = fleet.operator.claim(1).await.unwrap();
    dunlin_agent::enroll::enroll(&settings, &claim)
        .await
        .unwrap();
    let identity = Identity::load(&settings.state_dir).unwrap().unwrap();
    (
        fleet.server().mqtt.unwrap(),
        identity.rustls_client_config(),
    )
}

/// Messages left out so far for a reason, by `/metrics`. One count for the whole test process.
async fn refused(fleet: &Fleet, reason: &str) -> u64 {
    let bytes = request("GET", "/metrics", &[], b"");
    let answer = over_tcp(fleet.server().admin, &bytes).await.unwrap();
    let name = format!("dunlin_ingest_refused_total{{reason=\"{reason}\"}} ");
    let text = answer.text();
    let line = text.lines().find_map(|l| l.strip_prefix(&name));
    line.map_or(0, |n| n.trim().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_device_says_wrongly_is_counted_and_left_out() {
    let mut fleet = fleet(2).await;
    let (broker, tls) = rogue(&fleet, "rogue").await;
    let topic = |channel: &str| format!("dunlin/v1/test/rogue/{channel}");
    let (malformed, large) = (
        refused(&fleet, "malformed").await,
        refused(&fleet, "too_large").await,
    );
    let client = Client::connect(broker, "rogue", tls.clone()).await.unwrap();

    let segment = r#"{"boot":"00000000000000000000000000000000","segment":1,"records":"#;
    let bad: [(&str, Vec<u8>); 8] = [
        ("event", b"{".to_vec()),
        ("event", b"\xff\xfe\x00".to_vec()),
        (
            "event",
            format!("{segment}[{{\"type\":\"event\"}}]}}").into_bytes(),
        ),
        ("sketch", format!("{segment}7}}").into_bytes()),
        ("metrics", b"[1,2]".to_vec()),
        ("reported", b"{\"sequence\":-1}".to_vec()),
        ("presence", b"online".to_vec()),
        ("log", Vec::from([b'['; 5000])),
    ];
    let count = bad.len() as u64;
    for (channel, payload) in bad {
        client.publish(&topic(channel), payload).await.unwrap();
    }
    for (channel, bytes) in [("event", SEGMENT_MAX_BYTES + 1), ("reported", 100_000)] {
        let payload = vec![b' '; bytes];
        client.publish(&topic(channel), payload).await.unwrap();
    }
    eventually("each is counted", async || {
        let now = (
            refused(&fleet, "malformed").await,
            refused(&fleet, "too_large").await,
        );
        let all = now.0 >= malformed + count && now.1 >= large + 2;
        Ok(if all { Ok(()) } else { Err(format!("{now:?}")) })
    })
    .await
    .unwrap();
    drop(client);

    let cut = is_cut_off_at(broker, "rogue", tls, 200 << 20)
        .await
        .unwrap();
    assert!(cut, "a packet of 200 MiB was let in");
    let segments = fleet
        .server()
        .store
        .boots(&"rogue".parse().unwrap())
        .await
        .unwrap();
    assert!(segments.is_empty(), "something of it was stored");
    goes_on(&fleet).await;
    nothing_is_lost(&mut fleet, 0).await;
    fleet.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_device_keeps_to_its_own_name_and_topics() {
    let fleet = fleet(1).await;
    let (broker, tls) = rogue(&fleet, "rogue").await;

    // Another's name, the server's, none that exists.
    for id in ["dev-01", "dunlin-server", "nobody"] {
        let refused = Client::connect(broker, id, tls.clone()).await;
        let told = refused.err().unwrap().to_string();
        assert!(told.contains("NotAuthorized"), "{id}: {told}");
    }
    let client = Client::connect(broker, "rogue", tls).await.unwrap();
    for topic in [
        "dunlin/v1/test/dev-01/event",
        "dunlin/v1/test/dev-01/desired",
        "dunlin/v1/test/rogue/desired",
        "dunlin/v1/other/rogue/event",
        "dunlin/v1/test/rogue/nonsense",
        "dunlin/v2/test/rogue/event",
        "anything",
    ] {
        let refused = client.publish(topic, b"{}".to_vec()).await;
        let told = refused.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(told.contains("NotAuthorized"), "{topic}: {told:?}");
    }
    for filter in [
        "#",
        "dunlin/v1/test/+/desired",
        "dunlin/v1/test/dev-01/desired",
        "dunlin/v1/test/rogue/#",
        "$share/dunlin/dunlin/v1/test/+/event",
        "$SYS/#",
    ] {
        let refused = client.subscribe(filter).await;
        let told = refused.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(told.contains("NotAuthorized"), "{filter}: {told:?}");
    }
    client
        .subscribe("dunlin/v1/test/rogue/desired")
        .await
        .unwrap();
    let own = "dunlin/v1/test/rogue/log";
    client.publish(own, b"{".to_vec()).await.unwrap();
    goes_on(&fleet).await;
    fleet.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_server_says_wrongly_is_told_back_and_left_out() {
    let mut fleet = fleet(1).await;
    let pki = fleet.dir.path().join("server/pki");
    let files = PemFiles {
        ca: pki.join("ca.pem"),
        cert: pki.join("mqtt-client.pem"),
        key: pki.join("mqtt-client.key"),
    };
    let tls = client_tls_from_files(&files).unwrap();
    let broker = fleet.server().mqtt.unwrap();
    let bad: [(&str, Vec<u8>, &str); 6] = [
        ("desired", b"{".to_vec(), "EOF"),
        (
            "desired",
            br#"{"revision":{"epoch":1}}"#.to_vec(),
            "generation",
        ),
        ("desired", vec![b' '; 70_000], "70000 bytes"),
        ("ack", b"[]".to_vec(), "channel ack"),
        ("command", b"{\"revision\":0}".to_vec(), "channel command"),
        ("block", b"x".to_vec(), "channel block"),
    ];
    for (channel, payload, words) in bad {
        // The device does not listen to blocks: nothing arrives, nothing happens.
        let topic = format!("dunlin/v1/test/dev-01/{channel}");
        // The server proper takes its name back soon: a client for each message.
        let sent = eventually("it is sent", async || {
            let client = Client::connect(broker, "dunlin-server", tls.clone()).await;
            let sent = match client {
                Ok(client) => client.publish(&topic, payload.clone()).await,
                Err(e) => Err(e),
            };
            Ok(sent.map_err(|e| e.to_string()))
        });
        sent.await.unwrap();
        if channel != "block" {
            event(&fleet, 0, "message_refused", &[channel, words]).await;
        }
    }
    let v2 = fleet.operator.pack("v2", 2, 1).unwrap();
    fleet.operator.publish(&v2).await.unwrap();
    let device = fleet.devices[0].id.clone();
    let family = fleet.operator.family.clone();
    fleet
        .operator
        .client()
        .pin_device(&device, &family, 2)
        .await
        .unwrap();
    goes_on(&fleet).await;
    nothing_is_lost(&mut fleet, 0).await;
    fleet.end().await.unwrap();
}
