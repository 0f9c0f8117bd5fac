//! The server as an MQTT 5 client: one code path to the embedded broker and to an external one.
//!
//! Two tasks: a poll loop that never waits for anybody else (so that a publisher can always wait
//! for it), and whoever reads the [`Inbound`] channel. Back-pressure is MQTT's own: a message is
//! acknowledged (PUBACK) by the reader, after its commit, and the broker keeps at most
//! [`RECEIVE_MAX`] of them unacknowledged.
//!
//! Reported state and telemetry come by a shared subscription (several servers share the work) whose
//! name nobody else knows,
//! presence by a plain one (every server sees it, and the retained ones at every connect).
//!
//! Wiring:
//! ```text
//! store.set_all_offline().await?;                        // embedded broker only
//! let (mqtt, inbound, fetches) = mqtt::start(MqttConfig { host, port, client_id: SERVER_NAME, fleet, share, tls });
//! let (stop, stopped) = watch::channel(false);
//! let wake = Wake::default();
//! spawn(deliver::run(store, mqtt, wake, DeliverSettings::default(), stopped));
//! spawn(ingest::run(store, mqtt, inbound, wake, IngestSettings { batch_max, batch_wait }, stopped));
//! spawn(execute::run(store, wake, mqtt.listening(), ExecuteSettings { tick, ..Default::default() }, stopped));
//! …
//! stop.send_replace(true);                               // shutdown: await the three tasks, then
//! mqtt.shutdown().await; broker.shutdown().await; store.close().await;
//! ```

use crate::clock;
use bytes::Bytes;
use dunlin_protocol::id::{DeviceId, FleetId};
use dunlin_protocol::topic::{Channel, Topic};
use rumqttc::mqttbytes::v5::{Packet, Publish, PublishProperties, SubscribeReasonCode};
use rumqttc::{
    AckMode, AsyncClient, BrokerSessionResumePolicy, Event, EventLoop, IncomingPacketSizeLimit,
    MqttOptions, NetworkOptions, PublishOptions, QoS, SubscribeFilterInput, TlsConfiguration,
    Transport,
};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;

/// Messages the broker may leave unacknowledged with us.
pub const RECEIVE_MAX: u16 = 256;
/// As many as there are packet identifiers: a broker may go beyond [`RECEIVE_MAX`] (mosquitto 2.0.11 was
/// seen to, by thousands), and a full channel stops the connection, and with it the acknowledgements that
/// would empty the channel.
const UNACKNOWLEDGED_MAX: usize = 65_535;
/// Most of such messages in memory, in KiB.
const UNACKNOWLEDGED_KIB_MAX: usize = 64 * 1024;
const PACKET_MAX_BYTES: u32 = 2 * 1024 * 1024;
const OUTGOING_INFLIGHT_MAX: u16 = 100;
const REQUESTS_MAX: usize = 256;
/// Requests for blocks that wait to be answered.
const FETCHES_MAX: usize = 256;
/// How the topic of such a request ends.
const FETCH_LEVEL: &[u8] = b"/fetch";
const SESSION_EXPIRY_S: u32 = 3600;
const KEEP_ALIVE_S: u16 = 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the reader may keep the poll loop waiting before the connection is given up; the
/// broker sends again what was not acknowledged.
const READER_TIMEOUT: Duration = Duration::from_secs(10);
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Where and as whom to connect.
pub struct MqttConfig {
    /// Broker's host, a name or address that its certificate carries.
    pub host: String,
    /// Broker's port.
    pub port: u16,
    /// Client id: the common name of the client certificate in `tls`.
    pub client_id: String,
    /// The fleet whose topics are read.
    pub fleet: FleetId,
    /// Name of the servers' shared subscription. Whoever knows it could take messages away at a
    /// broker that looks at no subscription: it is [`Pki::share_name`](crate::pki::Pki::share_name).
    pub share: String,
    /// The broker's CA, and our certificate and key.
    pub tls: Arc<rustls::ClientConfig>,
}

/// Why a message was not handed to the broker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// There is no connection; what matters is sent again later.
    #[error("MQTT: {topic}: not published, the broker is not connected")]
    NotConnected {
        /// The topic.
        topic: String,
    },
    /// The queue to the broker stayed full.
    #[error("MQTT: {topic}: not published within {PUBLISH_TIMEOUT:?}, the broker does not keep up")]
    Timeout {
        /// The topic.
        topic: String,
    },
    /// The library refused.
    #[error("MQTT: {topic}: {problem}")]
    Client {
        /// The topic.
        topic: String,
        /// Its reason.
        problem: String,
    },
}

/// A message from a device.
#[derive(Debug)]
pub struct Inbound {
    publish: Publish,
    connection: u64,
    /// Its part of the memory for messages, given back with it.
    _room: Option<OwnedSemaphorePermit>,
}

impl Inbound {
    /// The topic; `?` for one that is not UTF-8.
    #[must_use]
    pub fn topic(&self) -> &str {
        std::str::from_utf8(&self.publish.topic).unwrap_or("?")
    }

    /// The message.
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        &self.publish.payload
    }

    /// Whether the broker had it in store before we subscribed.
    #[must_use]
    pub fn is_retained(&self) -> bool {
        self.publish.retain
    }
}

/// The connection, for everybody who publishes.
#[derive(Clone)]
pub struct MqttClient {
    shared: Arc<Shared>,
}

struct Shared {
    client: AsyncClient,
    fleet: FleetId,
    share: String,
    connection: AtomicU64,
    listening: watch::Sender<Listening>,
    poll: Mutex<Option<JoinHandle<()>>>,
}

/// Whether devices can be heard, and since when by the server's clock, unix ms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listening {
    /// Connected, with every subscription.
    Since(i64),
    /// Not connected or not subscribed.
    NotSince(i64),
}

impl Listening {
    /// Since when devices can be heard, unix ms; `None` if they cannot.
    #[must_use]
    pub fn since_ms(self) -> Option<i64> {
        match self {
            Self::Since(ms) => Some(ms),
            Self::NotSince(_) => None,
        }
    }

    /// How long devices could not be heard, in milliseconds; 0 while they can.
    #[must_use]
    pub fn deaf_ms(self, now_ms: i64) -> i64 {
        match self {
            Self::Since(_) => 0,
            Self::NotSince(ms) => now_ms.saturating_sub(ms).max(0),
        }
    }
}

/// Starts connecting, in the background and for ever. Gives what devices say, and apart from it
/// what they fetch over MQTT: a telemetry backlog must not hold up an update, nor the other way
/// round.
#[must_use]
pub fn start(config: MqttConfig) -> (MqttClient, mpsc::Receiver<Inbound>, mpsc::Receiver<Inbound>) {
    let fleet = config.fleet.clone();
    let share = config.share.clone();
    let broker = format!("{}:{}", config.host, config.port);
    let (client, events) = AsyncClient::builder(options(config))
        .capacity(REQUESTS_MAX)
        .build();
    let (to_reader, inbound) = mpsc::channel(UNACKNOWLEDGED_MAX);
    let (to_blocks, fetches) = mpsc::channel(FETCHES_MAX);
    let shared = Arc::new(Shared {
        client,
        fleet,
        share,
        connection: AtomicU64::new(0),
        listening: watch::Sender::new(Listening::NotSince(clock::now_ms())),
        poll: Mutex::new(None),
    });
    let readers = Readers {
        inbound: to_reader,
        room: Arc::new(Semaphore::new(UNACKNOWLEDGED_KIB_MAX)),
        fetches: to_blocks,
    };
    let poll = tokio::spawn(poll(events, Arc::clone(&shared), readers, broker));
    *shared.poll.lock().unwrap_or_else(PoisonError::into_inner) = Some(poll);
    (MqttClient { shared }, inbound, fetches)
}

/// Where messages go.
struct Readers {
    inbound: mpsc::Sender<Inbound>,
    room: Arc<Semaphore>,
    fetches: mpsc::Sender<Inbound>,
}

fn options(config: MqttConfig) -> MqttOptions {
    let mut options = MqttOptions::new(config.client_id, (config.host, config.port));
    options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(
        config.tls,
    )));
    options.set_keep_alive(KEEP_ALIVE_S);
    options.set_connect_timeout(CONNECT_TIMEOUT);
    // This process knows of no session yet, see `poll`.
    options.set_clean_start(true);
    options.set_session_expiry_interval(Some(SESSION_EXPIRY_S));
    options.set_broker_session_resume_policy(BrokerSessionResumePolicy::Strict);
    options.set_outgoing_inflight_upper_limit(OUTGOING_INFLIGHT_MAX);
    options.set_receive_maximum(Some(RECEIVE_MAX));
    options.set_incoming_packet_size_limit(IncomingPacketSizeLimit::Bytes(PACKET_MAX_BYTES));
    options.set_ack_mode(AckMode::Manual);
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    options
}

impl MqttClient {
    /// The fleet whose topics are read.
    #[must_use]
    pub fn fleet(&self) -> &FleetId {
        &self.shared.fleet
    }

    /// Whether there is a connection with its subscriptions.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.shared.listening.borrow().since_ms().is_some()
    }

    /// Whether and since when devices can be heard.
    #[must_use]
    pub fn listening(&self) -> watch::Receiver<Listening> {
        self.shared.listening.subscribe()
    }

    /// Whether the poll loop runs: it ends by [`shutdown`](Self::shutdown) alone.
    #[must_use]
    pub fn is_polling(&self) -> bool {
        let poll = self.shared.poll.lock();
        let poll = poll.unwrap_or_else(PoisonError::into_inner);
        poll.as_ref().is_some_and(|task| !task.is_finished())
    }

    /// Waits until there is one.
    pub async fn ready(&self) {
        let mut listening = self.listening();
        // The sender lives in `self`.
        let _ = listening.wait_for(|now| now.since_ms().is_some()).await;
    }

    /// Publishes on a device's channel at QoS 1, as JSON, not retained. Returns once the message
    /// is on its way to the broker, which is no promise: what matters is sent until answered.
    ///
    /// # Errors
    /// No connection, or a broker that does not keep up.
    pub async fn publish(
        &self,
        device: &DeviceId,
        channel: Channel,
        json: Vec<u8>,
        expiry_s: Option<u32>,
    ) -> Result<(), PublishError> {
        self.publish_as(device, channel, json, "application/json", expiry_s)
            .await
    }

    /// As [`publish`](Self::publish), of any content type.
    ///
    /// # Errors
    /// No connection, or a broker that does not keep up.
    pub async fn publish_as(
        &self,
        device: &DeviceId,
        channel: Channel,
        payload: Vec<u8>,
        content_type: &str,
        expiry_s: Option<u32>,
    ) -> Result<(), PublishError> {
        let topic = Topic::new(&self.shared.fleet, device, channel).to_string();
        if !self.is_ready() {
            return Err(PublishError::NotConnected { topic });
        }
        let properties = PublishProperties {
            content_type: Some(content_type.to_owned()),
            message_expiry_interval: expiry_s,
            user_properties: vec![(
                "schema".to_owned(),
                format!("dunlin.{}/1", channel.as_str()),
            )],
            ..PublishProperties::default()
        };
        let options = PublishOptions::new(QoS::AtLeastOnce).properties(properties);
        let sent = self.shared.client.publish(topic.clone(), payload, options);
        match tokio::time::timeout(PUBLISH_TIMEOUT, sent).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(PublishError::Client {
                topic,
                problem: e.to_string(),
            }),
            Err(_) => Err(PublishError::Timeout { topic }),
        }
    }

    /// Tells the broker (PUBACK) that a message is dealt with. One of an earlier connection is
    /// left alone: the broker sends it again.
    pub async fn acknowledge(&self, message: &Inbound) {
        if self.shared.connection.load(Ordering::Acquire) != message.connection {
            return;
        }
        let acknowledged = self.shared.client.ack(&message.publish);
        match tokio::time::timeout(PUBLISH_TIMEOUT, acknowledged).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "MQTT: PUBACK not sent"),
            Err(_) => tracing::warn!("MQTT: PUBACK not sent within {PUBLISH_TIMEOUT:?}"),
        }
    }

    /// Sends what is queued, says DISCONNECT and ends the poll loop.
    pub async fn shutdown(&self) {
        let poll = self
            .shared
            .poll
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(mut poll) = poll else { return };
        let asked = self.shared.client.disconnect_with_timeout(SHUTDOWN_TIMEOUT);
        let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, asked).await;
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, &mut poll)
            .await
            .is_err()
        {
            tracing::warn!("MQTT: no orderly goodbye within {SHUTDOWN_TIMEOUT:?}");
            poll.abort();
        }
    }
}

/// Connects again and again, and hands over what comes.
///
/// A session is taken up again only by the process that had it. One that the broker kept of a server
/// that was killed would be of no use: the client knows none of its packet identifiers and could neither
/// subscribe nor publish in it. What it held comes again: devices send what is not acknowledged.
async fn poll(mut events: EventLoop, shared: Arc<Shared>, readers: Readers, broker: String) {
    let mut failures = 0_u32;
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => {
                failures = 0;
                events.options.set_clean_start(false);
                shared.connection.fetch_add(1, Ordering::AcqRel);
                tracing::info!(%broker, "MQTT: connected");
                tokio::spawn(subscribe(Arc::clone(&shared)));
            }
            Ok(Event::Incoming(Packet::Publish(publish))) => {
                if !hand_over(publish, &shared, &readers).await {
                    tracing::warn!(%broker, "MQTT: ingest did not read for {READER_TIMEOUT:?}, connecting anew");
                    shared.connection.fetch_add(1, Ordering::AcqRel);
                    shared.deaf();
                    events.clean();
                }
            }
            Ok(_) => {}
            Err(rumqttc::ConnectionError::RequestsDone) => break,
            Err(error) => {
                shared.deaf();
                if let rumqttc::ConnectionError::SessionStateMismatch { .. } = error {
                    events.options.set_clean_start(true);
                }
                let wait = backoff(failures, random());
                tracing::warn!(%broker, %error, wait_ms = wait.as_millis(), "MQTT: not connected, will try again");
                failures = failures.saturating_add(1);
                tokio::time::sleep(wait).await;
            }
        }
    }
    shared.deaf();
    tracing::info!(%broker, "MQTT: disconnected");
}

impl Shared {
    /// Devices cannot be heard any more; keeps the moment from which on they could not.
    fn deaf(&self) {
        self.listening.send_if_modified(|now| {
            let was_listening = now.since_ms().is_some();
            if was_listening {
                *now = Listening::NotSince(clock::now_ms());
            }
            was_listening
        });
    }
}

/// Gives a message to the reader and waits while it is far behind: MQTT's window fills before, and the
/// broker waits too. `false` if the reader did not move in time.
///
/// QoS 0 is not waited for, since no window holds it back: a fetch is left out when there are too
/// many, and nothing else is sent by an agent.
async fn hand_over(publish: Publish, shared: &Shared, readers: &Readers) -> bool {
    if publish.qos == QoS::AtMostOnce {
        if publish.topic.ends_with(FETCH_LEVEL) {
            let connection = shared.connection.load(Ordering::Acquire);
            let message = Inbound {
                publish,
                connection,
                _room: None,
            };
            if readers.fetches.try_send(message).is_err() {
                metrics::counter!("dunlin_blocks_refused_total", "reason" => "queue").increment(1);
            }
            return true;
        }
        metrics::counter!("dunlin_mqtt_qos0_dropped_total").increment(1);
        return true;
    }
    let bytes = publish.topic.len() + publish.payload.len();
    let kib = u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX);
    let sent = async {
        let room = Arc::clone(&readers.room).acquire_many_owned(kib).await;
        let message = Inbound {
            publish,
            connection: shared.connection.load(Ordering::Acquire),
            _room: room.ok(),
        };
        // A closed channel is the end of the server.
        let _ = readers.inbound.send(message).await;
    };
    tokio::time::timeout(READER_TIMEOUT, sent).await.is_ok()
}

/// Done at every connect: a resumed session has the subscriptions already, but only a new request
/// makes the broker send the retained presences. Tried again until it works or the connection is
/// another one.
async fn subscribe(shared: Arc<Shared>) {
    let connection = shared.connection.load(Ordering::Acquire);
    let mut failures = 0;
    while connection == shared.connection.load(Ordering::Acquire) {
        let problem = match tokio::time::timeout(CONNECT_TIMEOUT, subscribe_once(&shared)).await {
            Ok(Ok(())) => {
                if connection == shared.connection.load(Ordering::Acquire) {
                    let now_ms = clock::now_ms();
                    shared.listening.send_replace(Listening::Since(now_ms));
                }
                return;
            }
            Ok(Err(problem)) => problem,
            Err(_) => format!("no answer within {CONNECT_TIMEOUT:?}"),
        };
        tracing::error!(
            problem,
            "MQTT: not subscribed, no device can be heard; will try again"
        );
        tokio::time::sleep(backoff(failures, random())).await;
        failures += 1;
    }
}

async fn subscribe_once(shared: &Shared) -> Result<(), String> {
    let shared_channels = [
        Channel::Reported,
        Channel::Metrics,
        Channel::Sketch,
        Channel::Event,
        Channel::Log,
    ];
    let mut filters: Vec<String> = shared_channels
        .map(|channel| Topic::filter_shared(&shared.share, &shared.fleet, channel))
        .into();
    filters.push(Topic::filter_all_devices(&shared.fleet, Channel::Presence));
    let mut filters: Vec<_> = filters
        .into_iter()
        .map(|filter| SubscribeFilterInput::new(filter, QoS::AtLeastOnce))
        .collect();
    // Not kept for a server that is away: the device asks again.
    let fetch = Topic::filter_shared(&shared.share, &shared.fleet, Channel::Fetch);
    filters.push(SubscribeFilterInput::new(fetch, QoS::AtMostOnce));
    let notice = shared
        .client
        .subscribe_many_tracked(filters)
        .await
        .map_err(|e| e.to_string())?;
    let answer = notice.wait_async().await.map_err(|e| e.to_string())?;
    let refused = answer
        .return_codes
        .iter()
        .find(|code| !matches!(code, SubscribeReasonCode::Success(_)));
    refused.map_or(Ok(()), |code| {
        Err(format!("the broker refused a subscription: {code:?}"))
    })
}

/// Doubling from [`BACKOFF_MIN`] to [`BACKOFF_MAX`], of which a random half to whole is waited.
fn backoff(failures: u32, random: u8) -> Duration {
    let whole = BACKOFF_MIN
        .saturating_mul(1 << failures.min(16))
        .min(BACKOFF_MAX);
    whole.mul_f64(0.5 + f64::from(random) / 510.0)
}

fn random() -> u8 {
    let mut byte = [0_u8];
    let _ = getrandom::fill(&mut byte);
    byte[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backoff_doubles_with_jitter_up_to_its_limit() {
        assert_eq!(backoff(0, 0), BACKOFF_MIN / 2);
        assert_eq!(backoff(0, 255), BACKOFF_MIN);
        assert_eq!(backoff(1, 255), BACKOFF_MIN * 2);
        assert_eq!(backoff(u32::MAX, 255), BACKOFF_MAX);
    }
}
