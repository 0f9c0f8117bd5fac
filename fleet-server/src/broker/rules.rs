//! Who may connect to the embedded broker, and what each may do there. The identity is the
//! certificate's; what it may do is looked up when it connects and holds for the connection, which
//! is dropped when the rights are taken.

use crate::acl;
use crate::clock;
use crate::consumer::{ConsumerName, ReadRights};
use crate::pki::peer_name;
use crate::store::{Standing, Store};
use dunlin_protocol::id::{DeviceId, Digest, FleetId};
use dunlin_protocol::topic::{device_may_publish, device_may_subscribe};
use mqtt5::broker::auth::{AuthProvider, AuthResult};
use mqtt5::packet::connect::ConnectPacket;
use mqtt5::types::ReasonCode;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Messages a second that a device may publish in the long run, and at once; beyond that it waits.
const PUBLISH_RATE: u32 = 200;
const PUBLISH_BURST: u32 = 400;

/// A future behind a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Whom a certificate's common name names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Client {
    /// A server of the fleet ([`acl::is_server_name`]).
    Server(DeviceId),
    /// A device.
    Device(DeviceId),
    /// A program besides the fleet's own.
    Consumer(ConsumerName),
}

impl Client {
    /// Whom a common name names, if anybody.
    ///
    /// # Errors
    /// Why it names nobody, in words.
    pub fn of_common_name(text: &str) -> Result<Self, String> {
        if let Some(consumer) = ConsumerName::of_common_name(text) {
            return Ok(Self::Consumer(consumer));
        }
        let name: DeviceId = text
            .parse()
            .map_err(|e| format!("client certificate's common name: {e}"))?;
        Ok(match acl::is_server_name(text) {
            true => Self::Server(name),
            false => Self::Device(name),
        })
    }
}

impl fmt::Display for Client {
    /// The client id that it must use.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(name) | Self::Device(name) => name.fmt(f),
            Self::Consumer(name) => name.client_id().fmt(f),
        }
    }
}

/// Who a client certificate belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Whom its common name names.
    pub client: Client,
    /// SHA-256 of the certificate (DER).
    pub cert_sha256: Digest,
}

/// What a connection may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rights {
    /// Everything.
    Server,
    /// Publish on its own up channels, subscribe to its own down channels.
    Device(DeviceId),
    /// Subscribe to what it was given, publish nothing.
    Consumer(ReadRights),
}

impl Rights {
    fn may_publish(&self, fleet: &FleetId, topic: &str) -> bool {
        match self {
            Self::Server => true,
            Self::Device(device) => device_may_publish(fleet, device, topic),
            Self::Consumer(_) => false,
        }
    }

    fn may_subscribe(&self, fleet: &FleetId, filter: &str) -> bool {
        match self {
            Self::Server => true,
            Self::Device(device) => device_may_subscribe(fleet, device, filter),
            Self::Consumer(rights) => rights.may_subscribe(fleet, filter),
        }
    }
}

/// What the broker asks about certificates.
pub trait ClientAuth: Send + Sync + 'static {
    /// Reads the identity from a verified client certificate (DER).
    ///
    /// # Errors
    /// Why the certificate names nobody, in words.
    fn identify(&self, certificate_der: &[u8]) -> Result<Identity, String>;

    /// What that identity may do now; `None` if it may not connect: not enrolled with exactly this
    /// certificate, or revoked.
    fn admits<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Option<Rights>>;
}

/// The real one: certificates as [`pki`](crate::pki) signs them, clients as the database knows them.
pub struct StoreAuth(pub Store);

impl ClientAuth for StoreAuth {
    fn identify(&self, certificate_der: &[u8]) -> Result<Identity, String> {
        let (name, cert_sha256) = peer_name(certificate_der)?;
        Ok(Identity {
            client: Client::of_common_name(&name)?,
            cert_sha256,
        })
    }

    fn admits<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Option<Rights>> {
        Box::pin(async {
            let sha256 = &identity.cert_sha256.0;
            match &identity.client {
                Client::Server(_) => Some(Rights::Server),
                Client::Device(name) => {
                    let now_ms = clock::now_ms();
                    let standing = self.0.admit(name, sha256, now_ms, now_ms).await;
                    let admitted = standing.is_ok_and(Standing::is_admitted);
                    admitted.then(|| Rights::Device(name.clone()))
                }
                Client::Consumer(name) => {
                    let rights = self.0.consumer_rights(name, sha256).await;
                    rights.ok().flatten().map(Rights::Consumer)
                }
            }
        })
    }
}

/// What one connection may do; its identity was fixed by its certificate.
pub(super) struct ConnectionRules {
    fleet: FleetId,
    identity: Identity,
    auth: Arc<dyn ClientAuth>,
    /// Empty until it is admitted: then nothing is allowed.
    rights: OnceLock<Rights>,
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
    pub(super) fn new(fleet: FleetId, identity: Identity, auth: Arc<dyn ClientAuth>) -> Self {
        Self {
            fleet,
            identity,
            auth,
            rights: OnceLock::new(),
            pace: Pace::default(),
        }
    }

    /// Why this client may not connect like that, if it may not.
    async fn refusal(&self, connect: &ConnectPacket) -> Option<&'static str> {
        if connect.client_id != self.identity.client.to_string() {
            return Some("the client id is not the certificate's common name");
        }
        let Some(rights) = self.auth.admits(&self.identity).await else {
            return Some("the certificate is revoked, replaced or not known here");
        };
        if let Some(will) = &connect.will
            && !rights.may_publish(&self.fleet, &will.topic)
        {
            return Some("the last will's topic is not the client's own");
        }
        self.rights.get_or_init(|| rights);
        None
    }

    fn is_server(&self) -> bool {
        matches!(self.rights.get(), Some(Rights::Server))
    }
}

impl AuthProvider for ConnectionRules {
    fn authenticate<'a>(
        &'a self,
        connect: &'a ConnectPacket,
        peer: SocketAddr,
    ) -> BoxFuture<'a, mqtt5::Result<AuthResult>> {
        Box::pin(async move {
            let client = &self.identity.client;
            Ok(match self.refusal(connect).await {
                None => AuthResult::success_with_user(client.to_string()),
                Some(why) => {
                    tracing::warn!(%peer, %client, client_id = %cut(&connect.client_id), "MQTT: CONNECT refused: {why}");
                    AuthResult::fail_with_reason(ReasonCode::NotAuthorized, why.to_owned())
                }
            })
        })
    }

    fn authorize_publish<'a>(
        &'a self,
        _: &str,
        _: Option<&'a str>,
        topic: &'a str,
    ) -> BoxFuture<'a, bool> {
        let rights = self.rights.get();
        let allowed = rights.is_some_and(|rights| rights.may_publish(&self.fleet, topic));
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
        let rights = self.rights.get();
        let allowed = rights.is_some_and(|rights| rights.may_subscribe(&self.fleet, filter));
        Box::pin(async move { allowed })
    }
}

/// For the library's own listener, which nobody has business with.
pub(super) struct RefuseEveryone;

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
