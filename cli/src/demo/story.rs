//! The demo's story, step by step.

use super::DemoArgs;
use super::models;
use super::processes::{self, Addresses, DeviceDir, Process};
use super::rollouts::{policy_first, policy_gated};
use super::stream::{self, Fed, Stream};
use super::summary::{Check, RefusalSummary, RolloutSummary, Summary, VersionSummary};
use crate::api::{ApiClient, Connection};
use crate::context::{Session, certificate_sha256};
use crate::keys::{self, Ceremony};
use crate::pack::{PackRequest, PackedBundle, pack};
use crate::sign::{sign, verified_targets};
use crate::token::{self, Claim};
use anyhow::{Context as _, bail};
use dunlin_protocol::id::{DeviceId, Family};
use dunlin_protocol::report::Reported;
use dunlin_protocol::trust::{SigningKey, TargetsMetadata};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;

const FAMILY: &str = "digits";
const SAMPLE_EVERY_MS: u64 = 25;
pub(super) const STEP_TIMEOUT_MS: u64 = 60_000;
pub(super) const POLL_MS: u64 = 200;
/// Answers of each device before its time on a version can be compared with.
const BASELINE: u64 = 260;
const ENROL_AT_ONCE: usize = 4;

pub(super) struct Device {
    pub(super) id: DeviceId,
    process: Process,
    answered: Arc<AtomicU64>,
    feeder: Option<JoinHandle<Fed>>,
}

pub(super) struct Story {
    args: DemoArgs,
    pub(super) dir: PathBuf,
    program: PathBuf,
    pub(super) family: Family,
    begun: Instant,
    server: Option<(Process, Addresses)>,
    session: Option<Session>,
    signers: Vec<SigningKey>,
    targets: Option<TargetsMetadata>,
    pub(super) devices: Vec<Device>,
    stop: watch::Sender<bool>,
    fed: Vec<Fed>,
    checks: Vec<Check>,
    pub(super) rollouts: Vec<RolloutSummary>,
    pub(super) refusals: Vec<RefusalSummary>,
}

impl Story {
    pub(super) fn new(args: &DemoArgs, dir: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            args: args.clone(),
            dir: dir.to_owned(),
            program: std::env::current_exe().context("own program")?,
            family: FAMILY.parse()?,
            begun: Instant::now(),
            server: None,
            session: None,
            signers: Vec::new(),
            targets: None,
            devices: Vec::new(),
            stop: watch::channel(false).0,
            fed: Vec::new(),
            checks: Vec::new(),
            rollouts: Vec::new(),
            refusals: Vec::new(),
        })
    }

    /// Everything, in order. Fails only when it cannot go on; what merely came out wrong is a
    /// check that did not pass.
    pub(super) async fn tell(&mut self) -> anyhow::Result<()> {
        self.start_server().await?;
        self.make_keys().await?;
        let v1 = self.pack("v1", None, None, "v1")?;
        self.publish(std::slice::from_ref(&v1), 2).await?;
        self.enrol().await?;

        self.heading(
            "version 1 to every device: the first version has nothing to be compared with",
        );
        let id = self.roll_out(1, policy_first(self.args.seed)).await?;
        self.expect_outcome(&id, 1, "finished");
        self.baseline(1).await?;

        let v2 = self.pack("v2", None, None, "v2")?;
        self.publish(std::slice::from_ref(&v2), 2).await?;
        self.heading("version 2, better: three canaries, half, the rest");
        let id = self.roll_out(2, policy_gated(self.args.seed)).await?;
        self.expect_outcome(&id, 2, "finished");
        self.expect_versions(2).await?;
        self.baseline(2).await?;

        let v3 = self.pack("v3", None, None, "v3")?;
        self.publish(&[v3], 2).await?;
        self.heading("version 3, meets its golden cases, normalises for another camera");
        let id = self
            .roll_out(3, policy_gated(self.args.seed.wrapping_add(1)))
            .await?;
        self.expect_outcome(&id, 3, "stopped");
        self.expect_stopped_at_the_canaries();
        self.expect_versions(2).await?;

        self.attacks(&v1).await?;
        self.stop_streams().await;
        Ok(())
    }

    // ---- the fleet ---------------------------------------------------------------------------

    async fn start_server(&mut self) -> anyhow::Result<()> {
        self.heading("a fleet server: embedded broker with mutual TLS, SQLite, blob store");
        let (process, addresses) = processes::start_server(&self.program, &self.dir).await?;
        let token = addresses
            .token
            .clone()
            .context("the server printed no first token")?;
        self.say(&format!(
            "admin API {}, devices {}, broker {}",
            addresses.admin,
            addresses.devices,
            addresses
                .mqtt
                .map_or("external".to_owned(), |a| a.to_string())
        ));
        let client = ApiClient::new(&Connection {
            url: format!("http://{}", addresses.admin),
            token: Some(token),
            ca_pem: None,
        })?;
        let fleet = client.fleet().await?;
        self.session = Some(Session {
            client,
            fleet_ca_sha256: Some(certificate_sha256(&fleet.ca_pem)?),
            json: false,
        });
        self.server = Some((process, addresses));
        Ok(())
    }

    pub(super) fn session(&self) -> anyhow::Result<&Session> {
        self.session.as_ref().context("no server")
    }

    fn keys_dir(&self) -> PathBuf {
        self.dir.join("keys")
    }

    async fn make_keys(&mut self) -> anyhow::Result<()> {
        let client = &self.session()?.client;
        let online = client.fleet().await?.online_keys;
        let now = jiff::Timestamp::now();
        let root = keys::init(&self.keys_dir(), &Ceremony::default(), &online, now)?;
        client.put_root(&root).await?;
        let names = ["targets-1".to_owned(), "targets-2".to_owned()];
        self.signers = keys::load(&self.keys_dir(), &names)?;
        self.say("keys: 3 root, 3 targets, two of each must sign; the server never sees them");
        Ok(())
    }

    /// Packs one of the models, as another version if asked.
    pub(super) fn pack(
        &self,
        model: &str,
        version: Option<u64>,
        rollback_floor: Option<u64>,
        name: &str,
    ) -> anyhow::Result<PackedBundle> {
        let spec = models::write(model, &self.dir.join("models"))?;
        let request = PackRequest {
            version,
            rollback_floor,
            ..PackRequest::new(spec)
        };
        let (bundle, _) = pack(&request, &self.dir.join("packed").join(name))?;
        self.say(&format!(
            "packed {} version {} ({}), golden cases met",
            bundle.manifest.family,
            bundle.manifest.version,
            bundle.digest().short()
        ));
        Ok(bundle)
    }

    /// Signs with so many of the targets keys.
    pub(super) fn signed(
        &self,
        bundles: &[PackedBundle],
        signatures: usize,
    ) -> anyhow::Result<Vec<u8>> {
        let expires = keys::later(jiff::Timestamp::now(), Duration::from_secs(365 * 86_400));
        let signers = &self.signers[..signatures];
        Ok(sign(bundles, self.targets.as_ref(), signers, expires)?.bytes)
    }

    pub(super) async fn publish(
        &mut self,
        bundles: &[PackedBundle],
        signatures: usize,
    ) -> anyhow::Result<()> {
        let bytes = self.signed(bundles, signatures)?;
        let published = crate::publish::publish(&self.session()?.client, bundles, &bytes).await?;
        let root = keys::trusted_root(&self.keys_dir(), jiff::Timestamp::now())?;
        self.targets = Some(verified_targets(&root, &bytes)?);
        self.say(&format!(
            "published targets {}: {signatures} of 3 keys signed, {} blobs uploaded, {} known already",
            published.targets_version, published.uploaded, published.already_there
        ));
        Ok(())
    }

    async fn enrol(&mut self) -> anyhow::Result<()> {
        self.heading("devices: each a supervisor and an inference worker of its own");
        let claim = Claim {
            uses: u32::from(self.args.devices),
            expires_in: Duration::from_secs(3600),
            labels: BTreeMap::from([("site".to_owned(), "demo".to_owned())]),
        };
        let token = token::create(self.session()?, &self.keys_dir(), &claim)
            .await?
            .token
            .to_string();
        let names: Vec<String> = (1..=self.args.devices)
            .map(|n| format!("edge-{n:02}"))
            .collect();
        let mut dirs = Vec::new();
        for chunk in names.chunks(ENROL_AT_ONCE) {
            let mut enrolments = tokio::task::JoinSet::new();
            for name in chunk {
                let dir = DeviceDir::new(&self.dir, name)?;
                dirs.push(dir.clone());
                let (program, token) = (self.program.clone(), token.clone());
                enrolments.spawn(async move { dir.enroll(&program, &token).await });
            }
            while let Some(enrolled) = enrolments.join_next().await {
                enrolled??;
            }
        }
        for (n, dir) in (0_u64..).zip(&dirs) {
            let process = dir.start(&self.program)?;
            let answered = Arc::new(AtomicU64::new(0));
            let stream = Stream::new(self.args.seed, n, Arc::clone(&answered));
            let every = Duration::from_millis(SAMPLE_EVERY_MS);
            let feeder = stream::feed(dir.socket(), stream, every, self.stop.subscribe());
            self.devices.push(Device {
                id: dir.name.parse()?,
                process,
                answered,
                feeder: Some(tokio::spawn(feeder)),
            });
        }
        let want = self.devices.len();
        self.until("every device is connected", async |story| {
            let online = [("online", "true".to_owned())];
            Ok(story.session()?.client.devices(&online).await?.len() == want)
        })
        .await?;
        self.say(&format!(
            "{want} enrolled with one claim token, connected, each fed its own samples"
        ));
        self.check(
            "devices enrolled and connected",
            want.to_string(),
            want.to_string(),
        );
        Ok(())
    }

    /// Waits until each device has answered enough on a version to be compared with later.
    async fn baseline(&self, version: u64) -> anyhow::Result<()> {
        self.say(&format!(
            "collecting each device's own time on version {version}: {BASELINE} answers each"
        ));
        let from: Vec<u64> = self.answered();
        self.until("every device's baseline", async |story| {
            let now = story.answered();
            Ok(now
                .iter()
                .zip(&from)
                .all(|(now, from)| now - from >= BASELINE))
        })
        .await
    }

    fn answered(&self) -> Vec<u64> {
        let count = |d: &Device| d.answered.load(Ordering::Relaxed);
        self.devices.iter().map(count).collect()
    }

    /// Every device must serve this version, and say so itself.
    async fn expect_versions(&mut self, version: u64) -> anyhow::Result<()> {
        let devices = self.devices.len();
        let on = async |story: &Self| -> anyhow::Result<usize> {
            let mut on = 0;
            for device in &story.devices {
                let reported = story.reported(&device.id).await?;
                let active = reported.as_ref().and_then(|r| r.active.as_ref());
                let settled = reported.as_ref().is_some_and(|r| r.progress.is_terminal());
                on += usize::from(settled && active.is_some_and(|a| a.version == version));
            }
            Ok(on)
        };
        let all = self
            .until("every device reports the version", async |story| {
                Ok(on(story).await? == devices)
            })
            .await;
        let got = on(self).await?;
        if all.is_ok() {
            self.say(&format!(
                "{got} of {devices} devices report version {version}"
            ));
        }
        self.check(
            &format!("devices on version {version} afterwards"),
            devices.to_string(),
            got.to_string(),
        );
        Ok(())
    }

    pub(super) async fn reported(&self, device: &DeviceId) -> anyhow::Result<Option<Reported>> {
        let shown = self.session()?.client.device(device).await?;
        match shown.get("reported") {
            None | Some(serde_json::Value::Null) => Ok(None),
            Some(value) => Ok(Some(serde_json::from_value(value.clone())?)),
        }
    }

    // ---- telling -----------------------------------------------------------------------------

    pub(super) fn heading(&self, text: &str) {
        println!("\n{:>5.1} s  {text}", self.begun.elapsed().as_secs_f32());
    }

    pub(super) fn say(&self, text: &str) {
        println!("         {text}");
    }

    pub(super) fn check(&mut self, what: &str, expected: String, got: String) {
        self.checks.push(Check {
            what: what.to_owned(),
            passed: expected == got,
            expected,
            got,
        });
    }

    /// Waits for a condition, asked again and again.
    async fn until(
        &self,
        what: &str,
        condition: impl AsyncFn(&Self) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let begun = Instant::now();
        while !condition(self).await? {
            if begun.elapsed() > Duration::from_millis(STEP_TIMEOUT_MS) {
                bail!(
                    "{what}: not within {STEP_TIMEOUT_MS} ms (logs in {})",
                    self.dir.display()
                );
            }
            tokio::time::sleep(Duration::from_millis(POLL_MS)).await;
        }
        Ok(())
    }

    async fn stop_streams(&mut self) {
        // No receiver is left only if every stream has ended by itself.
        let _ = self.stop.send(true);
        for device in &mut self.devices {
            if let Some(feeder) = device.feeder.take()
                && let Ok(fed) = feeder.await
            {
                self.fed.push(fed);
            }
        }
        let failed: u64 = self.fed.iter().map(|f| f.failed).sum();
        if let Some(why) = self.fed.iter().find_map(|f| f.last_failure.as_ref()) {
            self.say(&format!("a request failed: {why}"));
        }
        self.check("requests that failed", "0".to_owned(), failed.to_string());
    }

    pub(super) fn summary(&self) -> Summary {
        let mut by_version: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for (version, (n, right)) in self.fed.iter().flat_map(|f| &f.by_version) {
            let sum = by_version.entry(*version).or_default();
            *sum = (sum.0 + n, sum.1 + right);
        }
        #[allow(clippy::cast_precision_loss)]
        let versions = by_version
            .into_iter()
            .map(|(version, (inferences, right))| VersionSummary {
                version,
                inferences,
                accuracy: right as f64 / inferences.max(1) as f64,
            })
            .collect();
        Summary {
            schema: "dunlin.demo-summary/1".to_owned(),
            seed: self.args.seed,
            devices: self.args.devices,
            duration_ms: millis(self.begun),
            passed: !self.checks.is_empty() && self.checks.iter().all(|c| c.passed),
            checks: self.checks.clone(),
            rollouts: self.rollouts.clone(),
            versions,
            refusals: self.refusals.clone(),
            requests_failed: self.fed.iter().map(|f| f.failed).sum(),
        }
    }

    pub(super) fn print_how_to_look(&self) {
        let Some((_, addresses)) = &self.server else {
            return;
        };
        println!(
            "\nThe fleet is left running in {}. Interrupt to end it.",
            self.dir.display()
        );
        if let Some(token) = &addresses.token {
            println!(
                "  export DUNLIN_SERVER=http://{} DUNLIN_TOKEN={token}",
                addresses.admin
            );
        }
        println!("  dunlin device list");
        println!("  dunlin rollout list");
        println!("  dunlin drift digits");
        println!("  API pages    http://{}/docs", addresses.admin);
        println!(
            "  inference    curl --unix-socket {}/edge-01/infer.sock http://localhost/v2/models/digits",
            self.dir.display()
        );
        println!(
            "  logs         {0}/server.log {0}/edge-01/agent.log",
            self.dir.display()
        );
    }

    /// Ends every process, in order; the folder goes with its owner.
    pub(super) async fn end(mut self) {
        let _ = self.stop.send(true);
        for device in &self.devices {
            device.process.ask_to_end();
        }
        for device in &mut self.devices {
            device.process.ended().await;
        }
        if let Some((mut server, _)) = self.server.take() {
            server.ask_to_end();
            server.ended().await;
        }
    }
}

pub(super) fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
