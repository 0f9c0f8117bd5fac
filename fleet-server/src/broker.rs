//! The embedded MQTT broker, behind Dunlin's own acceptor: mutual TLS, identity from the
//! certificate alone, topic rules for each client, a bound on everything.
//!
//! The library's own TLS listener is never used (one silent connection blocks every new client
//! there, and it believes the client id); its mandatory plain listener is bound to a random
//! loopback port and refuses everyone. Retained messages and sessions live in memory: desired
//! state is in the database, and presence is sent again at every connect.
//!
//! Wiring:
//! ```text
//! let broker = broker::start(BrokerConfig { listen, tls: pki.mqtt_tls()?, fleet, auth: Arc::new(StoreAuth(store)), clients_max: 10_000 }).await?;
//! broker.addr                        // where it listens (port 0 resolved)
//! broker.handle().disconnect(&id)    // drops a revoked device's live connections
//! broker.shutdown().await            // drains: handlers first, then the library
//! ```
//! `tls` must demand a client certificate of the fleet's CA (`WebPkiClientVerifier`).

mod rules;

pub use rules::{BoxFuture, Client, ClientAuth, Identity, Rights, StoreAuth};

use crate::consumer::{ConsumerName, FILTERS_MAX};
use dunlin_protocol::id::{DeviceId, FleetId};
use mqtt5::broker::MqttBroker;
use mqtt5::broker::client_handler::ClientHandler;
use mqtt5::broker::config::{BrokerConfig as LibraryConfig, StorageBackend, StorageConfig};
use mqtt5::broker::resource_monitor::ResourceMonitor;
use mqtt5::broker::router::MessageRouter;
use mqtt5::broker::server::BrokerShutdownHandle;
use mqtt5::broker::storage::DynamicStorage;
use mqtt5::broker::sys_topics::BrokerStats;
use mqtt5::broker::tls_acceptor::TlsStreamWrapper;
use mqtt5::broker::transport::BrokerTransport;
use rules::{ConnectionRules, RefuseEveryone};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, broadcast};
use tokio::task::{JoinHandle, JoinSet};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const START_TIMEOUT: Duration = Duration::from_secs(10);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a dropped connection may take to end by itself (last will, DISCONNECT).
const DROP_TIMEOUT: Duration = Duration::from_secs(2);
/// Handshakes in progress at once; a silent connection holds one for [`HANDSHAKE_TIMEOUT`].
const HANDSHAKES_MAX: usize = 1024;
const PACKET_MAX_BYTES: usize = 2 * 1024 * 1024;
/// Presence is the only retained message, and small.
const RETAINED_MAX_BYTES: usize = 4096;
const INFLIGHT_MAX: u16 = 256;

/// What the broker needs to start.
pub struct BrokerConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Server certificate, and a verifier that demands a client certificate of the fleet's CA.
    pub tls: Arc<rustls::ServerConfig>,
    /// The fleet whose topics exist.
    pub fleet: FleetId,
    /// Certificates to identities, and revocation.
    pub auth: Arc<dyn ClientAuth>,
    /// Most clients connected at once; 10 000 is a good default.
    pub clients_max: usize,
}

/// Why the broker did not start.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The address cannot be had.
    #[error("MQTT broker: cannot listen on {listen}: {source} (mqtt.listen)")]
    Listen {
        /// The address asked for.
        listen: SocketAddr,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The library refused.
    #[error("MQTT broker: did not start: {0}")]
    Library(String),
}

/// A broker that accepts connections.
pub struct RunningBroker {
    /// Where it listens.
    pub addr: SocketAddr,
    handle: BrokerHandle,
    stop_accepting: broadcast::Sender<()>,
    acceptor: JoinHandle<JoinSet<()>>,
    library_stop: BrokerShutdownHandle,
    library: JoinHandle<()>,
}

/// Drops connections of a running broker.
#[derive(Clone, Default)]
pub struct BrokerHandle {
    connections: Arc<Mutex<Connections>>,
}

#[derive(Default)]
struct Connections {
    next: u64,
    /// Client id, and what stops the connection.
    by_id: BTreeMap<u64, (String, broadcast::Sender<()>)>,
}

impl BrokerHandle {
    fn lock(&self) -> std::sync::MutexGuard<'_, Connections> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops every live connection of a device; how many there were. Their last wills are
    /// published.
    pub fn disconnect(&self, device: &DeviceId) -> usize {
        self.disconnect_client(device.as_str())
    }

    /// Drops every live connection of a consumer; how many there were.
    pub fn disconnect_consumer(&self, consumer: &ConsumerName) -> usize {
        self.disconnect_client(&consumer.client_id())
    }

    fn disconnect_client(&self, client_id: &str) -> usize {
        let table = self.lock();
        let own = table.by_id.values().filter(|(id, _)| id == client_id);
        let mut dropped = 0;
        for (_, stop) in own {
            let _ = stop.send(());
            dropped += 1;
        }
        dropped
    }

    /// Clients connected now.
    #[must_use]
    pub fn connected(&self) -> usize {
        self.lock().by_id.len()
    }

    fn stop_all(&self) {
        for (_, stop) in self.lock().by_id.values() {
            let _ = stop.send(());
        }
    }

    fn register(
        &self,
        client_id: String,
    ) -> (
        Registration,
        broadcast::Receiver<()>,
        broadcast::Receiver<()>,
    ) {
        let (stop, for_handler) = broadcast::channel(4);
        let for_guard = stop.subscribe();
        let mut table = self.lock();
        let id = table.next;
        table.next += 1;
        table.by_id.insert(id, (client_id, stop));
        (
            Registration {
                handle: self.clone(),
                id,
            },
            for_handler,
            for_guard,
        )
    }
}

struct Registration {
    handle: BrokerHandle,
    id: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.handle.lock().by_id.remove(&self.id);
    }
}

/// Starts the broker.
///
/// # Errors
/// The address is taken, or the library refuses its configuration.
pub async fn start(config: BrokerConfig) -> Result<RunningBroker, BrokerError> {
    let failed = |problem: String| BrokerError::Library(problem);
    let library_config = library_config(config.clients_max);
    let broker = MqttBroker::with_config(library_config.clone())
        .await
        .map_err(|e| failed(e.to_string()))?;
    let mut broker = broker.with_auth_provider(Arc::new(RefuseEveryone));
    let parts = Parts {
        config: Arc::new(library_config),
        router: broker.router(),
        storage: broker.storage(),
        stats: broker.stats(),
        monitor: broker.resource_monitor(),
    };
    let library_stop = broker.shutdown_handle();
    let mut ready = broker.ready_receiver();
    let library = tokio::spawn(async move {
        if let Err(error) = broker.run().await {
            tracing::error!(%error, "the MQTT broker's core ended");
        }
    });
    match tokio::time::timeout(START_TIMEOUT, ready.wait_for(|ready| *ready)).await {
        Ok(Ok(_)) => {}
        _ => {
            return Err(failed(format!(
                "its core was not ready after {START_TIMEOUT:?}"
            )));
        }
    }
    let listening = async {
        let listener = TcpListener::bind(config.listen).await?;
        let addr = listener.local_addr()?;
        Ok((listener, addr))
    };
    let (listener, addr) = match listening.await {
        Ok(bound) => bound,
        Err(source) => {
            library_stop.shutdown();
            return Err(BrokerError::Listen {
                listen: config.listen,
                source,
            });
        }
    };
    let handle = BrokerHandle::default();
    let (stop_accepting, stop) = broadcast::channel(1);
    let acceptor = Acceptor {
        tls: tokio_rustls::TlsAcceptor::from(config.tls),
        fleet: config.fleet,
        auth: config.auth,
        parts,
        handle: handle.clone(),
        handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
        clients: Arc::new(Semaphore::new(config.clients_max)),
    };
    let acceptor = tokio::spawn(Arc::new(acceptor).run(listener, stop));
    Ok(RunningBroker {
        addr,
        handle,
        stop_accepting,
        acceptor,
        library_stop,
        library,
    })
}

impl RunningBroker {
    /// Drops connections from elsewhere.
    #[must_use]
    pub fn handle(&self) -> BrokerHandle {
        self.handle.clone()
    }

    /// Whether it accepts clients and routes their messages.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !self.acceptor.is_finished() && !self.library.is_finished()
    }

    /// Stops accepting, tells every client, waits for their handlers, then ends the core.
    pub async fn shutdown(self) {
        let _ = self.stop_accepting.send(());
        let drained = tokio::time::timeout(DRAIN_TIMEOUT, async {
            let Ok(mut clients) = self.acceptor.await else {
                return;
            };
            self.handle.stop_all();
            while clients.join_next().await.is_some() {}
        });
        if drained.await.is_err() {
            tracing::warn!("MQTT broker: some clients did not end within {DRAIN_TIMEOUT:?}");
        }
        self.library_stop.shutdown();
        if tokio::time::timeout(DRAIN_TIMEOUT, self.library)
            .await
            .is_err()
        {
            tracing::warn!("MQTT broker: the core did not end within {DRAIN_TIMEOUT:?}");
        }
    }
}

/// Every limit named, since the library's defaults are open.
fn library_config(clients_max: usize) -> LibraryConfig {
    LibraryConfig {
        bind_addresses: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
        max_clients: clients_max,
        session_expiry_interval: Duration::from_secs(3600),
        max_packet_size: PACKET_MAX_BYTES,
        topic_alias_maximum: 0,
        maximum_qos: 1,
        max_subscriptions_per_client: FILTERS_MAX,
        max_retained_messages: clients_max.saturating_mul(2),
        max_retained_message_size: RETAINED_MAX_BYTES,
        client_channel_capacity: 1024,
        max_outbound_inflight: INFLIGHT_MAX,
        server_receive_maximum: Some(INFLIGHT_MAX),
        sys_topics_enabled: false,
        storage_config: StorageConfig::new()
            .with_backend(StorageBackend::Memory)
            .with_max_queued_messages_per_client(10_000)
            .with_max_queued_bytes_per_client(64 * 1024 * 1024),
        ..LibraryConfig::default()
    }
}

#[derive(Clone)]
struct Parts {
    config: Arc<LibraryConfig>,
    router: Arc<MessageRouter>,
    storage: Option<Arc<DynamicStorage>>,
    stats: Arc<BrokerStats>,
    monitor: Arc<ResourceMonitor>,
}

struct Acceptor {
    tls: tokio_rustls::TlsAcceptor,
    fleet: FleetId,
    auth: Arc<dyn ClientAuth>,
    parts: Parts,
    handle: BrokerHandle,
    handshakes: Arc<Semaphore>,
    clients: Arc<Semaphore>,
}

impl Acceptor {
    async fn run(
        self: Arc<Self>,
        listener: TcpListener,
        mut stop: broadcast::Receiver<()>,
    ) -> JoinSet<()> {
        let mut clients = JoinSet::new();
        loop {
            tokio::select! {
                _ = stop.recv() => return clients,
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => {
                        let Ok(handshake) = Arc::clone(&self.handshakes).try_acquire_owned() else {
                            tracing::warn!(%peer, "MQTT: {HANDSHAKES_MAX} handshakes at once, connection dropped");
                            continue;
                        };
                        let acceptor = Arc::clone(&self);
                        clients.spawn(async move { acceptor.client(stream, peer, handshake).await });
                    }
                    Err(error) => {
                        // Out of file descriptors, mostly: give connections time to end.
                        tracing::warn!(%error, "MQTT: cannot accept connections");
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                },
                Some(_) = clients.join_next() => {}
            }
        }
    }

    async fn client(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        handshake: tokio::sync::OwnedSemaphorePermit,
    ) {
        let _ = stream.set_nodelay(true);
        let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, self.tls.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::info!(%peer, %error, "MQTT: TLS refused"),
            Err(_) => {
                return tracing::info!(%peer, "MQTT: no TLS handshake within {HANDSHAKE_TIMEOUT:?}");
            }
        };
        drop(handshake);
        let certificate = stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(|chain| chain.first());
        let Some(certificate) = certificate else {
            return tracing::warn!(%peer, "MQTT: no client certificate");
        };
        let identity = match self.auth.identify(certificate) {
            Ok(identity) => identity,
            Err(problem) => return tracing::warn!(%peer, problem, "MQTT: certificate refused"),
        };
        let Ok(_client) = self.clients.try_acquire() else {
            return tracing::warn!(%peer, client = %identity.client, "MQTT: too many clients, connection dropped");
        };
        // Registered before the admission check, so that a revocation in between is not missed.
        let client = identity.client.to_string();
        let (_registration, for_handler, mut dropped) = self.handle.register(client.clone());
        let auth = Arc::clone(&self.auth);
        let rules = ConnectionRules::new(self.fleet.clone(), identity, auth);
        let parts = self.parts.clone();
        let handler = ClientHandler::new(
            BrokerTransport::tls(TlsStreamWrapper::new(stream)),
            peer,
            parts.config,
            parts.router,
            Arc::new(rules),
            parts.storage,
            parts.stats,
            parts.monitor,
            for_handler,
        );
        tokio::select! {
            ended = handler.run() => {
                if let Err(error) = ended {
                    tracing::debug!(%peer, %client, %error, "MQTT: connection ended");
                }
            }
            () = async {
                let _ = dropped.recv().await;
                tokio::time::sleep(DROP_TIMEOUT).await;
            } => tracing::debug!(%peer, %client, "MQTT: connection cut"),
        }
    }
}
