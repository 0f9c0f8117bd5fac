//! The operator's tool, as a library for the demo and the tests.
//!
//! * [`pack`]: spec → checked, content-addressed bundle.
//! * [`sign`]: bundles → targets metadata, signed by the offline [`keys`].
//! * [`patch`]: two models → the patch between them.
//! * [`publish`]: blobs and targets → fleet server, through [`api`].
//! * [`token`], [`device`], [`consumer`], [`rollout`], [`drift`], [`capture`]: one noun each.
//!
//! A signing key is read where it is used and goes nowhere else; in particular never to the server.

pub mod alert;
pub mod api;
pub mod args;
pub mod bundle;
pub mod capture;
pub mod consumer;
pub mod context;
pub mod dataset;
pub mod demo;
pub mod device;
pub mod drift;
pub mod export;
pub mod failure;
pub mod files;
pub mod keys;
pub mod pack;
pub mod patch;
mod profile;
pub mod publish;
pub mod rollout;
pub mod sign;
pub mod table;
pub mod token;

use args::{Cli, Command};
use clap::{CommandFactory, Parser};
use failure::{Exit, Failure};
use std::ffi::OsString;
use std::process::ExitCode;

/// Runs one command line, whose first element is the program's name.
#[must_use]
pub fn run(args: Vec<OsString>) -> ExitCode {
    // The other programs read their own arguments, `--help` included.
    match args.get(1).and_then(|noun| noun.to_str()) {
        Some("agent") => {
            return dunlin_agent::cli::main_with(&["agent"], passed("dunlin agent", &args));
        }
        Some("server") => {
            return with_runtime(dunlin_server::main_with(passed("dunlin server", &args)));
        }
        _ => {}
    }
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            let is_help = !error.use_stderr();
            return if is_help { Exit::Done } else { Exit::Usage }.into();
        }
    };
    with_runtime(async {
        match execute(&cli.command).await {
            Ok(exit) => exit.into(),
            Err(failure) => {
                eprintln!("dunlin: {failure}");
                failure.exit.into()
            }
        }
    })
}

/// What comes after the noun, with the program's name before it.
fn passed(program: &str, args: &[OsString]) -> Vec<OsString> {
    let rest = args.iter().skip(2).cloned();
    std::iter::once(OsString::from(program))
        .chain(rest)
        .collect()
}

fn with_runtime(future: impl Future<Output = ExitCode>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(future),
        Err(error) => {
            eprintln!("dunlin: cannot start: {error}");
            Exit::Failed.into()
        }
    }
}

async fn execute(command: &Command) -> Result<Exit, Failure> {
    match command {
        Command::Demo(args) => demo::run(args).await,
        Command::Login(args) => context::login(args).await,
        Command::Keys(args) => keys::run(args).await,
        Command::Bundle(args) => bundle::run(args).await,
        Command::Token(args) => token::run(args).await,
        Command::Device(args) => device::run(args).await,
        Command::Consumer(args) => consumer::run(args).await,
        Command::Rollout(args) => rollout::run(args).await,
        Command::Drift(args) => drift::run(args).await,
        Command::Capture(args) => capture::run(args).await,
        Command::Export(args) => dataset::run(args).await,
        Command::Alert(args) => alert::run(args).await,
        Command::Webhook(args) => alert::run_webhook(args).await,
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "dunlin", &mut script);
            table::print(&String::from_utf8_lossy(&script));
            Ok(Exit::Done)
        }
        // Handed on before the command line was read.
        Command::Server(_) | Command::Agent(_) => Err(Failure::usage(
            "server and agent must come first on the command line",
        )),
    }
}
