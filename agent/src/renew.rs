//! Keeps the device's certificate alive: renews it in time, recovers it once it has ended.
//!
//! ```text
//!  two thirds of its life            connection down
//!          │                               │
//!          ▼                               ▼
//!   renew, over mutual TLS ◀──due──  ask who we are, over mutual TLS
//!          │        │                      │            │
//!          │   TLS refused, or cut         │       answered: not ours to cure
//!          │        └───────────┬──────────┘
//!          ▼                    ▼
//!          │         recover: TLS without certificate, proof of the key
//!          ▼                    │
//!   try the next certificate ◀──┘
//!          ▼
//!   adopt it: one write ─▶ confirm
//! ```
//! A server refuses a certificate whose time is over in the handshake, and what the device sees of it is
//! an alert or just a cut. Its own clock may not know that the time is over. So whatever breaks mutual
//! TLS leads to the recovery, and there the server says whether the certificate has ended at all. So
//! does a server that does not know the certificate: it may have been set back to a backup.

mod plan;

pub use plan::{Situation, due, pause};

use crate::config::Settings;
use crate::files::Disk;
use crate::http::{Client, HttpError, Limits, Proxy};
use crate::identity::{Identity, IdentityError};
use crate::throttle::Throttle;
use dunlin_protocol::command::{self, MessageError};
use dunlin_protocol::enroll::{
    IdentityView, RENEWAL_MAX_BYTES, RecoverRequest, RecoveryNonce, RenewRequest, RenewResponse,
};
use dunlin_protocol::id::{DeviceId, Digest};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

const QUEUE: usize = 8;
/// Least time between two attempts, however often the connection is lost.
const ATTEMPT_GAP: Duration = Duration::from_secs(1);
/// How long the server's word that the certificate is good is believed while connections fail: what is
/// broken then is something else, and a fleet that asked at every attempt would not help.
const BELIEVED: Duration = Duration::from_secs(300);

/// Why the certificate was not renewed. The present one is still in place.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The server cannot be asked, or refuses.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// Its answer is none.
    #[error(transparent)]
    Malformed(#[from] MessageError),
    /// Key, certificate or disk.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The next certificate was tried, and the server saw another.
    #[error("the server saw {device} with certificate {got}, expected {expected}")]
    Tried {
        /// Whom the server saw.
        device: DeviceId,
        /// The certificate tried.
        expected: Digest,
        /// The one that the server saw.
        got: Digest,
    },
    /// Mutual TLS failed, and so did the recovery.
    #[error("mutual TLS failed ({mutual}); recovery: {recovery}")]
    Recovery {
        /// What mutual TLS said.
        mutual: HttpError,
        /// What the recovery said.
        recovery: Box<RenewError>,
    },
}

impl RenewError {
    /// The server's own code, if it refused: waiting may not help, a person should know.
    #[must_use]
    pub fn refusal(&self) -> Option<&str> {
        match self {
            Self::Http(HttpError::Status { reason, .. }) => reason.as_deref(),
            Self::Recovery { recovery, .. } => recovery.refusal(),
            _ => None,
        }
    }
}

/// How a device came to a new certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// With the one before, in time.
    Renewed,
    /// By proof of its key, after the one before had ended.
    Recovered,
}

/// For the device's events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Code of the event.
    pub code: &'static str,
    /// For people.
    pub detail: String,
}

/// The task that renews; it ends when this is dropped.
#[derive(Debug)]
pub struct Renewal {
    nudge: Arc<Notify>,
    said: mpsc::Receiver<Said>,
}

impl Renewal {
    /// The connection was lost or not made: perhaps the certificate is why.
    pub fn nudge(&self) {
        self.nudge.notify_one();
    }

    /// The next thing worth an event; for ever pending if there is none.
    pub async fn said(&mut self) -> Said {
        match self.said.recv().await {
            Some(said) => said,
            None => std::future::pending().await,
        }
    }
}

/// Starts the task.
#[must_use]
pub fn start(identity: &Identity, disk: &Disk, settings: &Settings) -> Renewal {
    let (to, said) = mpsc::channel(QUEUE);
    let nudge = Arc::new(Notify::new());
    let limits = Limits::from(&settings.update);
    let proxy = Proxy::configured(settings.update.proxy.as_ref());
    let renewer = Renewer::new(identity, disk, limits).through(proxy);
    tokio::spawn(run(renewer, Arc::clone(&nudge), to));
    Renewal { nudge, said }
}

async fn run(renewer: Renewer, nudge: Arc<Notify>, to: mpsc::Sender<Said>) {
    let (mut failures, mut in_trouble) = (0_u32, false);
    let mut told: Option<String> = None;
    let mut warned = false;
    let mut good_until = Instant::now();
    loop {
        let situation = renewer.situation(failures, in_trouble);
        let next = Instant::now() + plan::pause(situation, random());
        tokio::select! {
            () = to.closed() => return,
            () = tokio::time::sleep_until(next) => {}
            // Trouble that is known of already does not shorten the wait.
            () = nudged(&nudge, good_until), if !in_trouble => in_trouble = true,
        }
        let situation = renewer.situation(failures, in_trouble);
        let is_due = situation.now >= situation.due;
        if !is_due && !in_trouble {
            continue;
        }
        let begun = Instant::now();
        let attempt = match is_due {
            true => renewer.renew_or_recover().await.map(Some),
            false => renewer.recover_if_ended().await,
        };
        let said = match attempt {
            Ok(done) => {
                (failures, in_trouble, told) = (0, false, None);
                warned &= done.is_none();
                if done.is_none() {
                    good_until = begun + BELIEVED;
                }
                done.map(|how| renewer.success(how))
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                tracing::info!(%error, failures, "certificate not renewed");
                let refusal = error.refusal().map(str::to_owned);
                let is_new = refusal.is_some() && refusal != told;
                told = refusal.or(told);
                let is_late = plan::is_late(renewer.situation(failures, in_trouble));
                if is_late && !std::mem::replace(&mut warned, true) {
                    let _ = to.try_send(renewer.warning(&error));
                }
                is_new.then(|| Said {
                    code: "certificate_refused",
                    detail: error.to_string(),
                })
            }
        };
        if let Some(said) = said {
            // The supervisor may be busy; an event is not worth waiting for its disk.
            let _ = to.try_send(said);
        }
        tokio::time::sleep_until(begun + ATTEMPT_GAP).await;
    }
}

/// Ready once there is trouble, and the server's last word is old.
async fn nudged(nudge: &Notify, good_until: Instant) {
    tokio::time::sleep_until(good_until).await;
    nudge.notified().await;
}

/// One device's renewals.
#[derive(Debug)]
pub struct Renewer {
    identity: Identity,
    disk: Disk,
    limits: Limits,
    proxy: Proxy,
    base_url: String,
}

impl Renewer {
    /// A renewer that reaches the server without a proxy.
    #[must_use]
    pub fn new(identity: &Identity, disk: &Disk, limits: Limits) -> Self {
        Self {
            identity: identity.clone(),
            disk: disk.clone(),
            limits,
            proxy: Proxy::none(),
            base_url: identity
                .enrolled
                .repository_url
                .trim_end_matches('/')
                .to_owned(),
        }
    }

    /// The same through a proxy, where it says so.
    #[must_use]
    pub fn through(self, proxy: Proxy) -> Self {
        Self { proxy, ..self }
    }

    /// Gets the next certificate with the present one or, if mutual TLS fails, by proof of its key.
    ///
    /// # Errors
    /// [`RenewError`]
    pub async fn renew_or_recover(&self) -> Result<How, RenewError> {
        match self.renew().await {
            Ok(()) => Ok(How::Renewed),
            Err(RenewError::Http(mutual)) => self.recover_from(mutual).await,
            Err(other) => Err(other),
        }
    }

    /// Recovers if the server does not let the present certificate in since its time is over; `None`:
    /// it does let it in.
    ///
    /// # Errors
    /// [`RenewError`]
    pub async fn recover_if_ended(&self) -> Result<Option<How>, RenewError> {
        let client = self.client(&self.identity.rustls_client_config());
        match self.view(&client).await {
            Ok(_) => Ok(None),
            Err(RenewError::Http(mutual)) => self.recover_from(mutual).await.map(Some),
            Err(other) => Err(other),
        }
    }

    /// With the present certificate.
    async fn renew(&self) -> Result<(), RenewError> {
        let key = self.identity.next_key()?;
        let request = RenewRequest {
            csr_pem: key.csr_pem(self.identity.enrolled.device.as_str())?,
        };
        let client = self.client(&self.identity.rustls_client_config());
        let answer = self.post(&client, "/identity/renew", &request).await?;
        let response: RenewResponse = read("renewal", &answer)?;
        self.try_and_adopt(key, response).await
    }

    async fn recover_from(&self, mutual: HttpError) -> Result<How, RenewError> {
        match mutual {
            // The server's refusal comes as an alert, or the alert is lost in the cut after it.
            HttpError::Tls { .. } | HttpError::Broken { .. } => {}
            // A server that was set back to a backup; the proof convinces it if that is so.
            HttpError::Status { ref reason, .. }
                if reason.as_deref() == Some("unknown_certificate") => {}
            other => return Err(other.into()),
        }
        match self.recover().await {
            Ok(()) => Ok(How::Recovered),
            Err(recovery) => Err(RenewError::Recovery {
                mutual,
                recovery: Box::new(recovery),
            }),
        }
    }

    /// Without a certificate, by proof of the key of the present one.
    async fn recover(&self) -> Result<(), RenewError> {
        let client = self.client(&self.identity.anonymous_tls()?);
        let nonce = self.post(&client, "/identity/recover/nonce", &()).await?;
        let nonce: RecoveryNonce = read("recovery nonce", &nonce)?;
        let key = self.identity.next_key()?;
        let csr_pem = key.csr_pem(self.identity.enrolled.device.as_str())?;
        let proof = self.identity.prove(&nonce.nonce, &csr_pem)?;
        let request = RecoverRequest {
            certificate_pem: self.identity.certificate_pem(),
            csr_pem,
            nonce: nonce.nonce,
            proof_hex: hex::encode(proof),
        };
        let answer = self.post(&client, "/identity/recover", &request).await?;
        let response: RenewResponse = read("recovery", &answer)?;
        self.try_and_adopt(key, response).await
    }

    async fn try_and_adopt(
        &self,
        key: crate::identity::DeviceKey,
        response: RenewResponse,
    ) -> Result<(), RenewError> {
        let candidate = self.identity.candidate(key, response.certificate_pem)?;
        let client = self.client(&candidate.rustls_client_config());
        let seen = self.view(&client).await?;
        let expected = candidate.certificate_sha256();
        if seen.certificate_sha256 != expected || seen.device != self.identity.enrolled.device {
            return Err(RenewError::Tried {
                device: seen.device,
                expected,
                got: seen.certificate_sha256,
            });
        }
        tokio::task::block_in_place(|| self.identity.adopt(&self.disk, &candidate))?;
        // Ends the one before. If the word is lost, the next connection says the same.
        if let Err(error) = self.post(&client, "/identity/confirm", &()).await {
            tracing::info!(%error, "the next certificate is in place, its confirmation was lost");
        }
        Ok(())
    }

    async fn view(&self, client: &Client) -> Result<IdentityView, RenewError> {
        let url = format!("{}/identity", self.base_url);
        let answer = client.get(&url, RENEWAL_MAX_BYTES as u64).await?;
        Ok(read("identity", &answer)?)
    }

    async fn post<T: serde::Serialize>(
        &self,
        client: &Client,
        path: &str,
        body: &T,
    ) -> Result<Vec<u8>, HttpError> {
        let url = format!("{}{path}", self.base_url);
        client.post_json(&url, body, RENEWAL_MAX_BYTES as u64).await
    }

    /// A connection of its own, so that the certificate shown is the one that is meant.
    fn client(&self, tls: &rustls::ClientConfig) -> Client {
        let throttle = Throttle::new(self.limits.bandwidth_bytes_s);
        Client::with(tls, self.limits, self.proxy.clone(), throttle)
    }

    fn situation(&self, failures: u32, in_trouble: bool) -> Situation {
        let validity = self.identity.validity();
        let digest = self.identity.certificate_sha256();
        let [a, b, c, d, ..] = *digest.as_bytes();
        Situation {
            now: self.identity.clock().now(),
            due: plan::due(validity, u32::from_be_bytes([a, b, c, d])),
            validity,
            failures,
            in_trouble,
        }
    }

    fn warning(&self, error: &RenewError) -> Said {
        let end = self.identity.validity().not_after;
        Said {
            code: "certificate_not_renewed",
            detail: format!("certificate ends {end}, renewing it fails: {error}"),
        }
    }

    fn success(&self, how: How) -> Said {
        let code = match how {
            How::Renewed => "certificate_renewed",
            How::Recovered => "certificate_recovered",
        };
        let certificate = self.identity.certificate_sha256().short();
        let until = self.identity.validity().not_after;
        Said {
            code,
            detail: format!("certificate {certificate} is in place, valid until {until}"),
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(
    what: &'static str,
    answer: &[u8],
) -> Result<T, MessageError> {
    command::parse(what, RENEWAL_MAX_BYTES, answer)
}

/// Spreads a fleet's attempts; without randomness they are merely not spread.
fn random() -> u32 {
    let mut bytes = [0_u8; 4];
    let _ = getrandom::fill(&mut bytes);
    u32::from_be_bytes(bytes)
}
