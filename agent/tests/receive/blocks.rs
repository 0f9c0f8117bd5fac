//! The same bundles over MQTT blocks, on a link that does whatever links do.

use super::repository::{Release, model};
use super::{Fleet, info, limits, receiver_with};
use dunlin_agent::bundle::{BlockLink, Kind, Receiver, TrustStore, UpdateError, stage};
use dunlin_agent::config::Transport;
use dunlin_agent::files::Disk;
use dunlin_agent::http::Client;
use dunlin_agent::throttle::Throttle;
use dunlin_protocol::block::{Answer, Request};
use dunlin_protocol::bundle::HostFacts;
use dunlin_protocol::command::DesiredBundle;
use dunlin_protocol::id::Digest;
use dunlin_protocol::repository::RepositoryFile;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// What a link does, in percent of the answers, and for how long it lives.
#[derive(Debug, Clone, Copy, Default)]
struct Weather {
    lost: u64,
    doubled: u64,
    damaged: u64,
    busy: u64,
    /// Longest delay of an answer, in milliseconds: later ones overtake it.
    delay_ms: u64,
    /// Answers after which none comes any more.
    dies_after: Option<usize>,
}

/// A server's files at the other end of a link.
struct Far {
    files: Mutex<BTreeMap<String, Vec<u8>>>,
    /// Every block asked for.
    asked: Mutex<Vec<(String, u64)>>,
}

impl Far {
    fn answer(&self, request: &Request) -> Answer {
        let path = request.file.to_string();
        let at = (path.clone(), request.offset);
        self.asked.lock().unwrap().push(at);
        let files = self.files.lock().unwrap();
        let Some(file) = files.get(&path) else {
            return Answer::Absent;
        };
        let from = usize::try_from(request.offset).unwrap().min(file.len());
        let to = (from + request.length as usize).min(file.len());
        Answer::Data {
            offset: request.offset,
            total: file.len() as u64,
            bytes: file[from..to].to_vec(),
        }
    }

    fn asked(&self, start: &str) -> Vec<(String, u64)> {
        let mut asked = std::mem::take(&mut *self.asked.lock().unwrap());
        asked.retain(|(path, _)| path.starts_with(start));
        asked
    }
}

/// A link in this weather, connected.
fn link(far: &Arc<Far>, weather: Weather, bytes_s: u64, stall: Duration) -> BlockLink {
    let (to_far, mut requests) = mpsc::unbounded_channel::<Vec<u8>>();
    let send = move |payload| to_far.send(payload).is_ok();
    let link = BlockLink::new(send, Throttle::new(bytes_s), stall);
    link.connected();
    let (far, near) = (Arc::clone(far), link.clone());
    tokio::spawn(async move {
        let (mut state, mut answered) = (11_u64, 0);
        let mut chance = move |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        while let Some(payload) = requests.recv().await {
            let request: Request = serde_json::from_slice(&payload).unwrap();
            let mut answer = far.answer(&request);
            answered += 1;
            if weather.dies_after.is_some_and(|n| answered > n) || chance(100) < weather.lost {
                continue;
            }
            if chance(100) < weather.busy {
                answer = Answer::Busy { retry_after_ms: 60 };
            }
            let mut bytes = answer.encode(request.id).unwrap();
            if chance(100) < weather.damaged {
                let at = usize::try_from(chance(bytes.len() as u64)).unwrap();
                bytes[at] ^= 0x10;
            }
            let times = if chance(100) < weather.doubled { 2 } else { 1 };
            for _ in 0..times {
                let (near, bytes) = (near.clone(), bytes.clone());
                let delay = Duration::from_millis(chance(weather.delay_ms + 1));
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    let _ = near.deliver(&bytes);
                });
            }
        }
    });
    link
}

fn far(fleet: &Fleet) -> Arc<Far> {
    Arc::new(Far {
        files: Mutex::new(fleet.repository.files.clone()),
        asked: Mutex::default(),
    })
}

/// A receiver that has no way but the link.
fn over(fleet: &Fleet, link: BlockLink) -> Receiver {
    receiver_with(&fleet.server, &fleet.dir, limits()).over(Transport::Mqtt, link)
}

async fn receive(
    fleet: &Fleet,
    receiver: &Receiver,
    want: &DesiredBundle,
) -> Result<(), UpdateError> {
    let slot = fleet.slot("a");
    let received = receiver.receive(want, Timestamp::now(), &slot, |_, _| {});
    received.await.map(drop)
}

fn is_whole(fleet: &Fleet, want: &DesiredBundle) -> bool {
    stage::read(&Disk::native(), &fleet.slot("a")) == Some(info(want))
}

const STALL: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_bundle_arrives_over_a_link_that_loses_doubles_disorders_and_damages() {
    let (fleet, wants) = Fleet::with(&[Release::version(1), Release::version(2)]).await;
    let weather = Weather {
        lost: 8,
        doubled: 20,
        damaged: 5,
        busy: 5,
        delay_ms: 60,
        dies_after: None,
    };
    let far = far(&fleet);
    let receiver = over(&fleet, link(&far, weather, 0, STALL));
    receive(&fleet, &receiver, &wants[0]).await.unwrap();
    assert!(is_whole(&fleet, &wants[0]));
    far.asked("");
    receive(&fleet, &receiver, &wants[1]).await.unwrap();
    assert!(is_whole(&fleet, &wants[1]));
    // What both have in common is here already.
    let fetched = far.asked("blobs/");
    let model = format!("blobs/{}", Digest::of(&model(2)));
    assert!(fetched.iter().all(|(path, _)| *path == model));
    assert!(fleet.server.asked("").is_empty(), "nothing over HTTPS");
}

#[tokio::test]
async fn a_link_cut_after_any_block_goes_on_from_there() {
    let (fleet, wants) = Fleet::with(&[Release::version(1)]).await;
    let far = far(&fleet);
    let model = format!("blobs/{}", Digest::of(&model(1)));
    let (mut reached, mut cuts) = (0, 0);
    loop {
        let dies_after = Some(6 + cuts % 3);
        let weather = Weather {
            dies_after,
            ..Weather::default()
        };
        let receiver = over(&fleet, link(&far, weather, 0, Duration::from_millis(100)));
        let received = receive(&fleet, &receiver, &wants[0]).await;
        let asked = far.asked(&model);
        let Err(error) = received else { break };
        assert_eq!(
            (error.kind, error.code),
            (Kind::Transient, "blocks"),
            "{error}"
        );
        cuts += 1;
        assert!(!is_whole(&fleet, &wants[0]) && cuts < 30, "{error}");
        // Nothing that is here is asked for again.
        if let Some(first) = asked.iter().map(|(_, at)| *at).min() {
            assert!(first >= reached, "{first} {reached}");
            reached = first;
        }
    }
    assert!(cuts > 3 && reached > 0, "{cuts} {reached}");
    assert!(is_whole(&fleet, &wants[0]));
}

#[tokio::test]
async fn a_lying_server_is_found_out() {
    let (fleet, wants) = Fleet::with(&[Release::version(1)]).await;
    let far = far(&fleet);
    let path = format!("blobs/{}", Digest::of(&model(1)));
    far.files.lock().unwrap().get_mut(&path).unwrap()[700_000] ^= 1;
    let receiver = over(&fleet, link(&far, Weather::default(), 0, STALL));
    let error = receive(&fleet, &receiver, &wants[0]).await.unwrap_err();
    assert_eq!((error.kind, error.code), (Kind::Refused, "hash"));
    assert_eq!(fleet.partials(), 0);
    // A longer file than signed, and none at all.
    far.files.lock().unwrap().get_mut(&path).unwrap().push(0);
    let error = receive(&fleet, &receiver, &wants[0]).await.unwrap_err();
    assert_eq!((error.kind, error.code), (Kind::Refused, "too_large"));
    far.files.lock().unwrap().remove(&path);
    let error = receive(&fleet, &receiver, &wants[0]).await.unwrap_err();
    assert_eq!((error.kind, error.code), (Kind::Transient, "blocks"));
    assert!(error.detail.contains("no such file"), "{error}");
    assert!(!is_whole(&fleet, &wants[0]));
}

#[tokio::test]
async fn bandwidth_is_capped_over_mqtt_too() {
    let (fleet, wants) = Fleet::with(&[Release::version(1)]).await;
    let far = far(&fleet);
    let receiver = over(&fleet, link(&far, Weather::default(), 1_200_000, STALL));
    let begun = Instant::now();
    receive(&fleet, &receiver, &wants[0]).await.unwrap();
    // 1.2 MB at 1.2 MB a second: never faster, whatever the machine does.
    assert!(begun.elapsed() >= Duration::from_millis(900));
}

#[tokio::test]
async fn mqtt_takes_over_where_https_cannot_be_reached() {
    let (fleet, wants) = Fleet::with(&[Release::version(1)]).await;
    let far = far(&fleet);
    let identity = fleet.server.identity(fleet.dir.path());
    let client = Client::new(&identity.rustls_client_config(), limits());
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nowhere = format!("https://localhost:{}", free.local_addr().unwrap().port());
    drop(free);
    let host = || HostFacts {
        arch: "x86_64".to_owned(),
        agent_version: "0.1.0".to_owned(),
        ram_bytes: 1 << 30,
        disk_free_bytes: 1 << 30,
    };
    let dir = tempfile::tempdir().unwrap();
    TrustStore::new(&Disk::native(), dir.path())
        .adopt_root(&fleet.repository.metadata("1.root.json"))
        .unwrap();
    let auto = |url: &str, link: BlockLink| {
        Receiver::with(
            client.clone(),
            url,
            &Disk::native(),
            dir.path(),
            "jetson",
            Box::new(host),
        )
        .unwrap()
        .over(Transport::Auto, link)
    };
    // Not connected either: HTTPS is what is complained about.
    let away = link(&far, Weather::default(), 0, STALL);
    away.disconnected();
    let error = receive(&fleet, &auto(&nowhere, away), &wants[0]).await;
    assert_eq!(error.unwrap_err().code, "connect");
    let near = || link(&far, Weather::default(), 0, STALL);
    // HTTPS works: nothing goes over MQTT.
    let receiver = auto(&fleet.server.url, near());
    receive(&fleet, &receiver, &wants[0]).await.unwrap();
    assert!(far.asked("").is_empty());
    // It does not: everything does.
    let receiver = auto(&nowhere, near());
    receive(&fleet, &receiver, &wants[0]).await.unwrap();
    let timestamp = RepositoryFile::metadata("timestamp.json").unwrap();
    let asked = far.asked("");
    assert!(asked.contains(&(timestamp.to_string(), 0)), "{asked:?}");
}
