//! The two commands: `pipelines`, the supervisor's child, and `pipe`, one pipeline by hand.

use super::feed::Feed;
use super::place::{Sink, Source};
use super::progress::{Progress, Reason};
use super::queue::{Counts, WhenFull};
use super::record::Format;
use super::run::{Environment, run};
use super::settings::{After, PipelineSettings, QUEUE_DEFAULT, QUEUE_MAX, TIMEOUT_DEFAULT_MS};
use crate::config::Settings;
use crate::inference::confine::{self, Needs};
use anyhow::Context as _;
use dunlin_protocol::id::Family;
use serde::{Deserialize, Serialize};
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Longest line that tells the child its pipelines.
const CHARGE_MAX_BYTES: u64 = 1 << 20;
const TELL_EVERY: Duration = Duration::from_millis(500);
/// Trouble is told no more often than this.
const REASONS_EVERY: Duration = Duration::from_secs(10);

/// What the resolver reads to find a broker by its name.
const RESOLVER: [&str; 6] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/services",
];
const DNS_PORT: u16 = 53;

/// What the supervisor tells its child.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charge {
    /// What they share.
    pub environment: Environment,
    /// The pipelines.
    pub pipelines: Vec<PipelineSettings>,
}

struct Running {
    name: String,
    feed: Arc<Feed>,
    told: Option<Counts>,
    reasons_told: Option<Instant>,
}

impl Running {
    /// What is new, for the supervisor.
    fn progress(&mut self, last: bool) -> Option<Progress> {
        let counts = self.feed.counts();
        let due = self
            .reasons_told
            .is_none_or(|told| told.elapsed() >= REASONS_EVERY);
        let reasons = if due || last {
            self.feed.reasons()
        } else {
            Vec::new()
        };
        if !reasons.is_empty() {
            self.reasons_told = Some(Instant::now());
        }
        if self.told.replace(counts) == Some(counts) && reasons.is_empty() {
            return None;
        }
        for reason in &reasons {
            warn(&self.name, reason);
        }
        Some(Progress {
            pipeline: self.name.clone(),
            counts,
            reasons,
        })
    }
}

fn warn(pipeline: &str, reason: &Reason) {
    tracing::warn!(
        pipeline,
        code = reason.code,
        times = reason.times,
        "{}",
        reason.detail
    );
}

/// The child's pipelines: the first line of standard input.
///
/// # Errors
/// There are none.
pub fn read_charge() -> anyhow::Result<Charge> {
    let mut line = Vec::new();
    let mut first = std::io::stdin().lock().take(CHARGE_MAX_BYTES);
    let read = std::io::BufRead::read_until(&mut first, b'\n', &mut line);
    read.context("standard input")?;
    serde_json::from_slice(&line).context("pipelines on standard input")
}

/// Gives up every file and port that these pipelines do not need: what they read is foreign. To be
/// called while there is one thread only.
///
/// # Errors
/// The kernel has it and refused.
pub fn confine(charge: &Charge) -> anyhow::Result<()> {
    if let Some(folder) = &charge.environment.state_dir {
        crate::files::create_private_dir(folder)?;
    }
    let enforced = confine::confine(&needs(charge))?;
    tracing::info!(?enforced, "confined by Landlock");
    Ok(())
}

fn needs(charge: &Charge) -> Needs {
    let mut needs = Needs {
        read: RESOLVER.iter().map(PathBuf::from).collect(),
        change: charge.environment.state_dir.iter().cloned().collect(),
        connect_ports: vec![DNS_PORT],
        ..Needs::default()
    };
    for pipeline in &charge.pipelines {
        needs.read.extend(pipeline.credentials.clone());
        match &pipeline.source {
            Source::Mqtt(place) => needs.connect_ports.push(place.port),
            Source::Folder(path) => needs.change.push(path.clone()),
            Source::Stdin => {}
        }
        match &pipeline.sink {
            Sink::Mqtt(place) => needs.connect_ports.push(place.port),
            // Its older files lie beside it.
            Sink::File(path) => needs.change.extend(path.parent().map(PathBuf::from)),
            Sink::Stdout => {}
        }
    }
    needs
}

/// The child: runs its pipelines until standard input ends.
///
/// # Errors
/// One of them ended by itself.
pub async fn pipelines(charge: Charge) -> anyhow::Result<ExitCode> {
    let mut stdin = tokio::io::stdin();
    let (stop, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let mut all = Vec::new();
    for settings in charge.pipelines {
        let feed = Arc::new(Feed::new(settings.queue, settings.when_full));
        all.push(Running {
            name: settings.name.clone(),
            feed: Arc::clone(&feed),
            told: None,
            reasons_told: None,
        });
        let environment = charge.environment.clone();
        tasks.spawn(run(settings, environment, feed, stopped.clone()));
    }
    let mut tick = tokio::time::interval(TELL_EVERY);
    let mut byte = [0_u8; 64];
    let ended = loop {
        tokio::select! {
            _ = tick.tick() => tell(&mut all, false).await?,
            read = stdin.read(&mut byte) => if !read.is_ok_and(|n| n > 0) { break Ok(()) },
            ended = tasks.join_next() => break match ended {
                Some(Ok(Err(why))) => Err(anyhow::anyhow!(why)),
                Some(Err(e)) => Err(e.into()),
                Some(Ok(Ok(()))) | None => Err(anyhow::anyhow!("a source ended")),
            },
        }
    };
    stop.send_replace(true);
    while tasks.join_next().await.is_some() {}
    tell(&mut all, true).await?;
    ended.map(|()| ExitCode::SUCCESS)
}

async fn tell(all: &mut [Running], last: bool) -> anyhow::Result<()> {
    let mut stdout = tokio::io::stdout();
    for progress in all.iter_mut().filter_map(|running| running.progress(last)) {
        let mut line = serde_json::to_vec(&progress)?;
        line.push(b'\n');
        stdout.write_all(&line).await?;
    }
    Ok(stdout.flush().await?)
}

/// One pipeline, run by hand.
#[derive(Debug, clap::Args)]
pub struct PipeArgs {
    /// The model family that answers.
    #[arg(long)]
    model: Family,
    /// Where records come from: stdin:, folder:/path or mqtt://host:port/topic.
    #[arg(long, default_value = "stdin:", value_parser = Source::parse)]
    source: Source,
    /// Where results go: stdout:, file:/path or mqtt://host:port/topic.
    #[arg(long, default_value = "stdout:", value_parser = Sink::parse)]
    sink: Sink,
    /// How payloads are read: json, csv, raw or bytes [default: by source and file extension].
    #[arg(long, value_parser = format)]
    format: Option<Format>,
    /// What a full queue does: block, drop_oldest or drop_newest.
    #[arg(long, default_value = "block", value_parser = when_full)]
    when_full: WhenFull,
    /// What becomes of a folder's files: move, delete or keep.
    #[arg(long, default_value = "move", value_parser = after)]
    after: After,
    /// Places in the queue.
    #[arg(long, default_value_t = QUEUE_DEFAULT as u64, value_parser = clap::value_parser!(u64).range(1..=QUEUE_MAX as u64))]
    queue: u64,
    /// Longest wait for one answer.
    #[arg(long, default_value_t = TIMEOUT_DEFAULT_MS, value_parser = clap::value_parser!(u64).range(100..=600_000))]
    timeout_ms: u64,
    /// File with the broker's user (first line) and password (second line).
    #[arg(long)]
    credentials: Option<PathBuf>,
    /// Parameter of every request that does not say otherwise, such as its segment (repeatable)
    #[arg(long = "parameter", value_name = "KEY=VALUE", value_parser = key_value)]
    parameters: Vec<(String, String)>,
    /// The inference API's socket; the configuration's otherwise.
    #[arg(long)]
    socket: Option<PathBuf>,
}

fn format(text: &str) -> Result<Format, &'static str> {
    Format::parse(text).ok_or("expected json, csv, raw or bytes")
}

fn when_full(text: &str) -> Result<WhenFull, &'static str> {
    WhenFull::parse(text).ok_or("expected block, drop_oldest or drop_newest")
}

fn after(text: &str) -> Result<After, &'static str> {
    After::parse(text).ok_or("expected move, delete or keep")
}

impl PipeArgs {
    /// Whether the configuration must be read to know the socket.
    #[must_use]
    pub fn socket(&self) -> Option<&PathBuf> {
        self.socket.as_ref()
    }

    fn settings(self) -> PipelineSettings {
        PipelineSettings {
            name: format!("pipe-{}", std::process::id()),
            source: self.source,
            model: self.model.to_string(),
            sink: self.sink,
            when_full: self.when_full,
            format: self.format,
            queue: usize::try_from(self.queue).unwrap_or(QUEUE_MAX),
            timeout_ms: self.timeout_ms,
            after: self.after,
            parameters: self.parameters.into_iter().collect(),
            credentials: self.credentials,
        }
    }
}

/// Runs one pipeline until its source ends or SIGTERM; status 0 if every record was answered.
///
/// # Errors
/// Results are taken by nobody.
pub async fn pipe(args: PipeArgs, socket: PathBuf) -> anyhow::Result<ExitCode> {
    let settings = args.settings();
    let environment = Environment {
        socket,
        device: "pipe".to_owned(),
        state_dir: None,
    };
    let feed = Arc::new(Feed::new(settings.queue, settings.when_full));
    let (stop, stopped) = watch::channel(false);
    let mut running = Running {
        name: settings.model.clone(),
        feed: Arc::clone(&feed),
        told: None,
        reasons_told: None,
    };
    let shutdown = crate::shell::terminated()?;
    tokio::pin!(shutdown);
    let task = run(settings, environment, feed, stopped);
    tokio::pin!(task);
    let shown = std::io::stderr().is_terminal();
    let mut tick = tokio::time::interval(TELL_EVERY);
    let mut stopping = false;
    let ended = loop {
        tokio::select! {
            ended = &mut task => break ended,
            () = &mut shutdown, if !stopping => {
                stopping = true;
                stop.send_replace(true);
            }
            _ = tick.tick() => {
                if let (Some(progress), true) = (running.progress(false), shown) {
                    eprint!("\r{}\x1b[K", in_words(&progress.counts));
                }
            }
        }
    };
    running.progress(true);
    let counts = running.feed.counts();
    if shown {
        eprint!("\r\x1b[K");
    }
    let _ = writeln!(std::io::stderr(), "{}", in_words(&counts));
    ended.map_err(|why| anyhow::anyhow!(why))?;
    Ok(if counts.answered == counts.received {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn in_words(counts: &Counts) -> String {
    let mut text = format!("{} records, {} answered", counts.received, counts.answered);
    for (n, what) in [
        (counts.failed, "failed"),
        (counts.dropped_oldest, "dropped as the oldest"),
        (counts.dropped_newest, "dropped as the newest"),
        (counts.returned, "returned"),
        (counts.waiting, "waiting"),
    ] {
        if n > 0 {
            text += &format!(", {n} {what}");
        }
    }
    text
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("expected KEY=VALUE, got {text:?}")),
    }
}

/// What the supervisor's child is told of these settings.
#[must_use]
pub fn charge(settings: &Settings, device: &str) -> Charge {
    Charge {
        environment: Environment {
            socket: settings.inference.socket.clone(),
            device: device.to_owned(),
            state_dir: Some(settings.state_dir.join("pipelines")),
        },
        pipelines: settings.pipelines.clone(),
    }
}
