//! The worker process: commands in, windows out, inference in between.

use super::at_work::AtWork;
use super::capture::{CaptureCharge, tell_samples};
use super::confine::{
    ConfineError, Confinement, Enforced, Needs, confine, offer_to_oom_killer, seal,
};
use super::golden::trial;
use super::listen::{GrpcAddress, ListenError, Listening, Sockets};
use super::loading::{Beside, Loaded, beside_requests, load};
use super::models::{Models, Served};
use super::observe::Totals;
use super::serve::{Api, Limits};
use super::shadow::Challenger;
use super::turns::RulesByModel;
use crate::clients::Clients;
use crate::detect::watch::Watch;
use crate::pipe::{FromWorker, LINE_MAX_BYTES, ToWorker};
use dunlin_protocol::command::Shadow;
use dunlin_protocol::id::Digest;
use dunlin_protocol::report::ShadowReport;
use std::collections::BTreeMap;
use std::io::{BufRead as _, Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

/// Words to the supervisor that wait for it to read; beyond, windows stay where they are counted.
const QUEUE: usize = 64;
const TICK_MAX: Duration = Duration::from_millis(250);
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// Longest time for requests in flight when told to drain; the supervisor waits a little longer.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(6);
/// Longest time the last windows may take to be read.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(2);
/// Stack of threads that load and run models, in a trial and in service alike. Stacks count towards
/// the memory limit.
const STACK_BYTES: usize = 2 << 20;
/// Stack of the two threads at the pipe.
const PIPE_STACK_BYTES: usize = 256 << 10;

/// Arguments of the inference worker.
#[derive(Debug, Clone, clap::Args)]
pub struct WorkerArgs {
    /// Unix socket of the inference API.
    #[arg(long, required_unless_present = "trial")]
    pub socket: Option<PathBuf>,
    /// Loopback address of the inference API, besides the socket.
    #[arg(long)]
    pub listen: Option<SocketAddr>,
    /// Where gRPC is served: an absolute path, or a loopback address and port.
    #[arg(long)]
    pub grpc_listen: Option<GrpcAddress>,
    /// Number of the group that Unix sockets belong to.
    #[arg(long)]
    pub socket_gid: Option<u32>,
    /// Which clients may ask for which models, as JSON; everybody for everything otherwise.
    #[arg(long, value_parser = clients_of_json)]
    pub clients: Option<Clients>,
    /// Queue, concurrency, priority and share of models, as JSON by family.
    #[arg(long, value_parser = rules_of_json)]
    pub rules: Option<ModelRules>,
    /// Segments that all requests on this device belong to unless they say another, as JSON by key.
    #[arg(long, value_parser = segments_of_json)]
    pub segments: Option<DeviceSegments>,
    /// For whom inputs may be kept, as JSON; nothing is kept otherwise.
    #[arg(long)]
    pub capture: Option<CaptureCharge>,
    /// Length of a drift window, in milliseconds.
    #[arg(long, default_value_t = 60_000, value_parser = clap::value_parser!(u32).range(10..=86_400_000))]
    pub window_ms: u32,
    /// Folder of staged bundles, the only one that may be read; may be given again.
    #[arg(long, value_name = "DIR")]
    pub models: Vec<PathBuf>,
    /// Most private writable memory this process may have, in bytes.
    #[arg(long)]
    pub memory_limit_bytes: Option<u64>,
    /// Say on standard output what is being loaded or computed on, before it is.
    #[arg(long)]
    pub say_at_work: bool,
    /// Largest body of an inference request, in bytes.
    #[arg(long, default_value_t = 64 << 20)]
    pub body_max_bytes: usize,
    /// Try the bundle staged in this folder, print one JSON line about it and exit.
    #[arg(long, value_name = "DIR")]
    pub trial: Option<PathBuf>,
}

/// Rules by model, as an argument.
#[derive(Debug, Clone, Default)]
pub struct ModelRules(pub RulesByModel);

/// A device's own segments by key, as an argument.
#[derive(Debug, Clone, Default)]
pub struct DeviceSegments(pub BTreeMap<String, String>);

fn segments_of_json(text: &str) -> Result<DeviceSegments, String> {
    serde_json::from_str(text)
        .map(DeviceSegments)
        .map_err(|e| e.to_string())
}

fn rules_of_json(text: &str) -> Result<ModelRules, String> {
    serde_json::from_str(text)
        .map(ModelRules)
        .map_err(|e| e.to_string())
}

fn clients_of_json(text: &str) -> Result<Clients, String> {
    serde_json::from_str(text).map_err(|e| e.to_string())
}

/// Why the worker cannot work.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// No socket was named.
    #[error("--socket is missing")]
    NoSocket,
    /// The process cannot be confined.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// The sockets cannot be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The system refuses threads, signals or the runtime.
    #[error("inference worker: {0}")]
    System(#[from] std::io::Error),
    /// The supervisor stopped listening.
    #[error("the supervisor does not read any more")]
    Unheard,
}

/// Runs the worker process: confined first, then a trial or service until the end of standard
/// input, `Drain` or SIGTERM.
#[must_use]
pub fn main(args: WorkerArgs) -> ExitCode {
    let _ = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_max_level(tracing::Level::INFO)
        .try_init();
    match confined(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the inference worker ends");
            ExitCode::FAILURE
        }
    }
}

fn confined(args: WorkerArgs) -> Result<(), WorkerError> {
    // Under memory pressure the kernel takes a trial first, then the worker, the supervisor last.
    let first = if args.trial.is_some() { 1000 } else { 500 };
    offer_to_oom_killer(first);
    let landlock = confine(&needs(&args))?;
    match &args.trial {
        // Nothing is opened any more; `execve` and the network go before the model comes.
        Some(slot) => {
            seal()?;
            print_trial(slot)
        }
        None => serve(args, landlock),
    }
}

fn needs(args: &WorkerArgs) -> Needs {
    if let Some(slot) = &args.trial {
        return Needs {
            memory_limit_bytes: args.memory_limit_bytes,
            read: vec![slot.clone()],
            ..Needs::default()
        };
    }
    let (grpc_socket, grpc_tcp) = match &args.grpc_listen {
        Some(GrpcAddress::Unix(path)) => (Some(path), None),
        Some(GrpcAddress::Tcp(address)) => (None, Some(address)),
        None => (None, None),
    };
    let folder = |socket: &PathBuf| match socket.parent() {
        Some(folder) if folder != Path::new("") => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    let ports = args.listen.iter().chain(grpc_tcp);
    Needs {
        memory_limit_bytes: args.memory_limit_bytes,
        read: args.models.clone(),
        socket_dirs: args.socket.iter().chain(grpc_socket).map(folder).collect(),
        listen_ports: ports.map(SocketAddr::port).collect(),
        ..Needs::default()
    }
}

fn print_trial(slot: &Path) -> Result<(), WorkerError> {
    let slot = slot.to_owned();
    let report = std::thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(move || trial(&slot))?
        .join()
        .map_err(|_| std::io::Error::other("the trial panicked"))?;
    let mut line = serde_json::to_vec(&report).map_err(std::io::Error::from)?;
    line.push(b'\n');
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&line)?;
    Ok(stdout.flush()?)
}

fn serve(args: WorkerArgs, landlock: Enforced) -> Result<(), WorkerError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(cores() + 2)
        .thread_stack_size(STACK_BYTES)
        .enable_all()
        .build()?;
    let (command_tx, commands) = mpsc::channel(QUEUE);
    let (out, mut out_rx) = mpsc::channel(QUEUE);
    std::thread::Builder::new()
        .name("commands".to_owned())
        .stack_size(PIPE_STACK_BYTES)
        .spawn(move || read_commands(&command_tx))?;
    let (written, all_written) = std::sync::mpsc::channel();
    std::thread::Builder::new()
        .name("words".to_owned())
        .stack_size(PIPE_STACK_BYTES)
        .spawn(move || {
            write_words(&mut out_rx);
            let _ = written.send(());
        })?;
    let sealed = move || {
        let seccomp = seal()?;
        Ok(Some(Confinement { landlock, seccomp }))
    };
    let at_work = if args.say_at_work {
        AtWork::said_by(write_word)
    } else {
        AtWork::silent()
    };
    let result = runtime.block_on(run_until_drained(args, commands, out, at_work, sealed));
    let _ = all_written.recv_timeout(LAST_WORDS_TIMEOUT);
    // A model that still computes must not hold the exit up.
    runtime.shutdown_background();
    result
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Passes commands on until standard input ends: then the supervisor is gone, and so is the worker
/// soon after, even if it hangs.
fn read_commands(commands: &mpsc::Sender<ToWorker>) {
    let mut input = std::io::stdin().lock();
    let limit = u64::try_from(LINE_MAX_BYTES).unwrap_or(u64::MAX);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut input).take(limit).read_until(b'\n', &mut line) {
            Ok(0) => break,
            Ok(_) if line.last() == Some(&b'\n') => {}
            Ok(n) => {
                tracing::error!(bytes = n, "a command without an end; draining");
                break;
            }
            Err(error) => {
                tracing::error!(%error, "standard input cannot be read; draining");
                break;
            }
        }
        match serde_json::from_slice(&line) {
            Ok(command) => {
                if commands.blocking_send(command).is_err() {
                    return;
                }
            }
            // A newer supervisor may know more commands.
            Err(error) => tracing::warn!(%error, "a command was not understood; ignored"),
        }
    }
    if commands.blocking_send(ToWorker::Drain).is_ok() {
        std::thread::sleep(DRAIN_TIMEOUT + 2 * LAST_WORDS_TIMEOUT);
        std::process::exit(1);
    }
}

/// Writes words to standard output until there are no more, or nobody reads them.
fn write_words(words: &mut mpsc::Receiver<FromWorker>) {
    while let Some(word) = words.blocking_recv() {
        if let Err(error) = write_word(&word) {
            tracing::error!(%error, "the supervisor does not read");
            return;
        }
    }
}

/// Writes one word whole; one that is too long for the supervisor is dropped.
fn write_word(word: &FromWorker) -> std::io::Result<()> {
    let mut line = match serde_json::to_vec(word) {
        Ok(line) if line.len() < LINE_MAX_BYTES => line,
        Ok(line) => {
            let bytes = line.len();
            tracing::error!(bytes, "a line too long for the supervisor; dropped");
            return Ok(());
        }
        Err(error) => {
            tracing::error!(%error, "a word that is no JSON; dropped");
            return Ok(());
        }
    };
    line.push(b'\n');
    let mut output = std::io::stdout().lock();
    output.write_all(&line)?;
    output.flush()
}

/// Serves until `Drain`, SIGTERM or the end of `commands`, in a process that nothing is taken from.
/// Needs a tokio runtime with I/O and time.
///
/// # Errors
/// The sockets cannot be opened, or nobody reads `out` any more.
pub async fn run(
    args: WorkerArgs,
    commands: mpsc::Receiver<ToWorker>,
    out: mpsc::Sender<FromWorker>,
) -> Result<(), WorkerError> {
    run_until_drained(args, commands, out, AtWork::silent(), || Ok(None)).await
}

/// `sealed` is called once the sockets are open and before any model is read.
async fn run_until_drained(
    args: WorkerArgs,
    mut commands: mpsc::Receiver<ToWorker>,
    out: mpsc::Sender<FromWorker>,
    at_work: AtWork,
    sealed: impl FnOnce() -> Result<Option<Confinement>, ConfineError>,
) -> Result<(), WorkerError> {
    let socket = args.socket.as_deref().ok_or(WorkerError::NoSocket)?;
    let models = Arc::new(Models::default());
    let clients = args.clients.clone().unwrap_or_default();
    let rules = args.rules.clone().unwrap_or_default().0;
    let api = Arc::new(Api::new(Arc::clone(&models), limits(&args), clients, rules));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let sockets = Sockets {
        unix: socket,
        gid: args.socket_gid,
        tcp: args.listen,
        grpc: args.grpc_listen.as_ref(),
    };
    let listening = Listening::open(sockets, api).await?;
    let confinement = sealed()?;
    let (tcp, grpc) = (listening.tcp, listening.grpc);
    let listens = FromWorker::Listening {
        tcp,
        grpc,
        confinement,
    };
    tell(&out, listens).await?;
    let mut desk = Desk {
        models,
        out,
        window_ms: i64::from(args.window_ms),
        segments: Arc::new(args.segments.clone().unwrap_or_default().0),
        at_work,
        capture: args.capture.clone(),
        told_open: BTreeMap::new(),
        has_closed: false,
        told: BTreeMap::new(),
        told_of_shadow: BTreeMap::new(),
        retiring: JoinSet::new(),
    };
    let window = Duration::from_millis(u64::from(args.window_ms));
    let mut tick = interval(TICK_MAX.min(window));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut progress = interval(PROGRESS_EVERY);
    progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(ToWorker::Expect { families }) => desk.models.expect(families, std::time::Instant::now()),
                Some(ToWorker::Activate { slot, bundle }) => desk.activate(slot, bundle).await?,
                Some(ToWorker::Shadow { slot, bundle, rules }) => {
                    desk.shadow(slot, bundle, rules).await?;
                }
                Some(ToWorker::EndShadow { family }) => desk.models.end_shadow(&family),
                Some(ToWorker::Deactivate { family }) => {
                    let retired = desk.models.remove(&family);
                    desk.retire(retired);
                }
                Some(ToWorker::Resume { bundle, state }) => desk.resume(bundle, *state),
                Some(ToWorker::Flush) => desk.send_windows(true).await?,
                Some(ToWorker::Drain) | None => break,
            },
            _ = tick.tick() => desk.send_windows(false).await?,
            _ = progress.tick() => desk.send_progress().await?,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    if !listening.drain(DRAIN_TIMEOUT).await {
        tracing::warn!("requests still in flight after {DRAIN_TIMEOUT:?} are given up");
    }
    desk.finish().await
}

fn limits(args: &WorkerArgs) -> Limits {
    Limits {
        body_max_bytes: args.body_max_bytes,
        bodies_max_bytes: args.body_max_bytes.saturating_mul(4),
        answers_max_bytes: args.body_max_bytes,
        body_timeout: Duration::from_secs(30),
        queue_timeout: Duration::from_secs(30),
        inferences_max: cores(),
    }
}

async fn tell(out: &mpsc::Sender<FromWorker>, word: FromWorker) -> Result<(), WorkerError> {
    out.send(word).await.map_err(|_| WorkerError::Unheard)
}

/// What the worker tells the supervisor, and from what.
struct Desk {
    models: Arc<Models>,
    out: mpsc::Sender<FromWorker>,
    window_ms: i64,
    segments: Arc<BTreeMap<String, String>>,
    at_work: AtWork,
    /// For whom inputs may be kept.
    capture: Option<CaptureCharge>,
    /// What was told last of open windows: how many requests were counted, by bundle.
    told_open: BTreeMap<Digest, u64>,
    /// Whether windows closed since.
    has_closed: bool,
    /// Totals told last, by bundle.
    told: BTreeMap<Digest, Totals>,
    /// What was last said of the versions in the shadow, by bundle.
    told_of_shadow: BTreeMap<Digest, ShadowReport>,
    /// Replaced bundles that still answer requests.
    retiring: JoinSet<Result<(), WorkerError>>,
}

impl Desk {
    /// Loads a bundle while the present one serves, then swaps them.
    async fn activate(&mut self, slot: PathBuf, bundle: Digest) -> Result<(), WorkerError> {
        let serving = self.models.all();
        let serving = serving
            .iter()
            .map(|s| (s.engine().family().clone(), s.bundle()));
        let beside = Beside::Serving(serving.collect());
        let folder = slot.clone();
        let at_work = self.at_work.clone();
        let loading = beside_requests(move |place| {
            let _guard = at_work.begin(bundle);
            load(&folder, bundle, &beside, place)
        });
        let loaded = self.while_loading(loading).await?;
        match loaded {
            Ok(Loaded::Serving) => self.tell(FromWorker::Activated { bundle }).await,
            Ok(Loaded::Fresh(engine)) => {
                let (segments, at_work) = (Arc::clone(&self.segments), self.at_work.clone());
                let capture = self.capture.as_ref();
                let served = Served::new(*engine, self.window_ms, at_work, segments, capture);
                let retired = self.models.swap(Arc::new(served));
                tracing::info!(%bundle, slot = %slot.display(), "activated");
                self.tell(FromWorker::Activated { bundle }).await?;
                self.retire(retired);
                Ok(())
            }
            Err(detail) => {
                tracing::error!(%detail, slot = %slot.display(), "not activated");
                let failed = FromWorker::ActivateFailed {
                    slot,
                    bundle,
                    detail,
                };
                self.tell(failed).await
            }
        }
    }

    /// Loads a bundle and runs it in the shadow of the one that serves.
    async fn shadow(
        &mut self,
        slot: PathBuf,
        bundle: Digest,
        rules: Shadow,
    ) -> Result<(), WorkerError> {
        if self
            .models
            .challengers()
            .iter()
            .any(|c| c.bundle() == bundle)
        {
            return Ok(());
        }
        let (folder, at_work) = (slot.clone(), self.at_work.clone());
        let loading = beside_requests(move |place| {
            let _guard = at_work.begin(bundle);
            load(&folder, bundle, &Beside::Shadow, place)
        });
        let started = match self.while_loading(loading).await? {
            Ok(Loaded::Fresh(engine)) => {
                let at_work = self.at_work.clone();
                let challenger = Challenger::start(*engine, rules, at_work, STACK_BYTES);
                challenger.map_err(|e| e.to_string())
            }
            Ok(Loaded::Serving) => Err("it serves already".to_owned()),
            Err(detail) => Err(detail),
        };
        match started {
            Ok(challenger) => {
                tracing::info!(%bundle, slot = %slot.display(), "in the shadow");
                self.models.shadow(challenger);
                Ok(())
            }
            Err(detail) => {
                tracing::error!(%detail, slot = %slot.display(), "not in the shadow");
                let failed = FromWorker::ActivateFailed {
                    slot,
                    bundle,
                    detail,
                };
                self.tell(failed).await
            }
        }
    }

    /// Takes up what a bundle's detectors knew before a restart.
    fn resume(&self, bundle: Digest, state: Watch) {
        let served = self.models.all().into_iter();
        if let Some(served) = served.into_iter().find(|s| s.bundle() == bundle) {
            served.resume(state);
        }
    }

    /// Lets go of a bundle once its requests are answered.
    fn retire(&mut self, retired: Option<Arc<Served>>) {
        if let Some(old) = retired {
            self.told.remove(&old.bundle());
            self.retiring.spawn(retire(old, self.out.clone()));
        }
    }

    /// Goes on telling windows and progress until a load is done.
    async fn while_loading(
        &mut self,
        mut loading: mpsc::Receiver<Result<Loaded, String>>,
    ) -> Result<Result<Loaded, String>, WorkerError> {
        let mut tick = interval(TICK_MAX);
        loop {
            tokio::select! {
                loaded = loading.recv() => {
                    let ended = || Err("loading failed: its thread ended".to_owned());
                    return Ok(loaded.unwrap_or_else(ended));
                }
                _ = tick.tick() => {
                    self.send_windows(false).await?;
                    self.send_progress().await?;
                }
            }
        }
    }

    async fn send_windows(&mut self, all: bool) -> Result<(), WorkerError> {
        for served in self.models.all() {
            let bundle = served.bundle();
            // Windows first: whoever was counted in one must have been seen by the detectors whose
            // state goes with it.
            let windows = served.take(all);
            let found = served.detect();
            let alarmed = !found.is_empty();
            for told in found {
                let (detection, untold) = (told.detection, told.untold);
                self.tell(FromWorker::Detected {
                    bundle,
                    detection,
                    untold,
                })
                .await?;
            }
            if !windows.is_empty() {
                let state = Box::new(served.detectors());
                self.tell(FromWorker::Detectors { bundle, state }).await?;
            }
            for window in windows {
                self.has_closed = true;
                self.tell(FromWorker::Window(Box::new(window))).await?;
            }
            let told = tell_samples(&served, alarmed, &self.out).await;
            told.map_err(|_| WorkerError::Unheard)?;
        }
        while let Some(retired) = self.retiring.try_join_next() {
            self.has_closed = true;
            retired.unwrap_or(Ok(()))?;
        }
        self.send_open().await
    }

    /// What open windows have counted so far, so that little is lost with this process.
    async fn send_open(&mut self) -> Result<(), WorkerError> {
        let all = self.models.all();
        let counted = all.iter().map(|served| (served.bundle(), served.counted()));
        let counted: BTreeMap<_, _> = counted.filter(|(_, counted)| *counted > 0).collect();
        if !self.has_closed && counted == self.told_open {
            return Ok(());
        }
        self.has_closed = false;
        self.told_open.clear();
        for served in all {
            let (windows, counted) = served.open();
            if counted > 0 {
                self.told_open.insert(served.bundle(), counted);
            }
            for window in windows {
                self.tell(FromWorker::Open(Box::new(window))).await?;
            }
        }
        self.tell(FromWorker::Counted).await
    }

    async fn send_progress(&mut self) -> Result<(), WorkerError> {
        for served in self.models.all() {
            let (bundle, totals) = (served.bundle(), served.totals());
            if totals != self.told.get(&bundle).copied().unwrap_or_default() {
                self.tell(progress(bundle, totals)).await?;
                self.told.insert(bundle, totals);
            }
        }
        let challengers = self.models.challengers();
        self.told_of_shadow
            .retain(|bundle, _| challengers.iter().any(|c| c.bundle() == *bundle));
        for challenger in challengers {
            let (bundle, so_far) = (challenger.bundle(), challenger.report());
            if self.told_of_shadow.insert(bundle, so_far) != Some(so_far) {
                self.tell(FromWorker::Shadowed { bundle, so_far }).await?;
            }
        }
        Ok(())
    }

    /// Says everything that is left to say.
    async fn finish(mut self) -> Result<(), WorkerError> {
        let retired = async { while self.retiring.join_next().await.is_some() {} };
        if tokio::time::timeout(LAST_WORDS_TIMEOUT, retired)
            .await
            .is_err()
        {
            tracing::warn!("a replaced model still computes; its last window is lost");
        }
        let last = async {
            self.has_closed = true;
            self.send_windows(true).await?;
            self.send_progress().await?;
            self.tell(FromWorker::Drained).await
        };
        tokio::time::timeout(LAST_WORDS_TIMEOUT, last)
            .await
            .unwrap_or(Err(WorkerError::Unheard))
    }

    async fn tell(&self, word: FromWorker) -> Result<(), WorkerError> {
        tell(&self.out, word).await
    }
}

fn progress(bundle: Digest, totals: Totals) -> FromWorker {
    FromWorker::Progress {
        bundle,
        inferences: totals.inferences,
        errors: totals.errors,
        slow: totals.slow,
    }
}

/// Tells a replaced bundle's last window once its requests are answered.
async fn retire(old: Arc<Served>, out: mpsc::Sender<FromWorker>) -> Result<(), WorkerError> {
    old.idle().await;
    for window in old.take(true) {
        tell(&out, FromWorker::Window(Box::new(window))).await?;
    }
    let told = tell_samples(&old, false, &out).await;
    told.map_err(|_| WorkerError::Unheard)?;
    tell(&out, progress(old.bundle(), old.totals())).await
}
