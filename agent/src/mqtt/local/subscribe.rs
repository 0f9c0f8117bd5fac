//! One filter's messages, each acknowledged by hand.

use super::super::AbortOnDrop;
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

/// What is heard.
#[derive(Debug)]
pub enum Heard {
    /// Connected and subscribed.
    Connected,
    /// A message.
    Message(Message),
    /// A connection is lost; what it brought and was not acknowledged comes again.
    Lost {
        /// Which.
        connection: u64,
        /// Why.
        reason: String,
    },
}

/// Subscribes for as long as the receiver lives. The task ends after it, with a goodbye once all
/// acknowledgements are sent.
#[must_use]
pub fn subscribe(
    settings: LocalSettings,
    subscription: Subscription,
) -> (mpsc::Receiver<Heard>, tokio::task::JoinHandle<()>) {
    let (to, heard) = mpsc::channel(usize::from(subscription.receive_max).max(1));
    let task = tokio::spawn(run(settings, subscription, to));
    (heard, task)
}

async fn run(settings: LocalSettings, subscription: Subscription, to: mpsc::Sender<Heard>) {
    let mut session = Session::load(&subscription);
    let mut failures = 0_u32;
    for connection in 1.. {
        let begun = Instant::now();
        let client = Connection {
            settings: &settings,
            subscription: &subscription,
            number: connection,
            to: &to,
        };
        let Err(reason) = client.run(&mut session).await else {
            return;
        };
        if to.send(Heard::Lost { connection, reason }).await.is_err() {
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
    to: &'a mpsc::Sender<Heard>,
}

impl Connection<'_> {
    /// `Ok`: nobody listens any more. `Err`: why the connection ended.
    async fn run(&self, session: &mut Session) -> Result<(), String> {
        let (client, events) = self.open(session)?;
        let (polled_tx, mut polled) =
            mpsc::channel(usize::from(self.subscription.receive_max).max(1));
        let mut poller = AbortOnDrop(tokio::spawn(poll(events, polled_tx)));
        let first = tokio::time::timeout(CONNECT_TIMEOUT, polled.recv());
        let resumed = match first.await {
            Ok(Some(Polled::Connected { resumed })) => resumed,
            Ok(Some(Polled::Lost(reason))) => return Err(self.at(&reason)),
            Ok(_) => return Err(self.at("the connection ended before it began")),
            Err(_) => return Err(self.at("no answer in time")),
        };
        if resumed {
            self.heard(Heard::Connected).await;
        } else {
            let mut filter = SubscribeFilter::new(&self.subscription.filter, QoS::AtLeastOnce);
            // A retained message is a record once, not at every start.
            filter.retain_forward_rule = RetainForwardRule::OnNewSubscribe;
            let asked = client.subscribe_many([filter]).await;
            asked.map_err(|e| self.at(&e.to_string()))?;
        }
        let (ack_tx, mut acks) = mpsc::unbounded_channel();
        loop {
            tokio::select! {
                () = self.to.closed() => break,
                Some(ack) = acks.recv() => {
                    let sent = client.manual_ack(ack).await;
                    sent.map_err(|e| self.at(&e.to_string()))?;
                }
                polled = polled.recv() => match polled {
                    Some(Polled::Message(publish)) => {
                        let message = self.message(&client, &publish, &ack_tx);
                        self.heard(Heard::Message(message)).await;
                    }
                    Some(Polled::Subscribed(Ok(()))) => {
                        session.begun();
                        self.heard(Heard::Connected).await;
                    }
                    Some(Polled::Subscribed(Err(code))) => {
                        let filter = &self.subscription.filter;
                        return Err(self.at(&format!("subscription to {filter} refused: {code}")));
                    }
                    Some(Polled::Lost(reason)) => return Err(self.at(&reason)),
                    Some(Polled::Connected { .. }) | None => return Err(self.at("the connection ended")),
                },
            }
        }
        let goodbye = async {
            while let Ok(ack) = acks.try_recv() {
                let _ = client.manual_ack(ack).await;
            }
            let _ = client.disconnect().await;
            // Polling goes on while somebody takes what it says.
            while polled.recv().await.is_some() {}
            let _ = (&mut poller.0).await;
        };
        let _ = tokio::time::timeout(GOODBYE_TIMEOUT, goodbye).await;
        Ok(())
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

    async fn heard(&self, heard: Heard) {
        // Nobody listening is seen by the loop.
        let _ = self.to.send(heard).await;
    }

    fn message(
        &self,
        client: &AsyncClient,
        publish: &Publish,
        acks: &mpsc::UnboundedSender<ManualAck>,
    ) -> Message {
        let properties = publish.properties.clone().unwrap_or_default();
        Message {
            topic: String::from_utf8_lossy(&publish.topic).into_owned(),
            payload: publish.payload.clone(),
            response_topic: properties.response_topic,
            correlation: properties.correlation_data,
            connection: self.number,
            acknowledge: client.prepare_ack(publish).map(|packet| Acknowledge {
                to: acks.clone(),
                packet,
            }),
        }
    }
}

enum Polled {
    Connected { resumed: bool },
    Subscribed(Result<(), String>),
    Message(Box<Publish>),
    Lost(String),
}

async fn poll(mut events: EventLoop, to: mpsc::Sender<Polled>) {
    loop {
        let polled = match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(ack))) if ack.code == ConnectReturnCode::Success => {
                Polled::Connected {
                    resumed: ack.session_present,
                }
            }
            Ok(Event::Incoming(Packet::Publish(publish))) => Polled::Message(Box::new(publish)),
            Ok(Event::Incoming(Packet::SubAck(ack))) => {
                Polled::Subscribed(match ack.return_codes.first() {
                    Some(SubscribeReasonCode::Success(_)) => Ok(()),
                    other => Err(format!("{other:?}")),
                })
            }
            Ok(_) => continue,
            Err(ConnectionError::ConnectionRefused(code)) => {
                Polled::Lost(format!("the broker refuses: {code:?}"))
            }
            Err(e) => Polled::Lost(e.to_string()),
        };
        let last = matches!(polled, Polled::Lost(_));
        if to.send(polled).await.is_err() || last {
            return;
        }
    }
}
