//! The device's MQTT 5 connection: mutual TLS, own topics only, reconnected for ever.
//!
//! Sessions are never resumed: desired state is republished by the server at every connect, and
//! telemetry is deleted only on the application's own acknowledgement, so that nothing depends on
//! what a broker remembers. Each connection has a random id, named in its hello and in its last
//! will, so that the will of a dead connection cannot overtake the hello of the next.

pub mod local;

use dunlin_protocol::id::{DeviceId, FleetId};
use dunlin_protocol::report::Presence;
use dunlin_protocol::topic::{Channel, Topic};
use rumqttc::mqttbytes::v5::{
    ConnectReturnCode, DisconnectReasonCode, LastWill, LastWillProperties, Packet,
    PublishProperties, SubAck, SubscribeFilter, SubscribeReasonCode,
};
use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, NetworkOptions, PublishOptions,
    QoS, StateError, TlsConfiguration, Transport,
};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Largest packet either way: one segment and its properties.
const PACKET_MAX_BYTES: u32 = 2 << 20;
/// Packets in flight; more would cost memory for no throughput.
const INFLIGHT_MAX: u16 = 32;
const QUEUE: usize = 64;
const KEEP_ALIVE_S: u16 = 20;
const CONNECT_TIMEOUT_MS: u64 = 15_000;
/// Payload format indicator of text.
const UTF_8: u8 = 1;
const JSON: &str = "application/json";
/// Longest time for the library to take a message; it takes none while too many are not
/// acknowledged.
const PUBLISH_TIMEOUT_MS: u64 = 20_000;
/// A connection that lasted this long was a good one: the wait after its loss is short again.
const GOOD: Duration = Duration::from_secs(30);
const BACKOFF_MIN_MS: u64 = 500;
const BACKOFF_MAX_MS: u64 = 60_000;
const DOWN: [Channel; 4] = [
    Channel::Desired,
    Channel::Command,
    Channel::Ack,
    Channel::Block,
];

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
    /// Hands a message to the connection, without waiting. `false`: it is dropped, since the queue
    /// is full or the connection's task is gone.
    #[must_use]
    pub fn send(&self, message: Outgoing) -> bool {
        self.out.try_send(message).is_ok()
    }

    /// A sending end for whoever must not keep the connection alive.
    #[must_use]
    pub fn weak(&self) -> WeakLink {
        let out = self.out.downgrade();
        WeakLink { out }
    }
}

/// A sending end that does not keep the connection: without any [`Link`] it says goodbye.
#[derive(Clone)]
pub struct WeakLink {
    out: mpsc::WeakSender<Outgoing>,
}

impl WeakLink {
    /// As [`Link::send`].
    #[must_use]
    pub fn send(&self, message: Outgoing) -> bool {
        let out = self.out.upgrade();
        out.is_some_and(|out| out.try_send(message).is_ok())
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
        let mut begun = None;
        let ended = connection(&settings, &mut out, &to_shell, &mut begun).await;
        let reason = match ended {
            Ended::Goodbye => return,
            Ended::Lost(reason) => reason,
        };
        if to_shell.send(Incoming::Disconnected(reason)).await.is_err() {
            return;
        }
        if begun.is_some_and(|begun: Instant| begun.elapsed() >= GOOD) {
            failures = 0;
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

/// One connection, from its handshake to its end.
struct Connection<'a> {
    settings: &'a LinkSettings,
    id: String,
    presence: String,
    client: AsyncClient,
    polled: mpsc::Receiver<Polled>,
    poller: AbortOnDrop,
}

/// `begun` is set once the connection is fit for use.
async fn connection(
    settings: &LinkSettings,
    out: &mut mpsc::Receiver<Outgoing>,
    to_shell: &mpsc::Sender<Incoming>,
    begun: &mut Option<Instant>,
) -> Ended {
    let mut connection = Connection::open(settings);
    let limit = Duration::from_millis(CONNECT_TIMEOUT_MS);
    let early = match tokio::time::timeout(limit, connection.begin()).await {
        Ok(Ok(early)) => early,
        Ok(Err(reason)) => return Ended::Lost(reason),
        Err(_) => {
            return Ended::Lost(format!(
                "{}:{} did not answer within {CONNECT_TIMEOUT_MS} ms",
                settings.host, settings.port
            ));
        }
    };
    *begun = Some(Instant::now());
    let early = early.into_iter().map(|(c, p)| Incoming::Message(c, p));
    for incoming in [Incoming::Connected].into_iter().chain(early) {
        if to_shell.send(incoming).await.is_err() {
            return Ended::Goodbye;
        }
    }
    connection.carry(out, to_shell).await
}

impl<'a> Connection<'a> {
    fn open(settings: &'a LinkSettings) -> Self {
        let id = connection_id();
        let presence = Topic::new(&settings.fleet, &settings.device, Channel::Presence).to_string();
        let will = LastWill::new(
            presence.clone(),
            hello(false, &id),
            QoS::AtLeastOnce,
            true,
            Some(will_properties(Channel::Presence)),
        );
        let (client, events) = AsyncClient::builder(options(settings, will))
            .capacity(QUEUE)
            .build();
        let (event_tx, polled) = mpsc::channel(QUEUE);
        let poller = AbortOnDrop(tokio::spawn(poll(events, settings.clone(), event_tx)));
        Self {
            settings,
            id,
            presence,
            client,
            polled,
            poller,
        }
    }

    /// Connects, subscribes and says hello, in this order: the server answers a hello at once.
    /// Gives back the messages that came before it.
    async fn begin(&mut self) -> Result<Vec<(Channel, Vec<u8>)>, String> {
        match self.polled.recv().await {
            Some(Polled::Connected) => {}
            Some(Polled::Lost(reason)) => return Err(reason),
            _ => return Err("the connection ended before it began".to_owned()),
        }
        let topics = DOWN.map(|channel| {
            Topic::new(&self.settings.fleet, &self.settings.device, channel).to_string()
        });
        let filters = topics
            .clone()
            .map(|t| SubscribeFilter::new(t, QoS::AtLeastOnce));
        let asked = self.client.subscribe_many(filters).await;
        asked.map_err(|e| e.to_string())?;
        let mut early = Vec::new();
        loop {
            match self.polled.recv().await {
                Some(Polled::Subscribed(ack)) => {
                    granted(&topics, &ack)?;
                    break;
                }
                Some(Polled::Message(channel, payload)) if early.len() < QUEUE => {
                    early.push((channel, payload));
                }
                Some(Polled::Message(..)) => {}
                Some(Polled::Lost(reason)) => return Err(reason),
                Some(Polled::Connected) | None => return Err("the connection ended".to_owned()),
            }
        }
        let hello = hello(true, &self.id);
        self.publish(
            self.presence.clone(),
            hello,
            properties(Channel::Presence).retained(),
        )
        .await?;
        Ok(early)
    }

    /// Carries messages both ways until the connection ends.
    async fn carry(
        mut self,
        out: &mut mpsc::Receiver<Outgoing>,
        to_shell: &mpsc::Sender<Incoming>,
    ) -> Ended {
        loop {
            tokio::select! {
                polled = self.polled.recv() => match polled {
                    Some(Polled::Message(channel, payload)) => {
                        if to_shell.send(Incoming::Message(channel, payload)).await.is_err() {
                            return Ended::Goodbye;
                        }
                    }
                    Some(Polled::Subscribed(_)) => {}
                    Some(Polled::Connected) | None => return Ended::Lost("the connection ended".to_owned()),
                    Some(Polled::Lost(reason)) => return Ended::Lost(reason),
                },
                message = out.recv() => {
                    let Some(message) = message else {
                        goodbye(&self.client, &self.presence, &self.id, self.poller).await;
                        return Ended::Goodbye;
                    };
                    let topic = Topic::new(&self.settings.fleet, &self.settings.device, message.channel);
                    let sent = self.publish(topic.to_string(), message.payload, properties(message.channel)).await;
                    if let Err(reason) = sent {
                        return Ended::Lost(reason);
                    }
                }
            }
        }
    }

    async fn publish(
        &self,
        topic: String,
        payload: Vec<u8>,
        options: PublishOptions,
    ) -> Result<(), String> {
        let publish = self.client.publish(topic, payload, options);
        match tokio::time::timeout(Duration::from_millis(PUBLISH_TIMEOUT_MS), publish).await {
            Ok(sent) => sent.map_err(|e| e.to_string()),
            Err(_) => Err(format!(
                "the broker acknowledged nothing for {PUBLISH_TIMEOUT_MS} ms"
            )),
        }
    }
}

/// Whether the broker grants every subscription.
fn granted(topics: &[String], ack: &SubAck) -> Result<(), String> {
    if topics.len() != ack.return_codes.len() {
        return Err(format!(
            "broker answers {} subscriptions of {}",
            ack.return_codes.len(),
            topics.len()
        ));
    }
    for (topic, code) in topics.iter().zip(&ack.return_codes) {
        if !matches!(code, SubscribeReasonCode::Success(_)) {
            return Err(format!("broker refuses subscription to {topic}: {code:?}"));
        }
    }
    Ok(())
}

/// Says goodbye by ourselves: a clean disconnect makes the broker forget the last will.
async fn goodbye(client: &AsyncClient, presence: &str, id: &str, mut poller: AbortOnDrop) {
    let options = properties(Channel::Presence).retained();
    let said = async {
        client.publish(presence, hello(false, id), options).await?;
        client.disconnect().await
    };
    let both = async {
        if said.await.is_ok() {
            let _ = (&mut poller.0).await;
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(3), both).await;
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

enum Polled {
    Connected,
    Subscribed(SubAck),
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
            Ok(Event::Incoming(Packet::SubAck(ack))) => Polled::Subscribed(ack),
            Ok(Event::Incoming(Packet::Disconnect(d))) => Polled::Lost(disconnected(
                d.reason_code,
                d.properties.and_then(|p| p.reason_string).as_deref(),
            )),
            Ok(_) => continue,
            Err(ConnectionError::MqttState(StateError::ServerDisconnect {
                reason_code,
                reason_string,
            })) => Polled::Lost(disconnected(reason_code, reason_string.as_deref())),
            Err(e) => Polled::Lost(format!("{}:{}: {e}", settings.host, settings.port)),
        };
        let last = matches!(polled, Polled::Lost(_));
        if to.send(polled).await.is_err() || last {
            return;
        }
    }
}

fn disconnected(code: DisconnectReasonCode, reason: Option<&str>) -> String {
    if code == DisconnectReasonCode::SessionTakenOver {
        return "another device uses this identity: the broker gave our session to a newer \
                connection with the same certificate (was this device's disk copied?)"
            .to_owned();
    }
    let reason: String = reason.unwrap_or_default().chars().take(200).collect();
    format!("the broker disconnected us: {code:?} {reason}")
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

/// Content type and schema of a channel's messages, as MQTT 5 properties. A request for a block is
/// made again by whoever made it: a broker need not keep it.
fn properties(channel: Channel) -> PublishOptions {
    let qos = match channel {
        Channel::Fetch => QoS::AtMostOnce,
        _ => QoS::AtLeastOnce,
    };
    PublishOptions::new(qos).properties(PublishProperties {
        payload_format_indicator: Some(UTF_8),
        content_type: Some(JSON.to_owned()),
        user_properties: vec![schema(channel)],
        ..PublishProperties::default()
    })
}

/// The same of the message that the broker publishes for a connection that dies.
fn will_properties(channel: Channel) -> LastWillProperties {
    LastWillProperties {
        delay_interval: None,
        payload_format_indicator: Some(UTF_8),
        message_expiry_interval: None,
        content_type: Some(JSON.to_owned()),
        response_topic: None,
        correlation_data: None,
        user_properties: vec![schema(channel)],
    }
}

/// User property that names a channel's schema.
fn schema(channel: Channel) -> (String, String) {
    let name = format!("dunlin.{}/1", channel.as_str());
    ("schema".to_owned(), name)
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_subscription_is_named() {
        let topics = ["a".to_owned(), "b".to_owned()];
        let ack = |second| SubAck {
            pkid: 1,
            return_codes: vec![SubscribeReasonCode::Success(QoS::AtLeastOnce), second],
            properties: None,
        };
        let all = ack(SubscribeReasonCode::Success(QoS::AtMostOnce));
        assert_eq!(granted(&topics, &all), Ok(()));
        let refused = granted(&topics, &ack(SubscribeReasonCode::NotAuthorized)).unwrap_err();
        assert_eq!(refused, "broker refuses subscription to b: NotAuthorized");
        assert!(granted(&topics[..1], &all).is_err());
    }

    #[test]
    fn a_session_taken_over_is_named() {
        let said = disconnected(DisconnectReasonCode::SessionTakenOver, None);
        assert!(
            said.starts_with("another device uses this identity"),
            "{said}"
        );
    }
}
