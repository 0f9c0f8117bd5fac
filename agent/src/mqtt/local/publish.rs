//! Results out: a message counts as published once the broker has acknowledged it.

use super::super::AbortOnDrop;
use super::{LocalSettings, options};
use bytes::Bytes;
use rumqttc::mqttbytes::v5::{ConnectReturnCode, Packet, PubAckReason, PublishProperties};
use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, PublishNoticeError, PublishOptions,
    PublishResult, QoS,
};
use std::time::Duration;
use tokio::sync::oneshot;

const CONNECT_TIMEOUT: Duration = Duration::from_millis(super::CONNECT_TIMEOUT_MS);
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(20);
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);
const REQUESTS: usize = 8;
const INFLIGHT_MAX: u16 = 8;

/// A message to publish at `QoS` 1.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Topic.
    pub topic: String,
    /// Payload.
    pub payload: Vec<u8>,
    /// Its content type.
    pub content_type: &'static str,
    /// Correlation data of the request that it answers.
    pub correlation: Option<Bytes>,
}

/// Why a message is not known to be published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// No connection, or it was lost before the acknowledgement.
    #[error("{0}")]
    Lost(String),
    /// The broker does not take it.
    #[error("the broker refuses the message: {0}")]
    Refused(String),
}

/// A connection that is made when there is something to say, and kept.
pub struct Publisher {
    settings: LocalSettings,
    live: Option<Live>,
}

struct Live {
    client: AsyncClient,
    poller: AbortOnDrop,
}

impl Publisher {
    /// Connects to nothing yet.
    #[must_use]
    pub fn new(settings: LocalSettings) -> Self {
        Self {
            settings,
            live: None,
        }
    }

    /// Publishes and waits for the acknowledgement, once.
    ///
    /// # Errors
    /// [`PublishError`]; the message may have been published all the same if the connection is
    /// lost.
    pub async fn publish(&mut self, message: &Outgoing) -> Result<(), PublishError> {
        let live = match self.live.take().filter(|live| !live.poller.0.is_finished()) {
            Some(live) => live,
            None => self.connect().await?,
        };
        let said = say(&live.client, message).await;
        // After a refusal the connection is as good as before.
        if !matches!(said, Err(PublishError::Lost(_))) {
            self.live = Some(live);
        }
        said
    }

    /// Ends the connection in order.
    pub async fn goodbye(&mut self) {
        if let Some(mut live) = self.live.take() {
            let both = async {
                let _ = live.client.disconnect().await;
                let _ = (&mut live.poller.0).await;
            };
            let _ = tokio::time::timeout(GOODBYE_TIMEOUT, both).await;
        }
    }

    async fn connect(&self) -> Result<Live, PublishError> {
        let at = |reason: &str| {
            PublishError::Lost(format!(
                "{}:{}: {reason}",
                self.settings.host, self.settings.port
            ))
        };
        let mut options = options(&self.settings).map_err(PublishError::Lost)?;
        // What is not acknowledged is published again by its owner.
        options.set_clean_start(true);
        options.set_session_expiry_interval(Some(0));
        options.set_outgoing_inflight_upper_limit(INFLIGHT_MAX);
        let (client, events) = AsyncClient::builder(options).capacity(REQUESTS).build();
        let (connected_tx, connected) = oneshot::channel();
        let poller = AbortOnDrop(tokio::spawn(poll(events, connected_tx)));
        match tokio::time::timeout(CONNECT_TIMEOUT, connected).await {
            Ok(Ok(Ok(()))) => Ok(Live { client, poller }),
            Ok(Ok(Err(reason))) => Err(at(&reason)),
            Ok(Err(_)) => Err(at("the connection ended before it began")),
            Err(_) => Err(at("no answer in time")),
        }
    }
}

async fn say(client: &AsyncClient, message: &Outgoing) -> Result<(), PublishError> {
    let properties = PublishProperties {
        payload_format_indicator: Some(1),
        content_type: Some(message.content_type.to_owned()),
        correlation_data: message.correlation.clone(),
        ..PublishProperties::default()
    };
    let options = PublishOptions::new(QoS::AtLeastOnce).properties(properties);
    let acknowledged = async {
        let notice = client
            .publish_tracked(message.topic.clone(), message.payload.clone(), options)
            .await
            .map_err(|e| PublishError::Lost(e.to_string()))?;
        match notice.wait_async().await {
            Ok(PublishResult::Qos1(ack)) => match ack.reason {
                PubAckReason::Success | PubAckReason::NoMatchingSubscribers => Ok(()),
                other => Err(PublishError::Refused(format!("{other:?}"))),
            },
            Ok(other) => Err(PublishError::Lost(format!("{other:?}"))),
            Err(PublishNoticeError::V5PubAck(reason)) => {
                Err(PublishError::Refused(format!("{reason:?}")))
            }
            Err(e) => Err(PublishError::Lost(e.to_string())),
        }
    };
    let limit = ACKNOWLEDGE_TIMEOUT;
    let waited = tokio::time::timeout(limit, acknowledged).await;
    waited.unwrap_or_else(|_| Err(PublishError::Lost(format!("not acknowledged in {limit:?}"))))
}

/// Drives the connection to its first error, which ends it.
async fn poll(mut events: EventLoop, connected: oneshot::Sender<Result<(), String>>) {
    let mut connected = Some(connected);
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(ack))) if ack.code == ConnectReturnCode::Success => {
                if let Some(connected) = connected.take() {
                    let _ = connected.send(Ok(()));
                }
            }
            Ok(_) => {}
            Err(e) => {
                let reason = match e {
                    ConnectionError::ConnectionRefused(code) => {
                        format!("the broker refuses: {code:?}")
                    }
                    other => other.to_string(),
                };
                tracing::debug!(%reason, "publishing connection ended");
                if let Some(connected) = connected.take() {
                    let _ = connected.send(Err(reason));
                }
                return;
            }
        }
    }
}
