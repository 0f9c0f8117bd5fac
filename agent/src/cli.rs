//! The agent's command line.

use crate::account;
use crate::capture;
use crate::clock::Clock;
use crate::config::Settings;
use crate::device::{Model, Phase, State};
use crate::files::Disk;
use crate::hold::{HoldFile, REASON_MAX_CHARS};
use crate::identity::Identity;
use crate::inference::WorkerArgs;
use crate::install::{self, Outcome, Wish};
use crate::ledger::Ledger;
use crate::pipeline::command::{self, PipeArgs};
use crate::shell::{self, Program};
use anyhow::Context as _;
use clap::{Parser, Subcommand};
use dunlin_protocol::command::Probation;
use dunlin_protocol::enroll::ClaimToken;
use dunlin_protocol::id::{DeviceId, Family};
use dunlin_protocol::report::{Failure, Hold, Progress};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{IsTerminal as _, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Configuration is wrong (`EX_USAGE`, sysexits.h).
const EXIT_CONFIG: u8 = 64;
const TOKEN_MAX_BYTES: u64 = 4096;
/// glibc's own limits, fixed.
const HEAP: [(&str, &str); 3] = [
    ("MALLOC_ARENA_MAX", "1"),
    ("MALLOC_MMAP_THRESHOLD_", "131072"),
    ("MALLOC_TRIM_THRESHOLD_", "131072"),
];

/// Runs signed models on this device and keeps them in step with the fleet.
#[derive(Debug, Parser)]
#[command(name = "dunlin-agent", version, about)]
struct Args {
    #[command(subcommand)]
    command: Sub,
}

#[derive(Debug, Subcommand)]
enum Sub {
    /// Run the agent until SIGTERM (what the system service does).
    Run {
        #[command(flatten)]
        config: ConfigArg,
    },
    /// Join a fleet with a claim token, once.
    #[command(
        after_help = "The token is read from --token-file, from DUNLIN_CLAIM_TOKEN or from standard input,\nnever from an argument, which other users could see.\n\nExample:\n  dunlin-agent enroll --config /etc/dunlin/agent.toml < claim.token"
    )]
    Enroll {
        #[command(flatten)]
        config: ConfigArg,
        /// File that holds the claim token.
        #[arg(long)]
        token_file: Option<PathBuf>,
        /// Id to ask for; the server chooses one otherwise.
        #[arg(long)]
        device: Option<DeviceId>,
    },
    /// Say who this device is, what it runs and how the last update ended.
    #[command(after_help = "Exit status: 0 the agent runs, 1 it does not or is not enrolled.")]
    Status {
        #[command(flatten)]
        config: ConfigArg,
        /// Write JSON.
        #[arg(long)]
        json: bool,
    },
    /// Install a bundle from a file or a folder, without any network.
    #[command(
        after_help = "The file comes from `dunlin bundle export`; a folder has the same layout. It is verified\nlike a download. The agent need not run: it installs the bundle when it does.\n\nExit status: 0 installed and kept (with --no-wait: put in), 1 refused, failed or rolled back,\n2 not done within --timeout-s, 3 the server wants something else by now.\n\nExample:\n  dunlin-agent install /media/stick/digits-2.tar"
    )]
    Install(InstallArgs),
    /// Hold updates back: fetching goes on, activating does not, going back always may.
    #[command(
        after_help = "Works while the agent is down and survives reboots. The server sees the reason.\n\nExample:\n  dunlin-agent hold --for 8h --reason \"acceptance test on line 3\""
    )]
    Hold {
        #[command(flatten)]
        config: ConfigArg,
        /// Why, for whoever watches the fleet; at most 200 characters.
        #[arg(long, default_value = "no reason given")]
        reason: String,
        /// For how long, such as 90m, 8h or 2d; until `release` otherwise.
        #[arg(long = "for", value_name = "TIME", value_parser = hold_time)]
        time: Option<SignedDuration>,
    },
    /// Let updates go on that are held back.
    Release {
        #[command(flatten)]
        config: ConfigArg,
    },
    /// Print a configuration file with every key and its default.
    DefaultConfig,
    /// Send records through a model: lines of standard input, a folder's files or a topic's messages.
    #[command(
        after_help = "Results are the answers of the inference API, a JSON line each. Progress and what went\nwrong are told on standard error.\n\nExit status: 0 every record was answered, 1 some were not.\n\nExample:\n  dunlin-agent pipe --model digits --format csv < rows.csv > results.jsonl"
    )]
    Pipe {
        #[command(flatten)]
        config: ConfigArg,
        #[command(flatten)]
        pipe: PipeArgs,
    },
    /// The pipelines (started by `run` if the configuration has any).
    #[command(hide = true)]
    Pipelines,
    /// The inference worker (started by `run`).
    #[command(hide = true)]
    Infer(WorkerArgs),
}

#[derive(Debug, clap::Args)]
struct ConfigArg {
    /// Configuration file.
    #[arg(long, default_value = "/etc/dunlin/agent.toml")]
    config: PathBuf,
}

#[derive(Debug, clap::Args)]
struct InstallArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// Archive or folder.
    from: PathBuf,
    /// The model family, if there are several.
    #[arg(long)]
    family: Option<Family>,
    /// The version; without it the newest that is there.
    #[arg(long = "bundle-version")]
    version: Option<u64>,
    /// Live inferences it must answer before it is kept.
    #[arg(long, default_value_t = Probation::default().inferences)]
    probation_inferences: u64,
    /// Time it must serve before it is kept, in seconds.
    #[arg(long, default_value_t = Probation::default().time_ms / 1000)]
    probation_s: u64,
    /// Return once it is put in.
    #[arg(long)]
    no_wait: bool,
    /// Longest time to wait for the outcome, in seconds.
    #[arg(long, default_value_t = 24 * 3600)]
    timeout_s: u64,
}

/// Runs the agent's command line. `prefix` is what comes before the subcommand when this binary
/// is called again as the worker (`["agent"]` in the all-in-one binary); `args` begins with the
/// program's name.
pub fn main_with(prefix: &[&str], args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    // To call the same command once more.
    let again = prefix.iter().map(OsString::from);
    let again: Vec<OsString> = again.chain(args.iter().skip(1).cloned()).collect();
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(e) => {
            let _ = e.print();
            return if e.use_stderr() {
                ExitCode::from(EXIT_CONFIG)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    match args.command {
        Sub::Infer(worker) => crate::inference::main(worker),
        Sub::DefaultConfig => {
            print!("{}", crate::config::agent_default_toml());
            ExitCode::SUCCESS
        }
        Sub::Pipelines => pipelines(),
        Sub::Pipe { config, pipe } => match pipe.socket().cloned() {
            Some(socket) => succeeded(run_pipe(pipe, socket)),
            None => with_settings(&config, |settings| {
                run_pipe(pipe, settings.inference.socket)
            }),
        },
        Sub::Run { config } => with_settings(&config, |settings| {
            // The kernel keeps the wish over what follows.
            die_with_parent_if_asked();
            with_small_heap(&again);
            run(settings, prefix)
        }),
        Sub::Enroll {
            config,
            token_file,
            device,
        } => as_owner(&config, &again, |mut settings| {
            log_to_stderr(&settings.log_level);
            let token = read_token(token_file.as_deref())?;
            settings.device = device.or(settings.device);
            let enrolled = runtime()?.block_on(crate::enroll::enroll(&settings, &token))?;
            println!(
                "enrolled as {} in fleet {}; broker {}:{}",
                enrolled.device, enrolled.fleet, enrolled.mqtt_host, enrolled.mqtt_port
            );
            Ok(ExitCode::SUCCESS)
        }),
        Sub::Install(args) => install_as_owner(args, &again),
        Sub::Hold {
            config,
            reason,
            time,
        } => as_owner(&config, &again, |s| hold(&s.state_dir, &reason, time)),
        Sub::Release { config } => as_owner(&config, &again, |s| {
            HoldFile::new(&Disk::native(), &s.state_dir).remove()?;
            println!("updates go on");
            Ok(ExitCode::SUCCESS)
        }),
        Sub::Status { config, json } => as_owner(&config, &again, |s| status(&s, json)),
    }
}

fn run(settings: Settings, prefix: &[&str]) -> anyhow::Result<ExitCode> {
    log_to_stderr(&settings.log_level);
    let path = std::env::current_exe().context("own program")?;
    let prefix = prefix.iter().map(ToString::to_string).collect();
    runtime()?.block_on(async {
        let shutdown = shell::terminated()?;
        shell::run(settings, Program { path, prefix }, shutdown).await
    })?;
    Ok(ExitCode::SUCCESS)
}

fn install_as_owner(args: InstallArgs, again: &[OsString]) -> ExitCode {
    let wish = Wish {
        from: args.from,
        family: args.family,
        version: args.version,
        probation: install::probation(args.probation_inferences, args.probation_s),
    };
    let limit = (!args.no_wait).then(|| Duration::from_secs(args.timeout_s));
    as_owner(&args.config, again, |settings| {
        log_to_stderr(&settings.log_level);
        runtime()?.block_on(install(&settings, &wish, limit))
    })
}

/// Puts a bundle in and, unless `limit` is none, waits for what becomes of it.
async fn install(
    settings: &Settings,
    wish: &Wish,
    limit: Option<Duration>,
) -> anyhow::Result<ExitCode> {
    let mut say = |text: &str| println!("{text}");
    let request = install::submit(settings, wish, &mut say).await?;
    if !shell::is_running(&settings.state_dir) {
        say("the agent does not run: it installs the bundle when it is started");
    }
    let Some(limit) = limit else {
        return Ok(ExitCode::SUCCESS);
    };
    let (text, code) = match install::outcome(settings, &request, limit, &mut say).await? {
        Outcome::Succeeded => ("installed: golden cases and probation passed".to_owned(), 0),
        Outcome::Failed(why) => (format!("not installed: {why}"), 1),
        Outcome::StillUnderWay => ("not done yet; it goes on".to_owned(), 2),
        Outcome::Superseded => ("given up: the server wants something else".to_owned(), 3),
    };
    say(&text);
    Ok(ExitCode::from(code))
}

fn run_pipe(pipe: PipeArgs, socket: PathBuf) -> anyhow::Result<ExitCode> {
    log_to_stderr("warn");
    let runtime = runtime()?;
    let ended = runtime.block_on(command::pipe(pipe, socket));
    // A read of standard input cannot be taken back; it must not hold up the end.
    runtime.shutdown_background();
    ended
}

fn pipelines() -> ExitCode {
    log_to_stderr("info");
    let charge = command::read_charge().and_then(|charge| {
        command::confine(&charge)?;
        Ok(charge)
    });
    let ran = charge.and_then(|charge| {
        let runtime = runtime()?;
        let ended = runtime.block_on(command::pipelines(charge));
        // A read of standard input cannot be taken back; it must not hold up the end.
        runtime.shutdown_background();
        ended
    });
    succeeded(ran)
}

fn succeeded(ran: anyhow::Result<ExitCode>) -> ExitCode {
    ran.unwrap_or_else(|e| {
        eprintln!("dunlin-agent: {e:#}");
        ExitCode::FAILURE
    })
}

fn with_settings(
    config: &ConfigArg,
    then: impl FnOnce(Settings) -> anyhow::Result<ExitCode>,
) -> ExitCode {
    // A second call in one process finds the provider installed, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let settings = match Settings::load(&config.config) {
        Ok(settings) => settings,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    succeeded(then(settings))
}

/// As [`with_settings`], as the user whom the state folder belongs to if root calls.
fn as_owner(
    config: &ConfigArg,
    again: &[OsString],
    then: impl FnOnce(Settings) -> anyhow::Result<ExitCode>,
) -> ExitCode {
    with_settings(config, |settings| {
        account::become_owner(&settings.state_dir, again)?;
        then(settings)
    })
}

/// A demo or a test that is killed must not leave agents behind.
fn die_with_parent_if_asked() {
    let Ok(parent) = std::env::var("DUNLIN_DIE_WITH_PARENT") else {
        return;
    };
    let term = Some(rustix::process::Signal::TERM);
    // Where the kernel has no such thing, the agent merely outlives its parent.
    let _ = rustix::process::set_parent_process_death_signal(term);
    // It may have died before.
    let present = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().to_string());
    if present.is_some_and(|present| present != parent) {
        eprintln!("process {parent}, which started this agent, has ended");
        std::process::exit(1);
    }
}

/// Begins anew, once, with what glibc reads as a program starts: heaps for each thread, and limits
/// that grow with what was freed, hold several MiB that nobody uses.
fn with_small_heap(again: &[OsString]) {
    if HEAP
        .iter()
        .all(|(name, _)| std::env::var_os(name).is_some())
    {
        return;
    }
    let Ok(program) = std::env::current_exe() else {
        return;
    };
    let mut command = std::process::Command::new(program);
    // Returns only if it fails, and then more memory is used.
    let failed = command.args(again).envs(HEAP).exec();
    eprintln!("cannot start anew with a small heap, goes on with a larger one: {failed}");
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()
        .context("runtime")
}

fn log_to_stderr(level: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("DUNLIN_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .try_init();
}

fn read_token(file: Option<&Path>) -> anyhow::Result<ClaimToken> {
    let text = match (file, std::env::var("DUNLIN_CLAIM_TOKEN")) {
        (Some(path), _) => {
            let bytes = crate::files::read_bounded(path, TOKEN_MAX_BYTES)?;
            String::from_utf8(bytes).context("the claim token is no text")?
        }
        (None, Ok(text)) => text,
        (None, Err(_)) => {
            let mut text = String::new();
            std::io::stdin()
                .take(TOKEN_MAX_BYTES)
                .read_to_string(&mut text)
                .context("claim token from standard input")?;
            text
        }
    };
    Ok(text.parse::<ClaimToken>()?)
}

/// `90m`, `8h`, `2d`.
fn hold_time(text: &str) -> Result<SignedDuration, String> {
    let (number, unit_s) = match text.char_indices().next_back() {
        Some((at, 's')) => (&text[..at], 1),
        Some((at, 'm')) => (&text[..at], 60),
        Some((at, 'h')) => (&text[..at], 3_600),
        Some((at, 'd')) => (&text[..at], 86_400),
        _ => (text, 0),
    };
    let seconds = number.parse::<u32>().ok().filter(|n| *n > 0 && unit_s > 0);
    let seconds = seconds.map(|n| i64::from(n).saturating_mul(unit_s));
    seconds
        .map(SignedDuration::from_secs)
        .ok_or_else(|| "expected a number and s, m, h or d, such as 8h".to_owned())
}

fn hold(state_dir: &Path, reason: &str, time: Option<SignedDuration>) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(
        reason.chars().count() <= REASON_MAX_CHARS,
        "--reason: at most {REASON_MAX_CHARS} characters"
    );
    // As the agent counts: by a clock that was never set, a hold would be over before it begins.
    let now = Clock::open(state_dir).now();
    let until = time.map(|t| now.saturating_add(t)).transpose()?;
    let hold = Hold {
        reason: reason.to_owned(),
        since_ms: now.as_millisecond(),
        until_ms: until.map(Timestamp::as_millisecond),
    };
    HoldFile::new(&Disk::native(), state_dir).write(&hold)?;
    println!("updates are {}", held(&hold));
    Ok(ExitCode::SUCCESS)
}

fn held(hold: &Hold) -> String {
    let until = match hold.until_ms.map(Timestamp::from_millisecond) {
        Some(Ok(until)) => format!("until {until}"),
        _ => "until they are released (dunlin-agent release)".to_owned(),
    };
    format!("held back {until}: {}", hold.reason)
}

fn status(settings: &Settings, json: bool) -> anyhow::Result<ExitCode> {
    let state_dir = settings.state_dir.as_path();
    let captures = capture::standings(state_dir, &settings.capture.owner);
    let identity = Identity::load(state_dir)?;
    let state = Ledger::new(&Disk::native(), state_dir).load()?;
    let running = shell::is_running(state_dir);
    let now = Clock::open(state_dir).now();
    let hold = HoldFile::new(&Disk::native(), state_dir).read(now.as_millisecond());
    let reported = state.as_ref().map(|s| s.reported(crate::VERSION));
    if json {
        let document = serde_json::json!({
            "running": running,
            "device": identity.as_ref().map(|i| &i.enrolled.device),
            "fleet": identity.as_ref().map(|i| &i.enrolled.fleet),
            "certificate_not_after": identity.as_ref().map(|i| i.validity().not_after.to_string()),
            "reported": reported,
            "hold": hold,
            "capture": captures.iter().map(|(f, s)| (f.to_string(), s)).collect::<BTreeMap<_, _>>(),
        });
        println!("{}", serde_json::to_string_pretty(&document)?);
    } else {
        print_status(identity.as_ref(), state.as_ref(), running);
        for (family, standing) in &captures {
            println!("capture    {family}: {standing}");
        }
        if let Some(hold) = &hold {
            println!("hold       updates are {}", held(hold));
        }
    }
    Ok(if running && identity.is_some() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn print_status(identity: Option<&Identity>, state: Option<&State>, running: bool) {
    println!(
        "agent      {}, {}",
        crate::VERSION,
        if running { "running" } else { "not running" }
    );
    match identity {
        None => println!("device     not enrolled: run `dunlin-agent enroll`"),
        Some(i) => {
            println!(
                "device     {} in fleet {}",
                i.enrolled.device, i.enrolled.fleet
            );
            let end = i.validity().not_after;
            let over = i.clock().now() > end;
            let word = if over { "ended" } else { "valid until" };
            println!("identity   certificate {word} {end}");
        }
    }
    let Some(state) = state else {
        return println!("model      none yet");
    };
    println!("desired    revision {}", state.revision);
    if state.models.is_empty() {
        println!("model      none yet");
    }
    for (family, model) in &state.models {
        print_model(family, model);
    }
}

fn print_model(family: &Family, model: &Model) {
    match model.active() {
        None => println!("model      {family}: nothing serves"),
        Some(a) => println!(
            "model      {family} version {} ({})",
            a.version,
            a.digest.short()
        ),
    }
    if let Some(target) = &model.target {
        println!("  desired  version {}", target.version);
    }
    let phase = match &model.phase {
        Phase::Idle { last } => in_words(last),
        Phase::Receiving { want, attempts, .. } => {
            format!(
                "receiving version {}, {attempts} failed attempts",
                want.version
            )
        }
        Phase::Trial { want, .. } => format!("golden cases of version {}", want.version),
        Phase::Shadow { want, .. } => {
            let waiting = model.waiting().map(|w| w.detail);
            format!("version {} {}", want.version, waiting.unwrap_or_default())
        }
        Phase::Waiting { want, why } => format!(
            "version {} is ready; {}",
            want.version,
            why.as_ref().map_or("activating", |w| &w.detail)
        ),
        Phase::Probation {
            want, served_ms, ..
        } => format!(
            "version {} on probation for {} s",
            want.version,
            served_ms / 1000
        ),
        Phase::RollingBack { want, failure } => {
            format!(
                "going back from version {}: {}",
                want.version, failure.detail
            )
        }
    };
    println!("  update   {phase}");
}

fn in_words(last: &Progress) -> String {
    let failure = |how: &str, f: &Failure| format!("{how}: {} ({})", f.detail, f.code);
    match last {
        Progress::Idle => "none yet".to_owned(),
        Progress::Succeeded => "done: golden cases and probation passed".to_owned(),
        Progress::Refused(f) => failure("refused", f),
        Progress::Failed(f) => failure("failed", f),
        Progress::RolledBack(f) => failure("went back to the version before", f),
        Progress::Receiving { .. } | Progress::Trial | Progress::Probation { .. } => {
            "under way".to_owned()
        }
    }
}
