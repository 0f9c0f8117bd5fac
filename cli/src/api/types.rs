//! What the admin API sends and takes.

use dunlin_protocol::command::Probation;
use dunlin_protocol::id::{Digest, Family, FleetId, RolloutId};
use dunlin_server::rollout::model::RolloutState;
use dunlin_server::rollout::policy::Policy;
use dunlin_server::rollout::report::Report;
use dunlin_server::rollout::shadowed::Shadowed;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// `GET /api/v1/fleet`.
#[derive(Debug, Clone, Deserialize)]
pub struct Fleet {
    /// The fleet.
    pub fleet: FleetId,
    /// Life of the server's database.
    pub epoch: u64,
    /// The fleet CA's certificate.
    pub ca_pem: String,
    /// SHA-256 of that certificate (DER), as the server says; clients compute it themselves.
    #[serde(default)]
    pub ca_sha256: Option<Digest>,
    /// The keys that root must list for snapshot and timestamp.
    pub online_keys: OnlineKeys,
    /// The keys that wait for a root that lists them.
    #[serde(default)]
    pub next_online_keys: Option<OnlineKeys>,
    /// Base URL of the device listener.
    pub devices_url: String,
    /// The broker's address.
    pub mqtt: BrokerAddress,
    /// Newest root the server has.
    #[serde(default)]
    pub root_version: Option<u64>,
    /// Newest targets the server has.
    #[serde(default)]
    pub targets_version: Option<u64>,
}

/// Public keys that the server signs with, as TUF lists keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OnlineKeys {
    /// Signs snapshots.
    pub snapshot: Value,
    /// Signs timestamps.
    pub timestamp: Value,
}

/// Where devices find the broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerAddress {
    /// Host name or address.
    pub host: String,
    /// TLS port.
    pub port: u16,
}

/// `POST /api/v1/tokens`: the right to enrol. `Debug` hides the secret.
#[derive(Clone, Deserialize)]
pub struct IssuedClaim {
    /// For listing and withdrawing.
    pub id: String,
    /// What the device must show.
    pub secret: String,
    /// End of validity, as the server says it.
    #[serde(default)]
    pub expires_at: Value,
}

impl fmt::Debug for IssuedClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedClaim")
            .field("id", &self.id)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// `POST /api/v1/consumers`: all that a consumer needs besides its key.
#[derive(Debug, Clone, Deserialize)]
pub struct IssuedConsumer {
    /// Its name.
    pub name: String,
    /// The MQTT client id that it must use.
    pub client_id: String,
    /// Its certificate, PEM.
    pub certificate_pem: String,
    /// The CA that vouches for the broker, PEM.
    pub ca_pem: String,
    /// The broker.
    pub mqtt_host: String,
    /// Its port, with mutual TLS.
    pub mqtt_port: u16,
    /// What it can subscribe to.
    pub filters: Vec<String>,
    /// When its certificate ends, in milliseconds since 1970.
    pub expires_ms: i64,
}

/// `POST /api/v1/rollouts`.
#[derive(Debug, Clone, Serialize)]
pub struct CreateRollout {
    /// Model family.
    pub family: Family,
    /// Version to roll out.
    pub version: u64,
    /// Stages, thresholds and gate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// Labels of the devices it is for; all devices if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<BTreeMap<String, String>>,
    /// What each device must go through before the version is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probation: Option<Probation>,
}

/// A rollout as the server shows it; what is not named here is kept in `other`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RolloutView {
    /// Its id.
    pub id: RolloutId,
    /// Model family.
    pub family: Family,
    /// Version rolled out.
    pub version: u64,
    /// Where it stands.
    pub state: RolloutState,
    /// Counts by stage and why it is not moving; absent before the planner's first tick.
    #[serde(default)]
    pub report: Option<Report>,
    /// How it does in the shadow of what serves, if it is compared.
    #[serde(default)]
    pub shadow: Option<Shadowed>,
    /// Everything else: policy, verdicts, device rows.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}
