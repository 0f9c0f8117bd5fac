//! The embedded MQTT broker, behind Dunlin's own acceptor: mutual TLS, identity from the
//! certificate alone, per-device topic rules, a bound on everything.
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

use crate::acl;
use crate::clock;
use crate::pki::peer_identity;
use crate::store::{Standing, Store};
use dunlin_protocol::id::{DeviceId, Digest, FleetId};
use dunlin_protocol::topic::{device_may_publish, device_may_subscribe};
use mqtt5::broker::MqttBroker;
use mqtt5::broker::auth::{AuthProvider, AuthResult};
use mqtt5::broker::client_handler::ClientHandler;
use mqtt5::broker::config::{BrokerConfig as LibraryConfig, StorageBackend, StorageConfig};
use mqtt5::broker::resource_monitor::ResourceMonitor;
use mqtt5::broker::router::MessageRouter;
use mqtt5::broker::server::BrokerShutdownHandle;
use mqtt5::broker::storage::DynamicStorage;
use mqtt5::broker::sys_topics::BrokerStats;
use mqtt5::broker::tls_acceptor::TlsStreamWrapper;
use mqtt5::broker::transport::BrokerTransport;
use mqtt5::packet::connect::ConnectPacket;
use mqtt5::types::ReasonCode;
use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
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
/// Messages a second that a device may publish in the long run, and at once; beyond that it waits.
const PUBLISH_RATE: u32 = 200;
const PUBLISH_BURST: u32 = 400;

/// A future behind a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Who a client certificate belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate's common name.
    pub name: DeviceId,
    /// SHA-256 of the certificate (DER).
    pub cert_sha256: Digest,
}

/// What the broker asks about certificates.
pub trait DeviceAuth: Send + Sync + 'static {
    /// Reads the identity from a verified client certificate (DER).
    ///
    /// # Errors
    /// Why the certificate names nobody, in words.
    fn identify(&self, certificate_der: &[u8]) -> Result<Identity, String>;

    /// Whether that identity may connect now: enrolled with exactly this certificate, not
    /// revoked. The server's own names ([`acl::is_server_name`]) are not asked about.
    fn admits<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, bool>;
}

/// The real one: certificates as [`pki`](crate::pki) signs them, devices as the database knows them.
pub struct StoreAuth(pub Store);

impl DeviceAuth for StoreAuth {
    fn identify(&self, certificate_der: &[u8]) -> Result<Identity, String> {
        let (name, cert_sha256) = peer_identity(certificate_der)?;
        Ok(Identity { name, cert_sha256 })
    }

    fn admits<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, bool> {
        Box::pin(async {
            let (name, sha256) = (&identity.name, &identity.cert_sha256.0);
            let now_ms = clock::now_ms();
            let standing = self.0.admit(name, sha256, now_ms, now_ms).await;
            standing.is_ok_and(Standing::is_admitted)
        })
    }
}

/// What the broker needs to start.
pub struct BrokerConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Server certificate, and a verifier that demands a client certificate of the fleet's CA.
    pub tls: Arc<rustls::ServerConfig>,
    /// The fleet whose topics exist.
    pub fleet: FleetId,
    /// Certificates to identities, and revocation.
    pub auth: Arc<dyn DeviceAuth>,
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
    by_id: BTreeMap<u64, (DeviceId, broadcast::Sender<()>)>,
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
        let table = self.lock();
        let own = table.by_id.values().filter(|(name, _)| name == device);
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
        name: DeviceId,
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
        table.by_id.insert(id, (name, stop));
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
        max_subscriptions_per_client: 32,
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
    auth: Arc<dyn DeviceAuth>,
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
            return tracing::warn!(%peer, device = %identity.name, "MQTT: too many clients, connection dropped");
        };
        // Registered before the admission check, so that a revocation in between is not missed.
        let (_registration, for_handler, mut dropped) = self.handle.register(identity.name.clone());
        let device = identity.name.clone();
        let rules = ConnectionRules {
            fleet: self.fleet.clone(),
            identity,
            auth: Arc::clone(&self.auth),
            pace: Pace::default(),
        };
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
                    tracing::debug!(%peer, %device, %error, "MQTT: connection ended");
                }
            }
            () = async {
                let _ = dropped.recv().await;
                tokio::time::sleep(DROP_TIMEOUT).await;
            } => tracing::debug!(%peer, %device, "MQTT: connection cut"),
        }
    }
}

/// What one connection may do; its identity was fixed by its certificate.
struct ConnectionRules {
    fleet: FleetId,
    identity: Identity,
    auth: Arc<dyn DeviceAuth>,
    pace: Pace,
}

/// A token bucket as one moment: when the messages taken so far would have been due at the steady
/// rate. A message may be up to a burst early.
#[derive(Default)]
struct Pace {
    due: Mutex<Option<Instant>>,
}

impl Pace {
    /// Takes one message; how long it has to wait.
    fn take(&self, now: Instant) -> Duration {
        let step = Duration::from_secs(1) / PUBLISH_RATE;
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let next = due.map_or(now, |due| due.max(now)) + step;
        *due = Some(next);
        next.saturating_duration_since(now)
            .saturating_sub(step * PUBLISH_BURST)
    }
}

impl ConnectionRules {
    fn is_server(&self) -> bool {
        acl::is_server_name(self.identity.name.as_str())
    }
}

impl AuthProvider for ConnectionRules {
    fn authenticate<'a>(
        &'a self,
        connect: &'a ConnectPacket,
        peer: SocketAddr,
    ) -> BoxFuture<'a, mqtt5::Result<AuthResult>> {
        Box::pin(async move {
            let name = &self.identity.name;
            let refuse = |why: &str| {
                tracing::warn!(%peer, device = %name, client_id = %cut(&connect.client_id), "MQTT: CONNECT refused: {why}");
                Ok(AuthResult::fail_with_reason(
                    ReasonCode::NotAuthorized,
                    why.to_owned(),
                ))
            };
            if connect.client_id != name.as_str() {
                return refuse("the client id is not the certificate's common name");
            }
            let will_allowed = connect.will.as_ref().is_none_or(|will| {
                self.is_server() || device_may_publish(&self.fleet, name, &will.topic)
            });
            if !will_allowed {
                return refuse("the last will's topic is not the device's own");
            }
            if !self.is_server() && !self.auth.admits(&self.identity).await {
                return refuse("the certificate is revoked, replaced or not enrolled here");
            }
            Ok(AuthResult::success_with_user(name.as_str()))
        })
    }

    fn authorize_publish<'a>(
        &'a self,
        _: &str,
        _: Option<&'a str>,
        topic: &'a str,
    ) -> BoxFuture<'a, bool> {
        let allowed =
            self.is_server() || device_may_publish(&self.fleet, &self.identity.name, topic);
        Box::pin(async move {
            if !self.is_server() {
                let wait = self.pace.take(Instant::now());
                if !wait.is_zero() {
                    metrics::counter!("dunlin_broker_publishes_slowed_total").increment(1);
                    tokio::time::sleep(wait).await;
                }
            }
            allowed
        })
    }

    fn authorize_subscribe<'a>(
        &'a self,
        _: &str,
        _: Option<&'a str>,
        filter: &'a str,
    ) -> BoxFuture<'a, bool> {
        let allowed =
            self.is_server() || device_may_subscribe(&self.fleet, &self.identity.name, filter);
        Box::pin(async move { allowed })
    }
}

/// For the library's own listener, which nobody has business with.
struct RefuseEveryone;

impl AuthProvider for RefuseEveryone {
    fn authenticate<'a>(
        &'a self,
        _: &'a ConnectPacket,
        _: SocketAddr,
    ) -> BoxFuture<'a, mqtt5::Result<AuthResult>> {
        Box::pin(async { Ok(AuthResult::fail(ReasonCode::NotAuthorized)) })
    }

    fn authorize_publish<'a>(
        &'a self,
        _: &str,
        _: Option<&'a str>,
        _: &'a str,
    ) -> BoxFuture<'a, bool> {
        Box::pin(async { false })
    }

    fn authorize_subscribe<'a>(
        &'a self,
        _: &str,
        _: Option<&'a str>,
        _: &'a str,
    ) -> BoxFuture<'a, bool> {
        Box::pin(async { false })
    }
}

fn cut(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_a_flood_is_paced() {
        let (pace, now) = (Pace::default(), Instant::now());
        let waits: Vec<Duration> = (0..600).map(|_| pace.take(now)).collect();
        assert!(waits[..400].iter().all(Duration::is_zero));
        assert_eq!(waits[599], Duration::from_secs(1), "200 beyond the burst");
        let later = now + Duration::from_secs(10);
        assert!(pace.take(later).is_zero(), "idle time fills it again");
    }
}
