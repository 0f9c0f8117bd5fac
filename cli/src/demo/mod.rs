//! `dunlin demo`: the whole of Dunlin at work on one machine.
//!
//! One fleet server and many agents, each a real process; real models, real samples, real
//! signatures. Nothing is downloaded. What is shown is what happened: the summary is built from
//! what server and devices report, and the exit status is 0 only if all of it came true.

mod attacks;
mod captured;
pub mod models;
pub mod processes;
mod rollouts;
mod story;
pub mod stream;
mod summary;

use crate::failure::{Exit, Failure};
use anyhow::Context as _;
use std::path::PathBuf;
use story::Story;
use summary::Summary;

/// Fewest devices for which three canaries can be judged at the default level, and some to spare.
const DEVICES_MIN: u16 = 12;
const DEVICES_MAX: u16 = 200;

/// Arguments of `dunlin demo`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
The demo needs nothing installed and downloads nothing. It ends with a table; the exit status is 0
only if everything in it came true.

Examples:
  dunlin demo
  dunlin demo --seed 7 --json summary.json
  dunlin demo --keep          look around: the admin API, the devices' sockets, the logs")]
pub struct DemoArgs {
    /// Write the summary as JSON (schema: docs/demo-summary.schema.json)
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Changes the devices' streams and the draw of the canaries
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Number of devices
    #[arg(long, default_value_t = DEVICES_MIN, value_parser = clap::value_parser!(u16).range(i64::from(DEVICES_MIN)..=i64::from(DEVICES_MAX)))]
    pub devices: u16,
    /// Leave the fleet running at the end, until interrupted
    #[arg(long)]
    pub keep: bool,
}

/// Runs the demo.
///
/// # Errors
/// What could not even be tried; what was tried and came out wrong is in the summary, and the
/// exit is [`Exit::Failed`].
pub async fn run(args: &DemoArgs) -> Result<Exit, Failure> {
    let dir = tempfile::Builder::new()
        .prefix("dunlin-demo-")
        .tempdir()
        .map_err(|e| Failure::new(format!("no temporary folder: {e}")))?;
    let interrupted = interrupted().map_err(Failure::new)?;
    tokio::pin!(interrupted);
    let mut story = Story::new(args, dir.path()).map_err(|e| Failure::new(format!("{e:#}")))?;
    let told = tokio::select! {
        told = story.tell() => told,
        () = &mut interrupted => Err(anyhow::anyhow!("interrupted")),
    };
    let mut exit = Exit::Failed;
    match told {
        Ok(()) => {
            let summary = story.summary();
            summary.print();
            if summary.passed() {
                exit = Exit::Done;
            }
            write_json(args, &summary).map_err(|e| Failure::new(format!("{e:#}")))?;
            if args.keep {
                story.print_how_to_look();
                interrupted.await;
            }
        }
        Err(e) => {
            eprintln!("dunlin demo: {e:#}");
            if args.keep {
                story.print_how_to_look();
                interrupted.await;
            }
        }
    }
    story.end().await;
    Ok(exit)
}

fn write_json(args: &DemoArgs, summary: &Summary) -> anyhow::Result<()> {
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(summary)?;
        std::fs::write(path, text + "\n").with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// SIGINT, SIGTERM or SIGHUP.
fn interrupted() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut int = signal(SignalKind::interrupt())?;
    let mut term = signal(SignalKind::terminate())?;
    let mut hup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = int.recv() => {}
            _ = term.recv() => {}
            _ = hup.recv() => {}
        }
    })
}
