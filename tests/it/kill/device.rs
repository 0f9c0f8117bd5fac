//! A device as whole processes, and what must hold on its disk after each SIGKILL.

use dunlin_agent::bundle::stage;
use dunlin_agent::config::Settings;
use dunlin_agent::device::Phase;
use dunlin_agent::files::Disk;
use dunlin_agent::ledger::Ledger;
use dunlin_agent::telemetry::{Limits, TelemetryHandle};
use dunlin_protocol::command::{Ack, DesiredBundle};
use dunlin_protocol::id::{BootId, DeviceId, Revision};
use dunlin_server::store::Store;
use dunlin_tests::fleet::agent_settings;
use dunlin_tests::operator::eventually;
use dunlin_tests::process::{Process, children_of, kill_child};
use dunlin_tests::random::Random;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest wait for the point of progress at which to kill; whatever is reached then is as good.
const POINT_TIMEOUT: Duration = Duration::from_secs(5);

/// What was killed.
#[derive(Debug, Default, Clone)]
pub(crate) struct Kills {
    pub(crate) supervisors: u64,
    pub(crate) workers: u64,
    /// By the phase that the update was in.
    pub(crate) by_phase: BTreeMap<&'static str, u64>,
    /// Durable segments found in dead agents' folders.
    pub(crate) segments_seen: u64,
}

/// A device whose agent is a process.
pub(crate) struct Device {
    pub(crate) id: DeviceId,
    pub(crate) settings: Settings,
    pub(crate) kills: Kills,
    /// Segments that were durable when the agent was killed.
    pub(crate) durable: BTreeMap<BootId, BTreeSet<u64>>,
    program: PathBuf,
    dir: PathBuf,
    agent: Option<Process>,
}

impl Device {
    /// A folder and a configuration; not enrolled yet.
    pub(crate) fn new(program: &Path, dir: &Path, name: &str) -> Self {
        let dir = dir.join(name);
        Self {
            id: name.parse().unwrap(),
            settings: agent_settings(&dir, name).unwrap(),
            kills: Kills::default(),
            durable: BTreeMap::new(),
            program: program.to_owned(),
            dir,
            agent: None,
        }
    }

    /// From its next start on, fetches slowly enough to be killed in the middle of a blob.
    pub(crate) fn fetch_slowly(&self) {
        let config = self.dir.join("agent.toml");
        let text = std::fs::read_to_string(&config).unwrap();
        std::fs::write(config, text + "[update]\nbandwidth_kib_s = 16\n").unwrap();
    }

    /// Starts the agent; to be called from the test's own thread.
    pub(crate) fn start(&mut self) {
        let config = self.dir.join("agent.toml");
        let arguments = ["agent", "run", "--config", config.to_str().unwrap()];
        let log = self.dir.join("agent.log");
        self.agent = Some(Process::start(&self.program, &arguments, &log).unwrap());
    }

    /// Ends the agent in order.
    pub(crate) async fn stop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let status = agent.terminate().await.unwrap();
            assert!(status.success(), "{status}: {}", agent.log_tail());
        }
    }

    /// The last lines of the agent's log.
    pub(crate) fn log_tail(&self) -> String {
        self.agent
            .as_ref()
            .map(Process::log_tail)
            .unwrap_or_default()
    }

    /// Asks for a version, waits for a random point of the update (while it is `fetching`, if so
    /// told) and kills the supervisor or one of its children there.
    pub(crate) async fn kill_while_updating(
        &mut self,
        store: &Store,
        want: &DesiredBundle,
        fetching: bool,
        random: &mut Random,
    ) {
        let wanted = [(self.id.clone(), vec![want.clone()])];
        let revision = store.set_desired(&wanted).await.unwrap()[0];
        self.random_point(revision, fetching, random).await;
        if random.below(2) == 0 {
            self.kill_supervisor().await;
            self.start();
        } else {
            self.kill_worker(random).await;
        }
    }

    async fn random_point(&self, revision: Revision, fetching: bool, random: &mut Random) {
        // 0: at any moment at all; else once the update has come as far as this.
        let least = if fetching { 1 } else { random.below(5) };
        let reached = async {
            while least > 0 && self.progress(revision).is_none_or(|at| at < least) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let _ = tokio::time::timeout(POINT_TIMEOUT, reached).await;
        let spread_ms = match (fetching, least) {
            (true, _) => 400,
            (false, 0) => 600,
            // Most phases are brief: as many kills within the next millisecond as in the next 100.
            _ => 1 << random.below(9),
        };
        tokio::time::sleep(Duration::from_millis(random.below(spread_ms))).await;
    }

    fn progress(&self, revision: Revision) -> Option<u64> {
        let state = self.ledger().load().ok()??;
        let model = state.models.into_values().next().unwrap_or_default();
        (state.revision == revision).then_some(match model.phase {
            Phase::Receiving { .. } => 1,
            Phase::Trial { .. } | Phase::Shadow { .. } => 2,
            Phase::Waiting { .. } | Phase::Probation { .. } => 3,
            Phase::RollingBack { .. } | Phase::Idle { .. } => 4,
        })
    }

    fn note_phase(&mut self) {
        let state = self.ledger().load().unwrap();
        let model = state.and_then(|s| s.models.into_values().next());
        let phase = match model.map(|model| model.phase) {
            None => "new",
            Some(Phase::Receiving { .. }) => "receiving",
            Some(Phase::Trial { .. }) => "trial",
            Some(Phase::Shadow { .. }) => "shadow",
            Some(Phase::Waiting { .. }) => "waiting",
            Some(Phase::Probation { .. }) => "probation",
            Some(Phase::RollingBack { .. }) => "rolling back",
            Some(Phase::Idle { .. }) => "idle",
        };
        *self.kills.by_phase.entry(phase).or_default() += 1;
    }

    pub(crate) async fn kill_supervisor(&mut self) {
        self.note_phase();
        let mut agent = self.agent.take().unwrap();
        agent.kill().await.unwrap();
        self.kills.supervisors += 1;
        self.slots_are_whole();
        self.remember_durable().await;
    }

    /// The serving worker or the process of a trial, whichever is there.
    pub(crate) async fn kill_worker(&mut self, random: &mut Random) {
        let supervisor = self.agent.as_ref().unwrap().pid();
        let child = eventually("a worker", async || {
            let children = children_of(supervisor);
            let n = random.below(children.len() as u64);
            let child = children.get(usize::try_from(n)?).copied();
            Ok(child.ok_or_else(|| "none".to_owned()))
        });
        let child = child.await.unwrap();
        self.note_phase();
        // A trial may have ended by itself in between.
        if kill_child(child).is_ok() {
            self.kills.workers += 1;
        }
    }

    fn ledger(&self) -> Ledger {
        Ledger::new(&Disk::native(), &self.settings.state_dir)
    }

    /// The ledger reads, and what it and `current` say is served is whole.
    fn slots_are_whole(&self) {
        let state = self.ledger().load().unwrap();
        let slots = self.settings.state_dir.join("models/digits");
        let current = std::fs::read_link(slots.join("current")).ok();
        if let Some(current) = &current {
            let found = stage::check(&Disk::native(), &slots.join(current));
            assert!(
                matches!(found, Ok(Some(_))),
                "{}: current -> {current:?}: {found:?}; {state:?}",
                self.id
            );
        }
        let model = state.as_ref().and_then(|s| s.models.values().next());
        if let Some(kept) = model.and_then(|model| model.kept.as_ref()) {
            let found = stage::check(&Disk::native(), &slots.join(kept.slot.name())).unwrap();
            assert_eq!(
                found.map(|s| s.digest),
                Some(kept.bundle.digest),
                "{state:?}"
            );
            assert!(current.is_some(), "something is kept, nothing is served");
        }
    }

    /// Reads a copy of the dead agent's buffer: what is in it now must reach the server.
    async fn remember_durable(&mut self) {
        let from = self.settings.state_dir.join("telemetry");
        if !from.exists() {
            return;
        }
        let copy = tempfile::tempdir_in(&self.dir).unwrap();
        copy_dir(&from, copy.path());
        let limits = Limits {
            max_bytes: self.settings.telemetry.max_mib << 20,
            ..Limits::default()
        };
        let (buffer, opened) = TelemetryHandle::open(copy.path(), limits).await.unwrap();
        assert_eq!(
            (&opened.set_aside, &opened.problem),
            (&None, &None),
            "{}",
            self.id
        );
        let numbers = self.durable.entry(opened.boot).or_default();
        let mut seen = 0;
        loop {
            let batch = buffer.next_batch().await;
            if batch.is_empty() {
                break;
            }
            let segments: Vec<u64> = batch.iter().map(|s| s.segment).collect();
            seen += segments.len();
            numbers.extend(&segments);
            let boot = opened.boot;
            buffer
                .ack(Ack {
                    boot,
                    segments,
                    server_time_ms: None,
                })
                .await;
        }
        assert_eq!(seen, opened.segments, "{}", self.id);
        self.kills.segments_seen += seen as u64;
        buffer.close().await;
    }

    /// Waits until the server has every segment that was durable at a kill, or was told that it
    /// had to be dropped.
    pub(crate) async fn durable_has_arrived(&self, store: &Store) {
        for (boot, durable) in &self.durable {
            eventually("every durable record arrives", async || {
                let mut there = store.segment_numbers(&self.id, boot).await?;
                there.extend(store.gap_segments(&self.id, boot).await?);
                let missing: Vec<u64> = durable.difference(&there).copied().collect();
                Ok(if missing.is_empty() {
                    Ok(())
                } else {
                    Err(format!("{}: boot {boot:?} lacks {missing:?}", self.id))
                })
            })
            .await
            .unwrap();
        }
    }
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}
