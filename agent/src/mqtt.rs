//! The device's MQTT 5 connection: mutual TLS, own topics only, reconnected for ever.
//!
//! Sessions are never resumed: desired state is republished by the server at every connect, and
//! telemetry is deleted only on the application's own acknowledgement, so that nothing depends on
//! what a broker remembers. Each connection has a random id, named in its hello and in its last
//! will, so that the will of a dead connection cannot overtake the hello of the next.

use dunlin_protocol::id::{DeviceId, FleetId};
use dunlin_protocol::report::Presence;
use dunlin_protocol::topic::{Channel, Topic};
use rumqttc::mqttbytes::v5::{ConnectReturnCode, LastWill, Packet, PublishProperties};
use rumqttc::{
    AsyncClient, Event, EventLoop, MqttOptions, NetworkOptions, PublishOptions, QoS,
    TlsConfiguration, Transport,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Largest packet either way: one segment and its properties.
const PACKET_MAX_BYTES: u32 = 2 << 20;
/// Packets in flight; more would cost memory for no throughput.
const INFLIGHT_MAX: u16 = 32;
const QUEUE: usize = 64;
const KEEP_ALIVE_S: u16 = 20;
const CONNECT_TIMEOUT_MS: u64 = 15_000;
const BACKOFF_MIN_MS: u64 = 500;
const BACKOFF_MAX_MS: u64 = 60_000;
const DOWN: [Channel; 3] = [Channel::Desired, Channel::Command, Channel::Ack];

/// Where and as whom to connect.
#[derive(Clone)]
pub struct LinkSettings {
    /// Broker's host name or address, verified against its certificate.
    pub host: String,
    /// Broker's port.
    pub port: u16,
    /// The fleet.
    pub fleet: FleetId,
    /// The device: client id, certificate's common name and topic level.
    pub device: DeviceId,
    /// Mutual TLS.
    pub tls: Arc<rustls::ClientConfig>,
}

/// A message to publish.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// An up channel.
    pub channel: Channel,
    /// JSON.
    pub payload: Vec<u8>,
}

/// What the connection says.
#[derive(Debug)]
pub enum Incoming {
    /// Connected and subscribed; all in flight before is forgotten.
    Connected,
    /// Not connected any more, and why.
    Disconnected(String),
    /// A message of a down channel.
    Message(Channel, Vec<u8>),
}

/// The sending end; messages are dropped while there is no connection (their owner sends them
/// again at the next [`Incoming::Connected`]).
#[derive(Clone)]
pub struct Link {
    out: mpsc::Sender<Outgoing>,
}

impl Link {
    /// Hands a message to the connection, waiting while its queue is full. `false`: the
    /// connection's task is gone.
    pub async fn send(&self, message: Outgoing) -> bool {
        self.out.send(message).await.is_ok()
    }
}

/// Starts the connection's task; it ends when the returned receiver is dropped, or after a clean
/// goodbye when every [`Link`] is.
#[must_use]
pub fn start(settings: LinkSettings) -> (Link, mpsc::Receiver<Incoming>) {
    let (out, out_rx) = mpsc::channel(QUEUE);
    let (in_tx, in_rx) = mpsc::channel(QUEUE);
    tokio::spawn(run(settings, out_rx, in_tx));
    (Link { out }, in_rx)
}

async fn run(
    settings: LinkSettings,
    mut out: mpsc::Receiver<Outgoing>,
    to_shell: mpsc::Sender<Incoming>,
) {
    let mut failures = 0_u32;
    loop {
        let ended = connection(&settings, &mut out, &to_shell, &mut failures).await;
        let reason = match ended {
            Ended::Goodbye => return,
            Ended::Lost(reason) => reason,
        };
        if to_shell.send(Incoming::Disconnected(reason)).await.is_err() {
            return;
        }
        failures = failures.saturating_add(1);
        let wait = tokio::time::sleep(backoff(failures));
        tokio::pin!(wait);
        loop {
            tokio::select! {
                () = &mut wait => break,
                message = out.recv() => if message.is_none() { return },
            }
        }
    }
}

/// Doubled each time and spread by chance: a fleet must not come back in one instant.
fn backoff(failures: u32) -> Duration {
    let full = BACKOFF_MIN_MS
        .saturating_mul(1 << failures.min(16))
        .min(BACKOFF_MAX_MS);
    let mut random = [0_u8; 8];
    // Without randomness the wait is merely not spread.
    let _ = getrandom::fill(&mut random);
    Duration::from_millis(full / 2 + u64::from_le_bytes(random) % (full / 2 + 1))
}

enum Ended {
    Goodbye,
    Lost(String),
}

async fn connection(
    settings: &LinkSettings,
    out: &mut mpsc::Receiver<Outgoing>,
    to_shell: &mpsc::Sender<Incoming>,
    failures: &mut u32,
) -> Ended {
    let id = connection_id();
    let presence = Topic::new(&settings.fleet, &settings.device, Channel::Presence).to_string();
    let will = LastWill::new(
        presence.clone(),
        hello(false, &id),
        QoS::AtLeastOnce,
        true,
        None,
    );
    let (client, events) = AsyncClient::builder(options(settings, will))
        .capacity(QUEUE)
        .build();
    let (event_tx, mut event_rx) = mpsc::channel(QUEUE);
    let poller = AbortOnDrop(tokio::spawn(poll(events, settings.clone(), event_tx)));

    let hello_sent = async {
        match event_rx.recv().await {
            Some(Polled::Connected) => {}
            Some(Polled::Lost(reason)) => return Err(reason),
            _ => return Err("the connection ended before it began".to_owned()),
        }
        let filters = DOWN.map(|channel| {
            let topic = Topic::new(&settings.fleet, &settings.device, channel).to_string();
            (topic, QoS::AtLeastOnce)
        });
        for (filter, qos) in filters {
            client
                .subscribe(filter, qos)
                .await
                .map_err(|e| e.to_string())?;
        }
        client
            .publish(
                presence.as_str(),
                hello(true, &id),
                properties(Channel::Presence).retained(),
            )
            .await
            .map_err(|e| e.to_string())
    };
    match tokio::time::timeout(Duration::from_millis(CONNECT_TIMEOUT_MS), hello_sent).await {
        Ok(Ok(())) => {}
        Ok(Err(reason)) => return Ended::Lost(reason),
        Err(_) => {
            return Ended::Lost(format!(
                "{}:{} did not answer within {CONNECT_TIMEOUT_MS} ms",
                settings.host, settings.port
            ));
        }
    }
    if to_shell.send(Incoming::Connected).await.is_err() {
        return Ended::Goodbye;
    }
    *failures = 0;
    loop {
        tokio::select! {
            polled = event_rx.recv() => match polled {
                Some(Polled::Message(channel, payload)) => {
                    if to_shell.send(Incoming::Message(channel, payload)).await.is_err() {
                        return Ended::Goodbye;
                    }
                }
                Some(Polled::Connected) | None => return Ended::Lost("the connection ended".to_owned()),
                Some(Polled::Lost(reason)) => return Ended::Lost(reason),
            },
            message = out.recv() => {
                let Some(message) = message else {
                    goodbye(&client, &presence, &id, poller).await;
                    return Ended::Goodbye;
                };
                let topic = Topic::new(&settings.fleet, &settings.device, message.channel).to_string();
                if let Err(e) = client.publish(topic, message.payload, properties(message.channel)).await {
                    return Ended::Lost(e.to_string());
                }
            }
        }
    }
}

/// Says goodbye by ourselves: a clean disconnect makes the broker forget the last will.
async fn goodbye(client: &AsyncClient, presence: &str, id: &str, mut poller: AbortOnDrop) {
    let options = properties(Channel::Presence).retained();
    let said = async {
        client.publish(presence, hello(false, id), options).await?;
        client.disconnect().await
    };
    if said.await.is_ok() {
        let _ = tokio::time::timeout(Duration::from_secs(3), &mut poller.0).await;
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

enum Polled {
    Connected,
    Message(Channel, Vec<u8>),
    Lost(String),
}

/// Drives the library's event loop, in a task of its own: a publish waits for it.
async fn poll(mut events: EventLoop, settings: LinkSettings, to: mpsc::Sender<Polled>) {
    loop {
        let polled = match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(ack))) if ack.code == ConnectReturnCode::Success => {
                Polled::Connected
            }
            Ok(Event::Incoming(Packet::Publish(publish))) => {
                let topic = String::from_utf8_lossy(&publish.topic).into_owned();
                match topic.parse::<Topic>() {
                    Ok(t) if t.fleet == settings.fleet && t.device == settings.device => {
                        Polled::Message(t.channel, publish.payload.to_vec())
                    }
                    _ => {
                        tracing::warn!(topic = %topic.chars().take(200).collect::<String>(), "message on a topic that is not this device's, ignored");
                        continue;
                    }
                }
            }
            Ok(Event::Incoming(Packet::Disconnect(d))) => {
                Polled::Lost(format!("the broker disconnected us: {:?}", d.reason_code))
            }
            Ok(_) => continue,
            Err(e) => Polled::Lost(format!("{}:{}: {e}", settings.host, settings.port)),
        };
        let last = matches!(polled, Polled::Lost(_));
        if to.send(polled).await.is_err() || last {
            return;
        }
    }
}

fn options(settings: &LinkSettings, will: LastWill) -> MqttOptions {
    let mut options = MqttOptions::new(
        settings.device.as_str(),
        (settings.host.as_str(), settings.port),
    );
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    network.set_connection_timeout(CONNECT_TIMEOUT_MS / 1000);
    options.set_network_options(network);
    options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(
        settings.tls.clone(),
    )));
    options.set_keep_alive(KEEP_ALIVE_S);
    options.set_clean_start(true);
    options.set_session_expiry_interval(Some(0));
    options.set_max_packet_size(Some(PACKET_MAX_BYTES));
    options.set_receive_maximum(Some(INFLIGHT_MAX));
    options.set_outgoing_inflight_upper_limit(INFLIGHT_MAX);
    options.set_last_will(will);
    options
}

/// Content type and schema of a channel's messages, as MQTT 5 properties.
fn properties(channel: Channel) -> PublishOptions {
    PublishOptions::new(QoS::AtLeastOnce).properties(PublishProperties {
        payload_format_indicator: Some(1),
        content_type: Some("application/json".to_owned()),
        user_properties: vec![(
            "schema".to_owned(),
            format!("dunlin.{}/1", channel.as_str()),
        )],
        ..PublishProperties::default()
    })
}

fn hello(online: bool, connection: &str) -> Vec<u8> {
    let presence = Presence {
        online,
        connection: connection.to_owned(),
        agent_version: crate::VERSION.to_owned(),
    };
    serde_json::to_vec(&presence).unwrap_or_default()
}

fn connection_id() -> String {
    let mut id = [0_u8; 8];
    // Without randomness the ids of two connections may be equal: the late will then wins, and
    // the next report sets it right.
    let _ = getrandom::fill(&mut id);
    hex::encode(id)
}
