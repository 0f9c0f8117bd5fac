//! What the fleet server takes in, against a subscriber that throws away, behind the same mosquitto and
//! from the same publishers. The database is on the disk named.
//!
//! `bench-ingest PROGRAM FOLDER MESSAGES ROUNDS`

use anyhow::Context as _;
use dunlin_agent::identity::Identity;
use dunlin_protocol::id::BootId;
use dunlin_protocol::telemetry::{Body, Class, Event, Record, Scalar, Segment};
use dunlin_tests::fleet::agent_settings;
use dunlin_tests::http::{over_tcp, request};
use dunlin_tests::mosquitto::{Mosquitto, free_port};
use dunlin_tests::operator::Operator;
use dunlin_tests::process::start_server;
use rumqttc::{AsyncClient, Event as MqttEvent, MqttOptions, QoS, TlsConfiguration, Transport};
use rumqttc::{EventLoop, mqttbytes::v5::Packet};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const PUBLISHERS: u32 = 4;
/// Records of one segment where they are not alone.
const RECORDS: u64 = 100;
const FLEET: &str = "test";

type Tls = Arc<rustls::ClientConfig>;

/// Publishers with devices' certificates, a broker, and whoever listens.
struct Bench {
    dir: PathBuf,
    program: PathBuf,
    broker: SocketAddr,
    devices: Vec<(String, Tls)>,
    admin: SocketAddr,
    /// Lives of the devices' buffers so far: no segment is sent twice.
    boots: u8,
}

/// About 200 bytes of flat scalars.
fn metrics(boot: BootId, segment: u64) -> anyhow::Result<Vec<u8>> {
    let values = BTreeMap::from([
        ("family".to_owned(), Scalar::Text("digits".to_owned())),
        ("inferences".to_owned(), Scalar::Integer(8_140)),
        ("uptime_s".to_owned(), Scalar::Integer(3_601)),
        ("latency_p50_us".to_owned(), Scalar::Number(812.5)),
        ("version".to_owned(), Scalar::Integer(2)),
        ("throttled".to_owned(), Scalar::Flag(false)),
    ]);
    encode(
        boot,
        segment,
        Class::Metrics,
        vec![Body::Metrics { values }],
    )
}

/// A hundred records of about 200 bytes.
fn events(boot: BootId, segment: u64) -> anyhow::Result<Vec<u8>> {
    let event = |n| {
        Body::Event(Event {
            code: "part_rejected".to_owned(),
            detail: format!(
                "part {segment}-{n:03}: scratch at 12.5 mm, depth 0.31 mm, limit 0.25 mm; camera north, shift early, operator told"
            ),
            bundle: None,
        })
    };
    encode(
        boot,
        segment,
        Class::Event,
        (0..RECORDS).map(event).collect(),
    )
}

fn encode(boot: BootId, segment: u64, class: Class, bodies: Vec<Body>) -> anyhow::Result<Vec<u8>> {
    let time_ms = jiff::Timestamp::now().as_millisecond();
    let records = bodies.into_iter().map(|body| Record { time_ms, body });
    let segment = Segment {
        boot,
        segment,
        backfilled: false,
        records: records.collect(),
    };
    Ok(segment.encode(class)?)
}

/// As docs/telemetry.md has it, but that it drops nothing: publishers here send nothing again.
fn broker(dir: &Path, pki: &Path, acl: &Path, port: u16) -> anyhow::Result<Mosquitto> {
    let (acl, pki) = (acl.display(), pki.display());
    let log = dir.join("mosquitto.log");
    let text = format!(
        "per_listener_settings false\nallow_anonymous false\nacl_file {acl}\nlog_dest file {log}\nuser root\n\
         listener {port} 127.0.0.1\ncafile {pki}/ca.pem\ncertfile {pki}/server.pem\nkeyfile {pki}/server.key\n\
         require_certificate true\nuse_identity_as_username true\nuse_username_as_clientid true\n\
         max_packet_size 2097152\nmax_inflight_messages 256\nmax_queued_messages 0\nset_tcp_nodelay true\n\
         log_type error\nlog_type warning\nlog_type notice\nlog_type information\nlog_type subscribe\n",
        log = log.display(),
    );
    Mosquitto::start_with(dir, &text, port)
}

/// Publishes at QoS 1, a hundred in flight, until the broker has all.
async fn publish(
    broker: SocketAddr,
    device: (String, Tls),
    class: Class,
    payloads: Vec<Vec<u8>>,
) -> anyhow::Result<()> {
    let (client, mut events) = client(broker, &device.0, device.1);
    let topic = format!("dunlin/v1/{FLEET}/{}/{}", device.0, class.as_str());
    let all = payloads.len();
    let sending = tokio::spawn(async move {
        for payload in payloads {
            client
                .publish(
                    &topic,
                    payload,
                    rumqttc::PublishOptions::new(QoS::AtLeastOnce),
                )
                .await?;
        }
        anyhow::Ok(client)
    });
    let mut acknowledged = 0;
    while acknowledged < all {
        if let MqttEvent::Incoming(Packet::PubAck(_)) = events.poll().await? {
            acknowledged += 1;
        }
    }
    sending.await??.disconnect().await?;
    while events.poll().await.is_ok() {}
    Ok(())
}

fn client(broker: SocketAddr, id: &str, tls: Tls) -> (AsyncClient, EventLoop) {
    let mut options = MqttOptions::new(id, (broker.ip().to_string(), broker.port()));
    options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls)));
    options.set_clean_start(true);
    options.set_outgoing_inflight_upper_limit(100);
    options.set_max_packet_size(Some(4 << 20));
    AsyncClient::builder(options).capacity(256).build()
}

impl Bench {
    async fn set_up(program: &Path, dir: &Path) -> anyhow::Result<(Self, Mosquitto)> {
        let port = free_port()?;
        let acl = dir.join("mosquitto.acl");
        let text = format!(
            "fleet = {FLEET:?}\nstate_dir = {:?}\n[admin]\nlisten = \"127.0.0.1:{}\"\n[devices]\nlisten = \"127.0.0.1:{}\"\n\
             [mqtt]\nmode = \"external\"\nhost = \"127.0.0.1\"\nport = {port}\nacl_file = {acl:?}\n",
            dir.join("server"),
            free_port()?,
            free_port()?,
        );
        std::fs::write(dir.join("server.toml"), text)?;
        let (mut server, addresses) =
            start_server(program, &dir.join("server.toml"), &dir.join("server.log")).await?;
        let mosquitto = broker(dir, &dir.join("server/pki"), &acl, port)?;
        let token = addresses.token.context("no first token")?;
        let admin: SocketAddr = addresses.admin;
        let operator = Operator::new(dir, &admin.to_string(), &token).await?;
        let claim = operator.claim(PUBLISHERS).await?;
        let mut devices = Vec::new();
        for n in 1..=PUBLISHERS {
            let name = format!("dev-{n:02}");
            let settings = agent_settings(&dir.join(&name), &name)?;
            dunlin_agent::enroll::enroll(&settings, &claim).await?;
            let identity = Identity::load(&settings.state_dir)?.context("not enrolled")?;
            devices.push((name, identity.rustls_client_config()));
        }
        server.terminate().await?;
        let bench = Self {
            dir: dir.to_owned(),
            program: program.to_owned(),
            broker: SocketAddr::from(([127, 0, 0, 1], port)),
            devices,
            admin,
            boots: 0,
        };
        Ok((bench, mosquitto))
    }

    fn payloads(
        &mut self,
        messages: u64,
        make: fn(BootId, u64) -> anyhow::Result<Vec<u8>>,
    ) -> anyhow::Result<Vec<Vec<Vec<u8>>>> {
        self.boots += 1;
        let boot = BootId([self.boots; 16]);
        let each = messages / u64::from(PUBLISHERS);
        (0..PUBLISHERS)
            .map(|_| (0..each).map(|n| make(boot, n)).collect())
            .collect()
    }

    async fn publish_all(&self, class: Class, payloads: Vec<Vec<Vec<u8>>>) -> anyhow::Result<()> {
        let mut publishers = JoinSet::new();
        for (device, payloads) in self.devices.iter().zip(payloads) {
            publishers.spawn(publish(self.broker, device.clone(), class, payloads));
        }
        while let Some(done) = publishers.join_next().await {
            done??;
        }
        Ok(())
    }

    /// Messages a second that reach `mosquitto_sub > /dev/null`.
    async fn thrown_away(&mut self, messages: u64) -> anyhow::Result<f64> {
        let payloads = self.payloads(messages, metrics)?;
        let pki = self.dir.join("server/pki");
        let mut command = Command::new("mosquitto_sub");
        command
            .args([
                "-V",
                "mqttv5",
                "-h",
                "127.0.0.1",
                "-q",
                "1",
                "-i",
                "dunlin-server",
            ])
            .args(["-p", &self.broker.port().to_string()])
            .args(["-t", &format!("dunlin/v1/{FLEET}/+/metrics")])
            .args(["-C", &messages.to_string()])
            .arg("--cafile")
            .arg(pki.join("ca.pem"))
            .arg("--cert")
            .arg(pki.join("mqtt-client.pem"))
            .arg("--key")
            .arg(pki.join("mqtt-client.key"))
            .stdout(Stdio::null());
        let before = self.subscriptions()?;
        let mut subscriber = command.spawn().context("mosquitto_sub")?;
        self.subscribed(before).await?;
        let begun = Instant::now();
        self.publish_all(Class::Metrics, payloads).await?;
        let ended = tokio::task::spawn_blocking(move || wait(&mut subscriber)).await??;
        anyhow::ensure!(ended, "mosquitto_sub failed");
        Ok(rate(messages, begun))
    }

    /// How often the broker has been asked for metrics, by its log.
    fn subscriptions(&self) -> anyhow::Result<usize> {
        let text = std::fs::read_to_string(self.dir.join("mosquitto.log"))?;
        let is_one = |line: &&str| line.contains(" dunlin-server 1 ") && line.ends_with("/metrics");
        Ok(text.lines().filter(is_one).count())
    }

    /// Waits for one more.
    async fn subscribed(&self, before: usize) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.subscriptions()? <= before {
            anyhow::ensure!(Instant::now() < deadline, "no subscription");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Messages a second that the server has committed, and the seconds it took.
    async fn taken_in(
        &mut self,
        class: Class,
        messages: u64,
        make: fn(BootId, u64) -> anyhow::Result<Vec<u8>>,
    ) -> anyhow::Result<f64> {
        let payloads = self.payloads(messages, make)?;
        let (config, log) = (self.dir.join("server.toml"), self.dir.join("server.log"));
        let before = self.subscriptions()?;
        let (mut server, _) = start_server(&self.program, &config, &log).await?;
        self.subscribed(before).await?;
        let before = self.committed().await?;
        let begun = Instant::now();
        self.publish_all(class, payloads).await?;
        while self.committed().await? < before + messages {
            anyhow::ensure!(begun.elapsed() < Duration::from_secs(300), "not committed");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let rate = rate(messages, begun);
        server.terminate().await?;
        Ok(rate)
    }

    /// Segments that the server has committed since it was started.
    async fn committed(&self) -> anyhow::Result<u64> {
        let answer = over_tcp(self.admin, &request("GET", "/metrics", &[], b"")).await?;
        let text = answer.text();
        let mut lines = text.lines();
        let line = lines.find_map(|l| l.strip_prefix("dunlin_ingest_segments_total "));
        Ok(line.map_or(Ok(0), |n| n.trim().parse())?)
    }
}

fn wait(child: &mut Child) -> anyhow::Result<bool> {
    Ok(child.wait()?.success())
}

#[allow(clippy::cast_precision_loss)]
fn rate(n: u64, begun: Instant) -> f64 {
    n as f64 / begun.elapsed().as_secs_f64()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, program, dir, messages, rounds] = arguments.as_slice() else {
        anyhow::bail!("usage: bench-ingest PROGRAM FOLDER MESSAGES ROUNDS");
    };
    let (messages, rounds): (u64, u32) = (messages.parse()?, rounds.parse()?);
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (mut bench, _mosquitto) = Bench::set_up(Path::new(program), Path::new(dir)).await?;
    let (mut thrown, mut single, mut packed) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        thrown.push(bench.thrown_away(messages).await?);
        single.push(bench.taken_in(Class::Metrics, messages, metrics).await?);
        let segments = bench.taken_in(Class::Event, messages / 10, events).await?;
        #[allow(clippy::cast_precision_loss)]
        packed.push(segments * RECORDS as f64);
    }
    let [thrown, single, packed] = [&mut thrown, &mut single, &mut packed].map(|all| median(all));
    println!("| | a second | against the subscriber |\n|---|--:|--:|");
    println!("| `mosquitto_sub > /dev/null`, messages of 200 bytes | {thrown:.0} | 1 |");
    println!(
        "| fleet server, one record a message, committed | {single:.0} | **{:.2}** |",
        single / thrown
    );
    println!(
        "| fleet server, {RECORDS} records a segment, records committed | {packed:.0} | **{:.2}** |",
        packed / thrown
    );
    Ok(())
}
