//! The broker, the server's MQTT client and ingest together, over real TLS, against clients that
//! behave and clients that do not.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "messaging/blocks.rs"]
mod blocks;
#[path = "messaging/harness.rs"]
mod harness;

use dunlin_protocol::command::{Ack, Desired};
use dunlin_protocol::id::{BootId, DeviceId};
use dunlin_protocol::report::{Progress, Reported};
use dunlin_protocol::topic::Channel;
use harness::{Broker, Client, Fleet, SOON, embedded, event_segment, is_refused, presence, until};
use rumqttc::QoS;
use rumqttc::mqttbytes::v5::LastWill;
use rustls::pki_types::ServerName;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

#[tokio::test(flavor = "multi_thread")]
async fn a_device_keeps_to_its_own_prefix() {
    let fleet = Fleet::start().await;
    let a = fleet.device("edge-a").await;
    fleet.enrol("edge-b").await;
    a.publish(&fleet.topic("edge-a", Channel::Event), event_segment(1))
        .await
        .expect("its own up channel");
    for topic in [
        fleet.topic("edge-b", Channel::Event),
        fleet.topic("edge-a", Channel::Desired),
        "dunlin/v1/other/edge-a/event".to_owned(),
        "something/else".to_owned(),
    ] {
        let error = a.publish(&topic, "x").await.expect_err(&topic);
        assert!(error.contains("NotAuthorized"), "{topic}: {error}");
    }
    for filter in [
        "#",
        "dunlin/v1/demo/+/desired",
        "dunlin/v1/demo/edge-b/ack",
        "$share/dunlin/dunlin/v1/demo/+/event",
    ] {
        assert!(is_refused(&a.subscribe(filter).await), "{filter}");
    }
    fleet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_certificates_own_id_connects() {
    let fleet = Fleet::start().await;
    let tls = fleet.enrol("edge-a").await;
    fleet.enrol("edge-b").await;
    for stranger in ["edge-b", "dunlin-server"] {
        let error = Client::connect(fleet.options(stranger, tls.clone()))
            .end()
            .await;
        assert!(error.contains("NotAuthorized"), "{stranger}: {error}");
    }
    let nobody = rustls::ClientConfig::builder()
        .with_root_certificates(fleet.roots())
        .with_no_client_auth();
    let error = Client::connect(fleet.options("edge-a", Arc::new(nobody)))
        .end()
        .await;
    assert!(
        error.contains("CertificateRequired") || error.contains("Io"),
        "{error}"
    );
    let mut foreign_will = fleet.options("edge-a", tls.clone());
    let topic = fleet.topic("edge-b", Channel::Presence);
    foreign_will.set_last_will(LastWill::new(topic, "x", QoS::AtLeastOnce, true, None));
    let error = Client::connect(foreign_will).end().await;
    assert!(error.contains("NotAuthorized"), "{error}");
    let mut honest = Client::connect(fleet.options("edge-a", tls));
    honest.connected().await;
    fleet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_fleet_is_refused() {
    let (fleet, other) = (Fleet::start().await, Fleet::start().await);
    fleet.enrol("edge-a").await;
    let theirs = other.enrol_trusting("edge-a", fleet.roots()).await;
    let error = Client::connect(fleet.options("edge-a", theirs)).end().await;
    assert!(
        error.contains("UnknownCA") || error.contains("DecryptError") || error.contains("Io"),
        "{error}"
    );
    fleet.shutdown().await;
    other.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_block_nobody() {
    let fleet = Fleet::start().await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(TcpStream::connect(("127.0.0.1", fleet.port)).await.unwrap());
    }
    let a = tokio::time::timeout(Duration::from_secs(3), fleet.device("edge-a"))
        .await
        .expect("connects meanwhile");
    a.publish(&fleet.topic("edge-a", Channel::Event), event_segment(1))
        .await
        .unwrap();
    // And the silent ones are let go.
    let mut byte = [0_u8];
    let read = tokio::time::timeout(SOON, silent[0].read(&mut byte))
        .await
        .expect("dropped after the time-out");
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    fleet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_packet_ends_its_own_connection_only() {
    let fleet = Fleet::start().await;
    let good = fleet.device("edge-good").await;
    let tls = fleet.enrol("edge-bad").await;
    let stream = TcpStream::connect(("127.0.0.1", fleet.port)).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(tls);
    let mut bad = connector
        .connect(ServerName::try_from("localhost").unwrap(), stream)
        .await
        .unwrap();
    // CONNECT, protocol 5, clean start, keep alive 60 s, no properties, client id.
    let mut connect = vec![0x10, 21, 0, 4, b'M', b'Q', b'T', b'T', 5, 2, 0, 60, 0, 0, 8];
    connect.extend(b"edge-bad");
    assert_eq!(connect.len(), 2 + 21);
    bad.write_all(&connect).await.unwrap();
    let mut answer = [0_u8; 4];
    tokio::time::timeout(SOON, bad.read_exact(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!((answer[0], answer[3]), (0x20, 0), "CONNACK, success");
    // PUBLISH that says it has 200 MiB.
    bad.write_all(&[0x30, 0x80, 0x80, 0x80, 0x64, 0, 1, b'x'])
        .await
        .unwrap();
    let rest = async {
        let mut sink = vec![0_u8; 4096];
        while matches!(bad.read(&mut sink).await, Ok(1..)) {}
    };
    tokio::time::timeout(SOON, rest)
        .await
        .expect("the connection is ended");
    good.publish(&fleet.topic("edge-good", Channel::Event), event_segment(1))
        .await
        .unwrap();
    fleet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_device_is_dropped_and_stays_out() {
    let fleet = Fleet::start().await;
    let (a, other) = (
        fleet.enrol("edge-a").await,
        fleet.device("edge-other").await,
    );
    let mut device = Client::connect(fleet.options("edge-a", a.clone()));
    device.connected().await;
    let id: DeviceId = "edge-a".parse().unwrap();
    assert!(fleet.store.revoke_device(&id).await.unwrap());
    assert_eq!(fleet.broker.embedded().handle().disconnect(&id), 1);
    device.end().await;
    let error = Client::connect(fleet.options("edge-a", a)).end().await;
    assert!(error.contains("NotAuthorized"), "{error}");
    other
        .publish(&fleet.topic("edge-other", Channel::Event), event_segment(1))
        .await
        .expect("others stay");
    fleet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_are_stored_once_and_acknowledged_exactly() {
    let fleet = Fleet::start().await;
    let mut device = fleet.device("edge-a").await;
    let topic = fleet.topic("edge-a", Channel::Event);
    for number in [1, 2, 5, 2, 5] {
        device.publish(&topic, event_segment(number)).await.unwrap();
    }
    let (boot, id) = (BootId([7; 16]), "edge-a".parse().unwrap());
    let mut acknowledged = BTreeSet::new();
    while acknowledged.len() < 3 {
        let (topic, payload) = device.next().await;
        assert_eq!(topic, fleet.topic("edge-a", Channel::Ack));
        let ack: Ack = serde_json::from_slice(&payload).unwrap();
        assert_eq!(ack.boot, boot);
        // What is acknowledged is on disk already.
        let stored = fleet.store.segment_numbers(&id, &boot).await.unwrap();
        assert!(
            ack.segments.iter().all(|number| stored.contains(number)),
            "{ack:?} {stored:?}"
        );
        acknowledged.extend(ack.segments);
    }
    assert_eq!(
        acknowledged,
        BTreeSet::from([1, 2, 5]),
        "the gaps 3 and 4 are not acknowledged"
    );
    assert_eq!(
        fleet.store.segment_numbers(&id, &boot).await.unwrap(),
        acknowledged
    );
    assert_eq!(
        fleet.store.events(&id, 10).await.unwrap().len(),
        3,
        "no record twice"
    );
    // A segment sent again much later is acknowledged again.
    device.publish(&topic, event_segment(2)).await.unwrap();
    loop {
        let (_, payload) = device.next().await;
        let ack: Ack = serde_json::from_slice(&payload).unwrap();
        if ack.segments == [2] {
            break;
        }
    }
    assert_eq!(fleet.store.events(&id, 10).await.unwrap().len(), 3);
    assert!(
        fleet
            .store
            .device(&id)
            .await
            .unwrap()
            .unwrap()
            .last_seen_ms
            .is_some()
    );
    fleet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_messages_stop_nothing() {
    let fleet = Fleet::start().await;
    let mut device = fleet.device("edge-a").await;
    for (channel, payload) in [
        (Channel::Event, b"{not json".to_vec()),
        (Channel::Sketch, event_segment(8)),
        (Channel::Metrics, b"{}".to_vec()),
        (Channel::Presence, b"{\"online\":\"perhaps\"}".to_vec()),
        (
            Channel::Reported,
            vec![b' '; dunlin_protocol::CONTROL_MESSAGE_MAX_BYTES + 1],
        ),
        (
            Channel::Log,
            vec![b'['; dunlin_protocol::SEGMENT_MAX_BYTES + 1],
        ),
        (Channel::Event, vec![0xff; 100]),
    ] {
        device
            .publish(&fleet.topic("edge-a", channel), payload)
            .await
            .unwrap();
    }
    device
        .publish(&fleet.topic("edge-a", Channel::Event), event_segment(9))
        .await
        .unwrap();
    let (_, payload) = device.next().await;
    assert_eq!(
        serde_json::from_slice::<Ack>(&payload).unwrap().segments,
        [9]
    );
    fleet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_late_last_will_of_an_old_connection_is_ignored() {
    let fleet = Fleet::start().await;
    let device = fleet.device("edge-a").await;
    let topic = fleet.topic("edge-a", Channel::Presence);
    let id: DeviceId = "edge-a".parse().unwrap();
    let is_online = || async { fleet.store.device(&id).await.unwrap().unwrap().online };
    device
        .publish(&topic, presence(true, "first"))
        .await
        .unwrap();
    device
        .publish(&topic, presence(true, "second"))
        .await
        .unwrap();
    device
        .publish(&topic, presence(false, "first"))
        .await
        .unwrap();
    // Messages of one device are taken in in order: once this is acknowledged, so are those.
    device
        .publish(&fleet.topic("edge-a", Channel::Event), event_segment(1))
        .await
        .unwrap();
    let numbers = || async {
        fleet
            .store
            .segment_numbers(&id, &BootId([7; 16]))
            .await
            .unwrap()
            .len()
            == 1
    };
    until("the event is stored", numbers).await;
    assert!(is_online().await, "the second connection is up");
    device
        .publish(&topic, presence(false, "second"))
        .await
        .unwrap();
    until("offline", || async { !is_online().await }).await;
    fleet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_publishes_its_last_will() {
    let fleet = Fleet::start().await;
    let mut options = fleet.options("edge-a", fleet.enrol("edge-a").await);
    let topic = fleet.topic("edge-a", Channel::Presence);
    options.set_last_will(LastWill::new(
        topic.clone(),
        presence(false, "c1"),
        QoS::AtLeastOnce,
        true,
        None,
    ));
    let mut device = Client::connect(options);
    device.connected().await;
    device.publish(&topic, presence(true, "c1")).await.unwrap();
    let id: DeviceId = "edge-a".parse().unwrap();
    let is_online = || async { fleet.store.device(&id).await.unwrap().unwrap().online };
    until("online", is_online).await;
    device.ended.abort();
    until("offline by its last will", || async { !is_online().await }).await;
    fleet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn desired_state_is_sent_until_the_device_says_it_has_it() {
    let fleet = Fleet::start().await;
    let id: DeviceId = "edge-a".parse().unwrap();
    let mut device = fleet.device("edge-a").await;
    let revision = fleet
        .store
        .set_desired(&[(id.clone(), Vec::new())])
        .await
        .unwrap()[0];
    device
        .publish(
            &fleet.topic("edge-a", Channel::Presence),
            presence(true, "c1"),
        )
        .await
        .unwrap();
    for _ in 0..3 {
        let (topic, payload) = device.next().await;
        assert_eq!(topic, fleet.topic("edge-a", Channel::Desired));
        assert_eq!(
            serde_json::from_slice::<Desired>(&payload)
                .unwrap()
                .revision,
            revision
        );
    }
    let reported = Reported {
        sequence: 1,
        revision,
        target: None,
        rollout: None,
        progress: Progress::Idle,
        waiting: None,
        hold: None,
        active: None,
        agent_version: "0.1.0".to_owned(),
        trust: None,
        capture: None,
        models: Vec::new(),
    };
    let json = serde_json::to_vec(&reported).unwrap();
    device
        .publish(&fleet.topic("edge-a", Channel::Reported), json)
        .await
        .unwrap();
    until("nothing is pending", || async {
        fleet.store.desired_pending().await.unwrap().is_empty()
    })
    .await;
    // A new connection gets it again, though it has reported it.
    while device.received.try_recv().is_ok() {}
    device
        .publish(
            &fleet.topic("edge-a", Channel::Presence),
            presence(true, "c2"),
        )
        .await
        .unwrap();
    assert_eq!(
        device.next().await.0,
        fleet.topic("edge-a", Channel::Desired)
    );
    fleet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_client_comes_back_after_a_broker_restart() {
    let fleet = Fleet::start().await;
    let Broker::Embedded(broker) = fleet.broker else {
        unreachable!()
    };
    let addr = broker.addr;
    broker.shutdown().await;
    until("the loss is noticed", || async { !fleet.mqtt.is_ready() }).await;
    let late = fleet
        .mqtt
        .publish(&"edge-a".parse().unwrap(), Channel::Ack, Vec::new(), None)
        .await;
    assert!(late.is_err(), "publishing without a connection says so");
    let again = embedded(&fleet.pki, &fleet.fleet, &fleet.store, addr).await;
    tokio::time::timeout(SOON, fleet.mqtt.ready())
        .await
        .expect("connects again");
    fleet.stop.send_replace(true);
    fleet.mqtt.shutdown().await;
    again.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_external_mosquitto_with_the_generated_rules_does_the_same() {
    let fleet = Fleet::with(true).await;
    let mut a = fleet.device("edge-a").await;
    let mut b = fleet.device("edge-b").await;
    for filter in ["#", "dunlin/v1/demo/edge-a/ack", "dunlin/v1/demo/+/event"] {
        // Mosquitto lets anybody subscribe and sends nothing that may not be read.
        b.subscribe(filter).await;
    }
    let error = b
        .publish(&fleet.topic("edge-a", Channel::Event), event_segment(4))
        .await
        .expect_err("foreign prefix");
    assert!(error.contains("NotAuthorized"), "{error}");
    a.publish(&fleet.topic("edge-a", Channel::Event), event_segment(1))
        .await
        .unwrap();
    let (topic, payload) = a.next().await;
    assert_eq!(topic, fleet.topic("edge-a", Channel::Ack));
    assert_eq!(
        serde_json::from_slice::<Ack>(&payload).unwrap().segments,
        [1]
    );
    b.publish(&fleet.topic("edge-b", Channel::Event), event_segment(2))
        .await
        .unwrap();
    let (topic, _) = b.next().await;
    assert_eq!(
        topic,
        fleet.topic("edge-b", Channel::Ack),
        "nothing of edge-a's came before"
    );
    let id: DeviceId = "edge-a".parse().unwrap();
    a.publish(
        &fleet.topic("edge-a", Channel::Presence),
        presence(true, "c1"),
    )
    .await
    .unwrap();
    until("online", || async {
        fleet.store.device(&id).await.unwrap().unwrap().online
    })
    .await;
    // A client id of one's own is overwritten by the certificate's name.
    let mut impostor = Client::connect(fleet.options("edge-a", fleet.enrol("edge-c").await));
    impostor.connected().await;
    let error = impostor
        .publish(&fleet.topic("edge-a", Channel::Event), event_segment(5))
        .await
        .expect_err("impostor");
    assert!(error.contains("NotAuthorized"), "{error}");
    let nobody = rustls::ClientConfig::builder()
        .with_root_certificates(fleet.roots())
        .with_no_client_auth();
    Client::connect(fleet.options("edge-a", Arc::new(nobody)))
        .end()
        .await;
    fleet.shutdown().await;
}
