//! One filter's messages, each acknowledged by hand.
//!
//! The task that drives the library's event loop waits for nobody: messages go to the bounded
//! [`Inbox`], which leaves what it cannot hold with the broker. Acknowledgements wait in a list of
//! their own, no longer than what is held, for a second task that may wait for the event loop.

use super::super::AbortOnDrop;
use super::inbox::{Inbox, Offered};
use super::{LocalSettings, options, pause};
use bytes::Bytes;
use rumqttc::mqttbytes::v5::{
    ConnectReturnCode, Packet, Publish, RetainForwardRule, SubscribeFilter, SubscribeReasonCode,
};
use rumqttc::{
    AckMode, AsyncClient, BrokerSessionResumePolicy, ConnectionError, Event, EventLoop, ManualAck,
    QoS,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How long a broker keeps what this client has not seen: a week.
const SESSION_EXPIRY_S: u32 = 7 * 24 * 3600;
/// Without a marker file the session is good for the process's own reconnects.
const SHORT_SESSION_EXPIRY_S: u32 = 300;
const MARKER_MAX_BYTES: u64 = 4096;
const REQUESTS: usize = 64;
const CONNECT_TIMEOUT: Duration = Duration::from_millis(super::CONNECT_TIMEOUT_MS);
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);
/// The library says something at every ping at the latest; if it is silent for this long, it waits
/// for a broker that takes nothing.
const SILENCE_MAX: Duration = Duration::from_secs(3 * super::KEEP_ALIVE_S as u64);
/// Each is said once at most in a connection's life: connected, subscribed, leaving, lost.
const SAID_MAX: usize = 4;
const NEWS: usize = 8;

/// What to hear.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// Topic filter.
    pub filter: String,
    /// Most messages that are not acknowledged yet; the broker holds back the rest.
    pub receive_max: u16,
    /// File that remembers for which filter the broker has a session.
    pub marker: Option<PathBuf>,
}

/// A message.
#[derive(Debug)]
pub struct Message {
    /// Its topic.
    pub topic: String,
    /// Its payload.
    pub payload: Bytes,
    /// Where its sender wants the answer.
    pub response_topic: Option<String>,
    /// What its sender wants repeated in the answer.
    pub correlation: Option<Bytes>,
    /// The connection that brought it.
    pub connection: u64,
    /// Acknowledges it; none at `QoS` 0.
    pub acknowledge: Option<Acknowledge>,
}

/// The acknowledgement of one message. Without it the broker sends the message again, at the next
/// connection.
#[derive(Debug)]
pub struct Acknowledge {
    to: mpsc::UnboundedSender<ManualAck>,
    packet: ManualAck,
}

impl Acknowledge {
    /// Sends it, unless its connection is lost: it would say nothing on another.
    pub fn send(self) {
        let _ = self.to.send(self.packet);
    }
}

/// What becomes of the subscription.
#[derive(Debug)]
pub enum News {
    /// Connected and subscribed.
    Connected,
    /// The broker sends more than was agreed; what is not held is fetched from it later.
    Leaving {
        /// In words.
        reason: String,
    },
    /// A connection is lost; what it brought and was not acknowledged comes again.
    Lost {
        /// Which.
        connection: u64,
        /// Why.
        reason: String,
    },
}

/// The listener's end. The connection lives on whether messages are taken or not, as long as the
/// news are.
pub struct Listening {
    /// What becomes of the subscription; a loss is told before any message of the next connection.
    pub news: mpsc::Receiver<News>,
    /// The messages.
    pub messages: Arc<Inbox>,
}

/// Subscribes for as long as the news' receiver lives. The task ends after it, with a goodbye once
/// all acknowledgements are sent.
#[must_use]
pub fn subscribe(
    settings: LocalSettings,
    subscription: Subscription,
) -> (Listening, tokio::task::JoinHandle<()>) {
    let (to, news) = mpsc::channel(NEWS);
    let messages = Arc::new(Inbox::new(subscription.receive_max));
    let task = tokio::spawn(run(settings, subscription, to, Arc::clone(&messages)));
    (Listening { news, messages }, task)
}

async fn run(
    settings: LocalSettings,
    subscription: Subscription,
    to: mpsc::Sender<News>,
    inbox: Arc<Inbox>,
) {
    let mut session = Session::load(&subscription);
    let mut failures = 0_u32;
    for connection in 1.. {
        let begun = Instant::now();
        let client = Connection {
            settings: &settings,
            subscription: &subscription,
            number: connection,
            to: &to,
            inbox: &inbox,
        };
        inbox.begin(connection);
        let ended = client.run(&mut session).await;
        inbox.begin(0);
        let reason = match ended {
            Ok(Ended::Unheard) => return,
            // It brought something on: no pause.
            Ok(Ended::Spent) => continue,
            Err(reason) => reason,
        };
        if to.send(News::Lost { connection, reason }).await.is_err() {
            return;
        }
        let good = begun.elapsed() >= super::super::GOOD;
        failures = if good { 1 } else { failures.saturating_add(1) };
        tokio::select! {
            () = tokio::time::sleep(pause(failures)) => {}
            () = to.closed() => return,
        }
    }
}

/// Whether the broker has a session of ours, for this filter.
struct Session {
    is_known: bool,
    marker: Option<PathBuf>,
    words: String,
}

impl Session {
    fn load(subscription: &Subscription) -> Self {
        let marker = subscription.marker.clone();
        let words = subscription.filter.clone();
        let read = |path: &Path| {
            crate::files::read_if_there(path, MARKER_MAX_BYTES)
                .ok()
                .flatten()
        };
        let known = marker.as_deref().and_then(read);
        Self {
            is_known: known.as_deref() == Some(words.as_bytes()),
            marker,
            words,
        }
    }

    fn begun(&mut self) {
        if !std::mem::replace(&mut self.is_known, true)
            && let Some(path) = &self.marker
            && let Err(e) = crate::files::write_atomic(path, self.words.as_bytes(), 0o600)
        {
            // The next process begins anew, and what waits at the broker is lost then.
            tracing::warn!(error = %e, "the subscription cannot be remembered");
        }
    }
}

struct Connection<'a> {
    settings: &'a LocalSettings,
    subscription: &'a Subscription,
    number: u64,
    to: &'a mpsc::Sender<News>,
    inbox: &'a Arc<Inbox>,
}

/// How a connection ends in order.
enum Ended {
    /// Nobody listens any more.
    Unheard,
    /// The broker sends what was left with it at the next connection only.
    Spent,
}

impl Connection<'_> {
    /// `Err`: why the connection was lost.
    async fn run(&self, session: &mut Session) -> Result<Ended, String> {
        let (client, events) = self.open(session)?;
        let (said, mut polled) = mpsc::channel(SAID_MAX);
        let (acks_to, mut acks) = mpsc::unbounded_channel();
        let bringing = Bringing {
            client: client.clone(),
            connection: self.number,
            inbox: Arc::clone(self.inbox),
            acks: acks_to,
            said,
        };
        let mut poller = AbortOnDrop(tokio::spawn(bringing.poll(events)));
        let first = tokio::time::timeout(CONNECT_TIMEOUT, polled.recv());
        let resumed = match first.await {
            Ok(Some(Polled::Connected { resumed })) => resumed,
            Ok(Some(Polled::Lost(reason))) => return Err(self.at(&reason)),
            Ok(_) => return Err(self.at("the connection ended before it began")),
            Err(_) => return Err(self.at("no answer in time")),
        };
        if resumed {
            self.tell(News::Connected).await;
        } else {
            let mut filter = SubscribeFilter::new(&self.subscription.filter, QoS::AtLeastOnce);
            // A retained message is a record once, not at every start.
            filter.retain_forward_rule = RetainForwardRule::OnNewSubscribe;
            let asked = client.subscribe_many([filter]).await;
            asked.map_err(|e| self.at(&e.to_string()))?;
        }
        let ended = self.carry(&client, &mut polled, &mut acks, session).await?;
        let goodbye = async {
            while let Ok(ack) = acks.try_recv() {
                let _ = client.manual_ack(ack).await;
            }
            let _ = client.disconnect().await;
            let _ = (&mut poller.0).await;
        };
        let _ = tokio::time::timeout(GOODBYE_TIMEOUT, goodbye).await;
        Ok(ended)
    }

    /// Sends acknowledgements and tells what happens, until there is a reason to end.
    async fn carry(
        &self,
        client: &AsyncClient,
        polled: &mut mpsc::Receiver<Polled>,
        acks: &mut mpsc::UnboundedReceiver<ManualAck>,
        session: &mut Session,
    ) -> Result<Ended, String> {
        loop {
            if self.inbox.is_spent() {
                return Ok(Ended::Spent);
            }
            tokio::select! {
                () = self.to.closed() => return Ok(Ended::Unheard),
                Some(ack) = acks.recv() => {
                    // It fails with the connection, whose end says why.
                    if client.manual_ack(ack).await.is_ok() {
                        self.inbox.acknowledged();
                    }
                }
                polled = polled.recv() => match polled {
                    Some(Polled::Subscribed(Ok(()))) => {
                        session.begun();
                        self.tell(News::Connected).await;
                    }
                    Some(Polled::Subscribed(Err(code))) => {
                        let filter = &self.subscription.filter;
                        return Err(self.at(&format!("subscription to {filter} refused: {code}")));
                    }
                    Some(Polled::Leaving) => {
                        let reason = self.at(&format!(
                            "the broker sends more than the {} unacknowledged messages agreed \
                             (mosquitto: max_inflight_messages), or large ones; what cannot be held \
                             is left with it and fetched once the rest is answered",
                            self.subscription.receive_max
                        ));
                        self.tell(News::Leaving { reason }).await;
                    }
                    Some(Polled::Lost(reason)) => return Err(self.at(&reason)),
                    Some(Polled::Connected { .. }) | None => return Err(self.at("the connection ended")),
                },
            }
        }
    }

    fn open(&self, session: &Session) -> Result<(AsyncClient, EventLoop), String> {
        let mut options = options(self.settings)?;
        options.set_ack_mode(AckMode::Manual);
        options.set_receive_maximum(Some(self.subscription.receive_max.max(1)));
        options.set_clean_start(!session.is_known);
        options.set_broker_session_resume_policy(BrokerSessionResumePolicy::AllowBrokerOnly);
        options.set_session_expiry_interval(Some(if session.marker.is_some() {
            SESSION_EXPIRY_S
        } else {
            SHORT_SESSION_EXPIRY_S
        }));
        Ok(AsyncClient::builder(options).capacity(REQUESTS).build())
    }

    fn at(&self, reason: &str) -> String {
        format!("{}:{}: {reason}", self.settings.host, self.settings.port)
    }

    async fn tell(&self, news: News) {
        // Nobody listening is seen by the loop.
        let _ = self.to.send(news).await;
    }
}

enum Polled {
    Connected { resumed: bool },
    Subscribed(Result<(), String>),
    Leaving,
    Lost(String),
}

/// What drives the event loop and brings in what it hears, without ever waiting for anything else.
struct Bringing {
    client: AsyncClient,
    connection: u64,
    inbox: Arc<Inbox>,
    /// No longer than the messages held: each has one acknowledgement.
    acks: mpsc::UnboundedSender<ManualAck>,
    said: mpsc::Sender<Polled>,
}

impl Bringing {
    async fn poll(self, mut events: EventLoop) {
        loop {
            let event = tokio::time::timeout(SILENCE_MAX, events.poll()).await;
            let polled = match event {
                Ok(Ok(Event::Incoming(Packet::ConnAck(ack))))
                    if ack.code == ConnectReturnCode::Success =>
                {
                    Polled::Connected {
                        resumed: ack.session_present,
                    }
                }
                Ok(Ok(Event::Incoming(Packet::Publish(publish)))) => {
                    match self.inbox.offer(self.message(&publish)) {
                        Offered::LeftFirst => Polled::Leaving,
                        Offered::Held | Offered::Dropped | Offered::Left => continue,
                    }
                }
                Ok(Ok(Event::Incoming(Packet::SubAck(ack)))) => {
                    Polled::Subscribed(match ack.return_codes.first() {
                        Some(SubscribeReasonCode::Success(_)) => Ok(()),
                        other => Err(format!("{other:?}")),
                    })
                }
                Ok(Ok(_)) => continue,
                Ok(Err(ConnectionError::ConnectionRefused(code))) => {
                    Polled::Lost(format!("the broker refuses: {code:?}"))
                }
                Ok(Err(e)) => Polled::Lost(e.to_string()),
                Err(_) => Polled::Lost(format!("the broker took nothing for {SILENCE_MAX:?}")),
            };
            let last = matches!(polled, Polled::Lost(_));
            // A broker that says one of these again and again ends the connection.
            if self.said.try_send(polled).is_err() || last {
                return;
            }
        }
    }

    fn message(&self, publish: &Publish) -> Message {
        let properties = publish.properties.clone().unwrap_or_default();
        let packet = self.client.prepare_ack(publish);
        Message {
            topic: String::from_utf8_lossy(&publish.topic).into_owned(),
            payload: publish.payload.clone(),
            response_topic: properties.response_topic,
            correlation: properties.correlation_data,
            connection: self.connection,
            acknowledge: packet.map(|packet| Acknowledge {
                to: self.acks.clone(),
                packet,
            }),
        }
    }
}
