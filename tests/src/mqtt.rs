//! A bare MQTT 5 client with anybody's certificate, for what no agent would send.

use anyhow::{Context as _, bail};
use rumqttc::mqttbytes::v5::{
    ConnectReturnCode, LastWill, Packet, PubAckReason, SubscribeReasonCode,
};
use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, PublishNoticeError,
    PublishOptions, PublishResult, QoS, TlsConfiguration, Transport,
};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

const TIMEOUT: Duration = Duration::from_secs(10);
const PACKET_MAX_BYTES: u32 = 4 << 20;

/// A message that a client heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its topic.
    pub topic: String,
    /// Its bytes.
    pub payload: Vec<u8>,
}

/// A connected client; it is cut off when dropped.
pub struct Client {
    client: AsyncClient,
    heard: Arc<Mutex<Vec<Message>>>,
    poll: JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.poll.abort();
    }
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// Refused, with the reason code, or no answer.
    pub async fn connect(
        broker: SocketAddr,
        client_id: &str,
        tls: Arc<rustls::ClientConfig>,
    ) -> anyhow::Result<Self> {
        Self::connect_with(broker, client_id, tls, |_| {}).await
    }

    /// Connects with a last will on this topic.
    ///
    /// # Errors
    /// Refused, with the reason code, or no answer.
    pub async fn connect_with_will(
        broker: SocketAddr,
        client_id: &str,
        tls: Arc<rustls::ClientConfig>,
        topic: &str,
    ) -> anyhow::Result<Self> {
        let will = LastWill::new(topic, "x", QoS::AtLeastOnce, false, None);
        let with_will = |options: &mut MqttOptions| {
            options.set_last_will(will);
        };
        Self::connect_with(broker, client_id, tls, with_will).await
    }

    async fn connect_with(
        broker: SocketAddr,
        client_id: &str,
        tls: Arc<rustls::ClientConfig>,
        change: impl FnOnce(&mut MqttOptions),
    ) -> anyhow::Result<Self> {
        let address = (broker.ip().to_string(), broker.port());
        let mut options = MqttOptions::new(client_id, address);
        change(&mut options);
        let tls = TlsConfiguration::Rustls(tls);
        options.set_transport(Transport::tls_with_config(tls));
        options.set_clean_start(true);
        options.set_max_packet_size(Some(PACKET_MAX_BYTES));
        let (client, mut events) = AsyncClient::builder(options).capacity(16).build();
        match tokio::time::timeout(TIMEOUT, connected(&mut events)).await {
            Ok(answer) => answer?,
            Err(_) => bail!("no CONNACK within {TIMEOUT:?}"),
        }
        let heard = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&heard);
        let poll = tokio::spawn(async move {
            while let Ok(event) = events.poll().await {
                if let Event::Incoming(Packet::Publish(publish)) = event {
                    let message = Message {
                        topic: String::from_utf8_lossy(&publish.topic).into_owned(),
                        payload: publish.payload.to_vec(),
                    };
                    let mut heard = into.lock().unwrap_or_else(PoisonError::into_inner);
                    heard.push(message);
                }
            }
        });
        Ok(Self {
            client,
            heard,
            poll,
        })
    }

    /// What it heard so far.
    #[must_use]
    pub fn heard(&self) -> Vec<Message> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.clone()
    }

    /// Whether its connection has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.poll.is_finished()
    }

    /// Publishes at QoS 1 and waits for the broker's word.
    ///
    /// # Errors
    /// Refused, with the reason code, or the connection was cut.
    pub async fn publish(&self, topic: &str, payload: Vec<u8>) -> anyhow::Result<()> {
        let options = PublishOptions::new(QoS::AtLeastOnce);
        let sent = async {
            let notice = self.client.publish_tracked(topic, payload, options).await?;
            anyhow::Ok(notice.wait_async().await)
        };
        let answer = tokio::time::timeout(TIMEOUT, sent).await;
        match answer.context("no PUBACK")?? {
            Ok(PublishResult::Qos1(ack)) => match ack.reason {
                PubAckReason::Success | PubAckReason::NoMatchingSubscribers => Ok(()),
                other => bail!("PUBACK {other:?}"),
            },
            Err(PublishNoticeError::V5PubAck(reason)) => bail!("PUBACK {reason:?}"),
            other => bail!("{other:?}"),
        }
    }

    /// Subscribes and waits for the broker's word.
    ///
    /// # Errors
    /// Refused, with the reason code, or the connection was cut.
    pub async fn subscribe(&self, filter: &str) -> anyhow::Result<()> {
        let sent = async {
            let notice = self.client.subscribe_tracked(filter, QoS::AtLeastOnce);
            anyhow::Ok(notice.await?.wait_async().await?)
        };
        let answer = tokio::time::timeout(TIMEOUT, sent).await;
        let answer = answer.context("no SUBACK")??;
        match answer.return_codes.first() {
            Some(SubscribeReasonCode::Success(_)) => Ok(()),
            other => bail!("SUBACK {other:?}"),
        }
    }
}

async fn connected(events: &mut EventLoop) -> anyhow::Result<()> {
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(ack))) if ack.code == ConnectReturnCode::Success => {
                return Ok(());
            }
            Ok(Event::Incoming(Packet::ConnAck(ack))) => bail!("CONNACK {:?}", ack.code),
            Ok(_) => {}
            Err(ConnectionError::ConnectionRefused(code)) => bail!("CONNACK {code:?}"),
            Err(e) => bail!("{e}"),
        }
    }
}

/// Connects as a client that announces a packet of so many bytes and begins to send it; whether
/// the broker cut it off.
///
/// # Errors
/// No connection.
pub async fn is_cut_off_at(
    broker: SocketAddr,
    client_id: &str,
    tls: Arc<rustls::ClientConfig>,
    packet_bytes: u32,
) -> anyhow::Result<bool> {
    let stream = TcpStream::connect(broker).await?;
    let name = rustls::pki_types::ServerName::from(broker.ip());
    let mut stream = tokio_rustls::TlsConnector::from(tls)
        .connect(name, stream)
        .await?;
    let id = client_id.as_bytes();
    // MQTT 5, 3.1: protocol name and version, clean start, keep-alive 20 s, no properties, id.
    let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', 5, 0b10, 0, 20, 0];
    body.extend(u16::try_from(id.len())?.to_be_bytes());
    body.extend(id);
    let mut connect = vec![0x10];
    connect.extend(variable_length(u32::try_from(body.len())?));
    connect.extend(body);
    stream.write_all(&connect).await?;
    let mut connack = [0; 2];
    stream.read_exact(&mut connack).await?;
    anyhow::ensure!(connack[0] == 0x20, "no CONNACK: {connack:?}");
    let mut rest = vec![0; usize::from(connack[1])];
    stream.read_exact(&mut rest).await?;
    anyhow::ensure!(rest.get(1) == Some(&0), "refused: {rest:?}");
    let mut publish = vec![0x30];
    publish.extend(variable_length(packet_bytes));
    publish.extend([0; 4096]);
    stream.write_all(&publish).await?;
    let ended = async {
        let mut sink = [0; 256];
        // A DISCONNECT, then the end; or the end at once.
        while stream.read(&mut sink).await.is_ok_and(|n| n > 0) {}
    };
    Ok(tokio::time::timeout(TIMEOUT, ended).await.is_ok())
}

/// MQTT 5, 1.5.5.
fn variable_length(mut n: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let [low, ..] = (n % 128).to_le_bytes();
        n /= 128;
        bytes.push(if n > 0 { low | 128 } else { low });
        if n == 0 {
            return bytes;
        }
    }
}
