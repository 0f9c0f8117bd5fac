//! The program around the server: arguments, logging, readiness, signals, exit codes.

use crate::config::{Overrides, Settings};
use crate::server::{RunningServer, Server};
use clap::Parser;
use serde_json::json;
use std::ffi::OsString;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use toml::Value;

/// Wrong usage or configuration (`sysexits.h`, EX_USAGE).
const EXIT_CONFIG: u8 = 64;
/// Could not start (`sysexits.h`, EX_SOFTWARE).
const EXIT_START: u8 = 70;
/// Where the first token goes when stdout is no terminal, in the state folder.
const TOKEN_FILE: &str = "first-admin-token";

/// Runs Dunlin's fleet server.
#[derive(Debug, Parser)]
#[command(name = "dunlin-server", version, about)]
struct Arguments {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE", env = "DUNLIN_SERVER_CONFIG")]
    config: PathBuf,
    /// Folder of everything the server keeps, instead of `state_dir`.
    #[arg(long, value_name = "DIR", env = "STATE_DIRECTORY")]
    state_dir: Option<PathBuf>,
    /// Address of the admin API, instead of `admin.listen`.
    #[arg(long, value_name = "ADDRESS:PORT")]
    admin_listen: Option<String>,
    /// Address of the devices' listener, instead of `devices.listen`.
    #[arg(long, value_name = "ADDRESS:PORT")]
    devices_listen: Option<String>,
    /// Address of the embedded broker, instead of `mqtt.listen`.
    #[arg(long, value_name = "ADDRESS:PORT")]
    mqtt_listen: Option<String>,
    /// Makes an administrator's token, prints it once and ends; an earlier one of that name ends.
    #[arg(long, value_name = "NAME", conflicts_with = "print_addresses_json")]
    new_admin_token: Option<String>,
    /// Once started, prints one line of JSON with the addresses and the first token.
    #[arg(long)]
    print_addresses_json: bool,
}

impl Arguments {
    fn overrides(&self) -> Overrides {
        let text = |key: &str, value: Option<String>| Some((key.to_owned(), Value::String(value?)));
        let state_dir = self
            .state_dir
            .as_ref()
            .map(|p| p.to_string_lossy().into_owned());
        let given = [
            text("state_dir", state_dir),
            text("admin.listen", self.admin_listen.clone()),
            text("devices.listen", self.devices_listen.clone()),
            text("mqtt.listen", self.mqtt_listen.clone()),
        ];
        Overrides(given.into_iter().flatten().collect())
    }
}

/// The program: `arguments` as the system gives them, the program's name first.
///
/// Exit codes: 0 after a drained shutdown (also for `--help`), 64 usage or configuration,
/// 70 could not start, or stopped because a part of it ended by itself.
pub async fn main_with<I, T>(arguments: I) -> ExitCode
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(e) => return wrong_usage(&e),
    };
    start_logging();
    die_with_parent_if_asked();
    let settings = match Settings::load(&arguments.config, &arguments.overrides()) {
        Ok(settings) => settings,
        Err(e) => {
            tell(&e.to_string());
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    if let Some(name) = &arguments.new_admin_token {
        return new_admin_token(&settings, name).await;
    }
    // Before the start, so that a signal meanwhile is not lost.
    let signals = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    );
    let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
        tell("signals cannot be listened to");
        return ExitCode::from(EXIT_START);
    };
    let database = crate::server::database_path(&settings.state_dir);
    // A supervisor's log is no place for a secret.
    let is_shown = arguments.print_addresses_json || std::io::stdout().is_terminal();
    let token_file = settings.state_dir.join(TOKEN_FILE);
    let token_file = (!is_shown).then_some(token_file.as_path());
    let server = match Server::start_with(settings, token_file).await {
        Ok(server) => server,
        Err(e) => {
            tell(&format!("dunlin-server did not start: {e}"));
            return ExitCode::from(EXIT_START);
        }
    };
    announce(&server, arguments.print_addresses_json, token_file);
    tracing::info!(admin = %server.admin, devices = %server.devices, mqtt = ?server.mqtt,
        database = %database.display(), version = env!("CARGO_PKG_VERSION"), "ready");
    let watchdog = tokio::spawn(keep_watchdog_quiet(server.store.clone()));
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
    let ended = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        name = server.core_task_ended() => Some(name),
    };
    if let Some(name) = ended {
        tracing::error!("{name} ended by itself: the server stops, so that it is started again");
    }
    tracing::info!("stopping");
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
    watchdog.abort();
    server.shutdown().await;
    tracing::info!("stopped");
    match ended {
        None => ExitCode::SUCCESS,
        Some(_) => ExitCode::from(EXIT_START),
    }
}

/// Also for `--help` and `--version`.
fn wrong_usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    match error.use_stderr() {
        true => ExitCode::from(EXIT_CONFIG),
        false => ExitCode::SUCCESS,
    }
}

async fn new_admin_token(settings: &Settings, name: &str) -> ExitCode {
    match crate::server::new_admin_token(&settings.state_dir, name).await {
        Ok(token) => {
            let _ = writeln!(std::io::stdout(), "{token}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            tell(&format!("no token was made: {e}"));
            ExitCode::from(EXIT_START)
        }
    }
}

/// A demo or a test that is killed must not leave its server behind. Called on the main thread,
/// since the kernel forgets the wish of a thread that ends.
fn die_with_parent_if_asked() {
    let Ok(parent) = std::env::var("DUNLIN_DIE_WITH_PARENT") else {
        return;
    };
    let term = Some(rustix::process::Signal::TERM);
    // Where the kernel has no such thing, the server merely outlives its parent.
    let _ = rustix::process::set_parent_process_death_signal(term);
    // It may have died before.
    let present = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().to_string());
    if present.is_some_and(|present| present != parent) {
        eprintln!("process {parent}, which started this server, has ended");
        std::process::exit(1);
    }
}

fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("DUNLIN_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,mqtt5=warn"));
    // Another program in this process may have started it.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .try_init();
}

fn tell(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// The token is shown here, once, unless it is in a file.
fn announce(server: &RunningServer, as_json: bool, token_file: Option<&Path>) {
    if let Some(file) = token_file {
        if server.first_admin_token.is_some() {
            tracing::warn!(file = %file.display(), "the first admin token is in this file; delete it once it is kept elsewhere");
        }
        return;
    }
    let token = server.first_admin_token.as_deref();
    let mut out = std::io::stdout().lock();
    let _ = if as_json {
        let line = json!({
            "admin": server.admin.to_string(),
            "devices": server.devices.to_string(),
            "mqtt": server.mqtt.map(|a| a.to_string()),
            "token": token,
        });
        writeln!(out, "{line}")
    } else if let Some(token) = token {
        writeln!(out, "first admin token (shown only now): {token}")
    } else {
        Ok(())
    };
    let _ = out.flush();
}

/// Tells systemd that the server lives, as long as its database answers.
async fn keep_watchdog_quiet(store: crate::store::Store) {
    let mut limit_us = 0;
    if !sd_notify::watchdog_enabled(false, &mut limit_us) {
        return;
    }
    let mut ticks = tokio::time::interval(Duration::from_micros((limit_us / 3).max(1000)));
    loop {
        ticks.tick().await;
        match store.ping().await {
            Ok(()) => {
                let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Watchdog]);
            }
            Err(error) => tracing::error!(%error, "the database does not answer"),
        }
    }
}
