//! How long a bundle takes to be verified and staged, beside `sha256sum`, `cp` and `sync` of the
//! same file; and how much memory the agent needs for it, above its idle.
//!
//! `bench-staging AGENT FOLDER [ROUNDS] [MIB]`: AGENT is a program that runs as `AGENT agent run`,
//! FOLDER lies on the disk to measure. Prints Markdown.

use anyhow::{Context as _, bail, ensure};
use dunlin_agent::bundle::{Local, Receiver, TrustStore};
use dunlin_agent::files::Disk;
use dunlin_agent::http::{Client, Limits};
use dunlin_agent::identity::{DeviceKey, Enrolled, Identity};
use dunlin_agent::ledger::Ledger;
use dunlin_protocol::archive::Writer;
use dunlin_protocol::bundle::{
    Blob, DType, Files, HostFacts, Limits as Golden, Lineage, Manifest, Resources, Steps,
    TensorSpec,
};
use dunlin_protocol::command::{DesiredBundle, Probation};
use dunlin_protocol::enroll::EnrollResponse;
use dunlin_protocol::id::Digest;
use dunlin_protocol::repository::RepositoryFile;
use dunlin_protocol::trust::{
    MetaFile, Role, SigningKey, TargetCustom, TargetEntry, new_root, new_snapshot, new_targets,
    new_timestamp, sign_envelope,
};
use dunlin_server::pki::Pki;
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Time for the agent to come to rest before its idle is measured.
const SETTLE: Duration = Duration::from_secs(8);
const SAMPLE: Duration = Duration::from_millis(5);
const LIMIT: Duration = Duration::from_secs(300);

fn main() -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [agent, folder, rest @ ..] = &arguments[..] else {
        bail!("usage: bench-staging AGENT FOLDER [ROUNDS] [MIB]");
    };
    let number = |at: usize, default: usize| rest.get(at).map_or(Ok(default), |n| n.parse());
    let (rounds, mib) = (number(0, 9)?, number(1, 100)?);
    let dir = tempfile::Builder::new()
        .prefix("staging-")
        .tempdir_in(folder)?;
    let bundle = Bundle::make(dir.path(), mib << 20)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let identity = identity(dir.path())?;
    let times = runtime.block_on(measure_time(dir.path(), &bundle, &identity, rounds))?;
    times.print(mib);
    let memory = measure_memory(Path::new(agent), dir.path(), &bundle, &identity)?;
    memory.print(mib);
    Ok(())
}

/// A signed bundle in an archive, and its model as a plain file.
struct Bundle {
    archive: PathBuf,
    model: PathBuf,
    root: Vec<u8>,
    want: DesiredBundle,
}

impl Bundle {
    fn make(dir: &Path, length: usize) -> anyhow::Result<Self> {
        let model = noise(length);
        let model_file = dir.join("model.onnx");
        std::fs::write(&model_file, &model)?;
        let golden = b"{}".to_vec();
        let manifest = manifest(blob(&model), blob(&golden));
        let bytes = manifest.to_bytes()?;
        let custom = TargetCustom {
            family: manifest.family.clone(),
            version: 1,
            hardware: vec!["any".to_owned()],
            rollback_floor: 1,
            kind: "model".to_owned(),
        };
        let entry = TargetEntry::of(manifest.target_path(), &bytes, &custom);
        let want = DesiredBundle {
            family: manifest.family.clone(),
            version: 1,
            target: entry.path.clone(),
            digest: entry.sha256()?,
            rollout: None,
            probation: Probation::default(),
            asked: None,
        };
        let metadata = metadata(&entry)?;
        let root = metadata["1.root.json"].clone();
        let archive = dir.join("bundle.tar");
        let mut writer = Writer::new(std::io::BufWriter::new(std::fs::File::create(&archive)?));
        for (name, bytes) in &metadata {
            let file = RepositoryFile::metadata(name)?;
            writer.add(&file, bytes.len() as u64, &mut &bytes[..])?;
        }
        let target = RepositoryFile::target(&entry.consistent_path())?;
        writer.add(&target, bytes.len() as u64, &mut &bytes[..])?;
        for content in [&model, &golden] {
            let file = RepositoryFile::Blob(Digest::of(content));
            writer.add(&file, content.len() as u64, &mut &content[..])?;
        }
        let mut file = writer.finish()?;
        file.flush()?;
        file.get_ref().sync_all()?;
        Ok(Self {
            archive,
            model: model_file,
            root,
            want,
        })
    }
}

/// Bytes that nothing makes smaller.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(length).collect()
}

fn blob(bytes: &[u8]) -> Blob {
    Blob {
        sha256: Digest::of(bytes),
        length: bytes.len() as u64,
        packed: None,
    }
}

fn manifest(model: Blob, golden: Blob) -> Manifest {
    let tensor = |name: &str| TensorSpec {
        name: name.to_owned(),
        dtype: DType::FP32,
        shape: vec![1],
        layout: None,
    };
    Manifest {
        schema: Manifest::SCHEMA.to_owned(),
        kind: "model".to_owned(),
        family: "bench".parse().unwrap_or_else(|_| unreachable!("a name")),
        version: 1,
        inputs: vec![tensor("x")],
        outputs: vec![tensor("y")],
        steps: Steps::default(),
        application: None,
        labels: Vec::new(),
        limits: Golden {
            tolerance_abs: 1e-3,
            latency_budget_ms: 1000,
        },
        resources: Resources {
            ram_bytes: 1 << 20,
            disk_bytes: 1 << 20,
            arch: vec!["any".to_owned()],
            agent_min: "0.1.0".to_owned(),
        },
        lineage: Lineage::default(),
        capture: None,
        files: Files {
            model,
            golden,
            profile: None,
            card: None,
        },
    }
}

fn metadata(entry: &TargetEntry) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let end = Timestamp::now() + SignedDuration::from_hours(24);
    let keys = [1, 2, 3, 4].map(|n| SigningKey::from_seed(&[n; 32]));
    let roles = Role::ALL.into_iter().zip(&keys);
    let roles = roles.map(|(role, key)| (role, (vec![key.public_key()], 1)));
    let roles: BTreeMap<_, _> = roles.collect();
    let key = |role| &keys[Role::ALL.iter().position(|r| *r == role).unwrap_or(0)];
    let root = sign_envelope(new_root(1, end, &roles)?, &[key(Role::Root)])?.to_bytes();
    let entries = std::slice::from_ref(entry);
    let targets = sign_envelope(new_targets(1, end, entries), &[key(Role::Targets)])?.to_bytes();
    let listed = BTreeMap::from([("targets.json".to_owned(), MetaFile::of(1, &targets))]);
    let snapshot = new_snapshot(1, end, &listed);
    let snapshot = sign_envelope(snapshot, &[key(Role::Snapshot)])?.to_bytes();
    let timestamp = new_timestamp(1, end, &MetaFile::of(1, &snapshot));
    let timestamp = sign_envelope(timestamp, &[key(Role::Timestamp)])?.to_bytes();
    Ok(BTreeMap::from([
        ("1.root.json".to_owned(), root),
        ("1.targets.json".to_owned(), targets),
        ("1.snapshot.json".to_owned(), snapshot),
        ("timestamp.json".to_owned(), timestamp),
    ]))
}

/// A device of a fleet whose server and broker are nowhere.
fn identity(dir: &Path) -> anyhow::Result<(Enrolled, Digest)> {
    let (fleet, now) = ("bench".parse()?, Timestamp::now());
    let pki = Pki::open(&dir.join("pki"), &fleet, &["localhost".to_owned()], now)?;
    let key = DeviceKey::load_or_create(&dir.join("state"))?;
    let device = "bench-1".parse()?;
    let csr = pki.check_csr(&key.csr_pem("bench-1")?)?;
    let response = EnrollResponse {
        fleet,
        certificate_pem: pki.sign_device(csr, &device, now)?.pem,
        device,
        ca_pem: pki.ca_pem().to_owned(),
        root_json: String::new(),
        mqtt_host: "127.0.0.1".to_owned(),
        mqtt_port: 1,
        repository_url: "https://127.0.0.1:1".to_owned(),
        labels: BTreeMap::new(),
    };
    Ok(((&response).into(), pki.ca_sha256()))
}

/// Milliseconds, round by round.
#[derive(Default)]
struct Times {
    staged: Vec<f64>,
    hashed: Vec<f64>,
    copied: Vec<f64>,
    synced: Vec<f64>,
}

async fn measure_time(
    dir: &Path,
    bundle: &Bundle,
    (enrolled, ca): &(Enrolled, Digest),
    rounds: usize,
) -> anyhow::Result<Times> {
    let key = DeviceKey::load_or_create(&dir.join("state"))?;
    let identity = Identity::check(key, enrolled.clone(), ca)?;
    let limits = Limits {
        connect_timeout: Duration::from_secs(1),
        request_timeout: Duration::from_secs(1),
        rate_window: Duration::from_secs(30),
        rate_min_bytes_s: 1024,
        bandwidth_bytes_s: 0,
    };
    let client = Client::new(&identity.rustls_client_config(), limits);
    let mut times = Times::default();
    // The first round warms the page cache for both and is not counted.
    for round in 0..=rounds {
        let state = dir.join(format!("round-{round}"));
        TrustStore::new(&Disk::native(), &state).adopt_root(&bundle.root)?;
        let host = || HostFacts {
            arch: "any".to_owned(),
            agent_version: dunlin_agent::VERSION.to_owned(),
            ram_bytes: 1 << 40,
            disk_free_bytes: 1 << 40,
        };
        let (disk, host) = (Disk::native(), Box::new(host));
        let receiver = Receiver::with(client.clone(), "https://x", &disk, &state, "any", host)?;
        quiet();
        let begun = Instant::now();
        let local = Local::open_path(&bundle.archive)?;
        let (now, slot) = (Timestamp::now(), state.join("slots/a"));
        receiver
            .receive_local(&local, &bundle.want, now, &slot, |_, _| {})
            .await?;
        let staged = ms(begun);
        std::fs::remove_dir_all(&state)?;
        quiet();
        let copy = dir.join("copy");
        let hashed = timed(Command::new("sha256sum").arg(&bundle.model))?;
        let copied = timed(Command::new("cp").arg(&bundle.model).arg(&copy))?;
        let synced = timed(Command::new("sync").arg(&copy))?;
        std::fs::remove_file(&copy)?;
        if round > 0 {
            times.staged.push(staged);
            times.hashed.push(hashed);
            times.copied.push(copied);
            times.synced.push(synced);
        }
    }
    Ok(times)
}

/// Earlier rounds' writes must not be waited for in this one.
fn quiet() {
    rustix::fs::sync();
}

fn timed(command: &mut Command) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let done = command.stdout(Stdio::null()).status()?;
    ensure!(done.success(), "{command:?}: {done}");
    Ok(ms(begun))
}

fn ms(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1000.0
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

impl Times {
    fn print(&self, mib: usize) {
        let parts = self.hashed.iter().zip(&self.copied).zip(&self.synced);
        let tools: Vec<f64> = parts.map(|((a, b), c)| a + b + c).collect();
        let ratios: Vec<f64> = self.staged.iter().zip(&tools).map(|(a, b)| a / b).collect();
        println!(
            "Time, {mib} MiB, median of {} interleaved rounds:\n",
            ratios.len()
        );
        println!("| what | ms |\n|---|---|");
        for (what, values) in [
            ("verified and staged from an archive, durable", &self.staged),
            ("`sha256sum`", &self.hashed),
            ("`cp`", &self.copied),
            ("`sync`", &self.synced),
            ("the three together", &tools),
        ] {
            println!("| {what} | {:.0} |", median(values));
        }
        println!(
            "\nRatio, median of the rounds' own: **{:.2}** (at most 1.5)\n",
            median(&ratios)
        );
    }
}

/// A process that goes with this one.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// KiB.
struct Memory {
    idle_pss: u64,
    peak_pss: u64,
    idle_rss: u64,
    peak_rss: u64,
    samples: usize,
}

fn measure_memory(
    program: &Path,
    dir: &Path,
    bundle: &Bundle,
    (enrolled, ca): &(Enrolled, Digest),
) -> anyhow::Result<Memory> {
    let state = dir.join("state");
    let key = DeviceKey::load_or_create(&state)?;
    Identity::check(key, enrolled.clone(), ca)?.store(&state)?;
    let disk = Disk::native();
    TrustStore::new(&disk, &state).adopt_root(&bundle.root)?;
    let config = dir.join("agent.toml");
    let socket = dir.join("s");
    std::fs::write(
        &config,
        format!(
            "state_dir = {state:?}\n[inference]\nsocket = {socket:?}\n[log]\nlevel = \"error\"\n"
        ),
    )?;
    let run = |verb: &str| {
        let mut command = Command::new(program);
        command.args(["agent", verb, "--config"]).arg(&config);
        command.stdout(Stdio::null());
        command
    };
    let agent = Agent(run("run").spawn().context("the agent")?);
    std::thread::sleep(SETTLE);
    let pid = agent.0.id();
    let (idle_pss, idle_rss) = (pss(pid)?, status(pid, "VmHWM:")?);
    let put_in = run("install")
        .arg("--no-wait")
        .arg(&bundle.archive)
        .status()?;
    ensure!(put_in.success(), "install: {put_in}");
    let (begun, mut peak_pss, mut samples, mut staged) = (Instant::now(), 0, 0, false);
    let ledger = Ledger::new(&disk, &state);
    loop {
        peak_pss = peak_pss.max(pss(pid)?);
        samples += 1;
        // A slot that failed its trial is cleared soon after.
        staged |= state.join("models/bench/a/complete").exists();
        // Noise is no model: the trial says so, once all is received and staged.
        let ended = ledger.load()?.filter(|state| state.install.is_some());
        let model = ended.and_then(|state| state.models.into_values().next());
        if model.is_some_and(|model| model.under_way().is_none()) {
            break;
        }
        ensure!(begun.elapsed() < LIMIT, "not installed within {LIMIT:?}");
        std::thread::sleep(SAMPLE);
    }
    ensure!(staged, "it was never staged");
    Ok(Memory {
        idle_pss,
        peak_pss,
        idle_rss,
        peak_rss: status(pid, "VmHWM:")?,
        samples,
    })
}

fn pss(pid: u32) -> anyhow::Result<u64> {
    field(&format!("/proc/{pid}/smaps_rollup"), "Pss:")
}

fn status(pid: u32, name: &str) -> anyhow::Result<u64> {
    field(&format!("/proc/{pid}/status"), name)
}

fn field(path: &str, name: &str) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .context(path.to_owned())?
        .parse()
        .context(path.to_owned())
}

impl Memory {
    fn print(&self, mib: usize) {
        let kib = |n: u64| n as f64 / 1024.0;
        println!("Memory of the agent's supervisor, {mib} MiB installed from an archive:\n");
        println!("| MiB | idle | peak | above idle |\n|---|---|---|---|");
        for (what, idle, peak) in [
            (
                format!("PSS, {} samples", self.samples),
                self.idle_pss,
                self.peak_pss,
            ),
            (
                "RSS, the kernel's high-water mark".to_owned(),
                self.idle_rss,
                self.peak_rss,
            ),
        ] {
            let above = kib(peak.saturating_sub(idle));
            println!(
                "| {what} | {:.1} | {:.1} | **{above:.1}** |",
                kib(idle),
                kib(peak)
            );
        }
        println!(
            "\nAt most 20 MiB above idle. The worker that tries the model is a process of its own, with a memory limit of its own, and not in these figures."
        );
    }
}
