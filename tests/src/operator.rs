//! The operator's side of a test: keys, bundles, rollouts, by the very code of `dunlin`.

use anyhow::{Context as _, bail};
use dunlin::api::{ApiClient, Connection, CreateRollout, RolloutView};
use dunlin::context::{Session, certificate_sha256};
use dunlin::demo::models;
use dunlin::keys::{self, Ceremony};
use dunlin::pack::{PackRequest, PackedBundle, pack};
use dunlin::sign::{sign, verified_targets};
use dunlin::token::{self, Claim};
use dunlin_protocol::command::Probation;
use dunlin_protocol::enroll::ClaimToken;
use dunlin_protocol::id::{DeviceId, Family, RolloutId};
use dunlin_protocol::report::Reported;
use dunlin_protocol::trust::{SigningKey, TargetsMetadata};
use dunlin_server::rollout::policy::{GatePolicy, Policy, Stage, StageSize};
use dunlin_server::rollout::ratio::Ratio;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The model family of the tests.
pub const FAMILY: &str = "digits";
/// Longest wait for anything.
pub const TIMEOUT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);

/// Asks again and again until the answer is `Some`.
///
/// # Errors
/// Not within [`TIMEOUT`], with what was last seen; or asking failed.
pub async fn eventually<T>(
    what: &str,
    mut ask: impl AsyncFnMut() -> anyhow::Result<Result<T, String>>,
) -> anyhow::Result<T> {
    let begun = Instant::now();
    loop {
        match ask().await? {
            Ok(answer) => return Ok(answer),
            Err(seen) if begun.elapsed() > TIMEOUT => {
                bail!("{what}: not within {TIMEOUT:?}; last seen: {seen}")
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// An operator with a key folder and a token.
pub struct Operator {
    dir: PathBuf,
    /// The connection.
    pub session: Session,
    /// Two of the three targets keys.
    pub signers: Vec<SigningKey>,
    /// What is signed and published.
    pub targets: Option<TargetsMetadata>,
    /// [`FAMILY`].
    pub family: Family,
}

impl Operator {
    /// Makes keys and gives the server its first root.
    ///
    /// # Errors
    /// Whatever the server refuses.
    pub async fn new(dir: &Path, admin: &str, token: &str) -> anyhow::Result<Self> {
        let client = ApiClient::new(&Connection {
            url: format!("http://{admin}"),
            token: Some(token.to_owned()),
            ca_pem: None,
        })?;
        let fleet = client.fleet().await?;
        let keys_dir = dir.join("keys");
        let now = jiff::Timestamp::now();
        let root = keys::init(&keys_dir, &Ceremony::default(), &fleet.online_keys, now)?;
        client.put_root(&root).await?;
        let names = ["targets-1".to_owned(), "targets-2".to_owned()];
        Ok(Self {
            dir: dir.to_owned(),
            signers: keys::load(&keys_dir, &names)?,
            session: Session {
                client,
                fleet_ca_sha256: Some(certificate_sha256(&fleet.ca_pem)?),
                json: false,
            },
            targets: None,
            family: FAMILY.parse()?,
        })
    }

    /// The API.
    #[must_use]
    pub fn client(&self) -> &ApiClient {
        &self.session.client
    }

    /// A sealed claim token.
    ///
    /// # Errors
    /// Whatever the server refuses.
    pub async fn claim(&self, uses: u32) -> anyhow::Result<ClaimToken> {
        let claim = Claim {
            uses,
            expires_in: Duration::from_secs(3600),
            labels: [("site".to_owned(), "test".to_owned())].into(),
        };
        let sealed = token::create(&self.session, &self.dir.join("keys"), &claim).await?;
        Ok(sealed.token)
    }

    /// Packs one of the models (`v1`, `v2`, `v3`) as a version.
    ///
    /// # Errors
    /// The model does not meet its golden cases.
    pub fn pack(&self, model: &str, version: u64, floor: u64) -> anyhow::Result<PackedBundle> {
        let request = PackRequest {
            version: Some(version),
            rollback_floor: Some(floor),
            ..PackRequest::new(models::write(model, &self.dir.join("models"))?)
        };
        let out = self
            .dir
            .join("packed")
            .join(format!("{model}-{version}-{floor}"));
        // Packing is deterministic: the same model and version is the same bundle.
        if out.exists() {
            return Ok(PackedBundle::open(&out)?);
        }
        Ok(pack(&request, &out)?.0)
    }

    /// Targets that list the bundles too, signed by so many keys.
    ///
    /// # Errors
    /// A bundle changes what is signed already.
    pub fn signed(&self, bundles: &[PackedBundle], keys: usize) -> anyhow::Result<Vec<u8>> {
        let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24);
        let keys = &self.signers[..keys];
        Ok(sign(bundles, self.targets.as_ref(), keys, expires)?.bytes)
    }

    /// Signs and publishes.
    ///
    /// # Errors
    /// Whatever the server refuses.
    pub async fn publish(&mut self, bundle: &PackedBundle) -> anyhow::Result<()> {
        let bundles = std::slice::from_ref(bundle);
        let bytes = self.signed(bundles, 2)?;
        dunlin::publish::publish(self.client(), bundles, &bytes).await?;
        let root = keys::trusted_root(&self.dir.join("keys"), jiff::Timestamp::now())?;
        self.targets = Some(verified_targets(&root, &bytes)?);
        Ok(())
    }

    /// Creates a rollout.
    ///
    /// # Errors
    /// Whatever the server refuses.
    pub async fn roll_out(&self, version: u64, policy: Policy) -> anyhow::Result<RolloutId> {
        let request = CreateRollout {
            family: self.family.clone(),
            version,
            policy: Some(policy),
            selector: None,
            probation: Some(probation()),
        };
        Ok(self.client().create_rollout(&request).await?.id)
    }

    /// Waits until a rollout has ended; how.
    ///
    /// # Errors
    /// It does not end; why it does not move is in the error.
    pub async fn ended(&self, id: &RolloutId) -> anyhow::Result<RolloutView> {
        eventually("the rollout ends", async || {
            // The server may be down for a moment: some tests kill it.
            let Ok(view) = self.client().rollout(id).await else {
                return Ok(Err("the server does not answer".to_owned()));
            };
            let why = view.report.as_ref().map_or("", |r| r.headline()).to_owned();
            Ok(if view.state.has_ended() {
                Ok(view)
            } else {
                Err(why)
            })
        })
        .await
    }

    /// What a device last reported.
    ///
    /// # Errors
    /// The server does not know it.
    pub async fn reported(&self, device: &DeviceId) -> anyhow::Result<Option<Reported>> {
        let shown = self.client().device(device).await?;
        match shown.get("reported") {
            None | Some(serde_json::Value::Null) => Ok(None),
            Some(value) => Ok(Some(serde_json::from_value(value.clone())?)),
        }
    }

    /// Waits until a device is settled on a version.
    ///
    /// # Errors
    /// It never is; what it reported last is in the error.
    pub async fn on_version(&self, device: &DeviceId, version: u64) -> anyhow::Result<Reported> {
        eventually("the device is on the version", async || {
            let reported = self.reported(device).await?;
            let settled = reported.clone().filter(|r| {
                r.progress.is_terminal() && r.active.as_ref().is_some_and(|a| a.version == version)
            });
            Ok(settled.ok_or_else(|| format!("{device}: {reported:?}")))
        })
        .await
    }

    /// Waits until a device's update has ended, one way or the other, for this version.
    ///
    /// # Errors
    /// It does not end.
    pub async fn settled(&self, device: &DeviceId, version: u64) -> anyhow::Result<Reported> {
        eventually("the update ends", async || {
            let reported = self.reported(device).await?;
            let settled = reported.clone().filter(|r| {
                r.progress.is_terminal() && r.target.as_ref().is_some_and(|t| t.version == version)
            });
            Ok(settled.ok_or_else(|| format!("{device}: {reported:?}")))
        })
        .await
    }

    /// Waits until so many devices are connected.
    ///
    /// # Errors
    /// They never are.
    pub async fn online(&self, devices: usize) -> anyhow::Result<()> {
        eventually("every device is connected", async || {
            let online = [("online", "true".to_owned())];
            let got = self.client().devices(&online).await?.len();
            Ok(if got == devices {
                Ok(())
            } else {
                Err(format!("{got} of {devices}"))
            })
        })
        .await
        .context("devices")
    }
}

/// A short probation.
#[must_use]
pub fn probation() -> Probation {
    Probation {
        inferences: 5,
        time_ms: 300,
        errors_max: 0,
        deadline_ms: 60_000,
        ..Probation::default()
    }
}

/// All devices at once, no gate.
#[must_use]
pub fn all_at_once(seed: u64) -> Policy {
    Policy {
        stages: vec![stage("all", StageSize::Rest, 0)],
        gate: None,
        ..Policy::with_seed(seed)
    }
}

/// Three canaries, half, the rest, with the gate.
#[must_use]
pub fn gated(seed: u64, soak_ms: u64) -> Policy {
    Policy {
        stages: vec![
            stage("canary", StageSize::Count(3), soak_ms),
            stage("half", StageSize::Percent(Ratio::percent(50)), soak_ms),
            stage("rest", StageSize::Rest, 0),
        ],
        gate: Some(GatePolicy::default()),
        ..Policy::with_seed(seed)
    }
}

/// One stage.
#[must_use]
pub fn stage(name: &str, size: StageSize, soak_ms: u64) -> Stage {
    Stage {
        name: name.to_owned(),
        size,
        soak_ms,
    }
}
