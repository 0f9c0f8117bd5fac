//! `dunlin export`: telemetry as Parquet files.

use crate::api::ApiClient;
use crate::args::{DataAction, DataArgs, SelectionArgs};
use crate::context::Session;
use crate::failure::{Exit, Failure};
use crate::files::stream_whole;
use crate::table::{self, bytes_text};
use jiff::Timestamp;
use serde_json::json;
use std::io::{IsTerminal as _, Write};
use std::time::{Duration, Instant};

/// Time between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// Largest file that is taken, in bytes: a server that never ends fills no disk for ever.
const FILE_MAX_BYTES: u64 = 1 << 40;

/// `dunlin export`.
///
/// # Errors
/// What could not be done, as one line.
pub async fn run(args: &DataArgs) -> Result<Exit, Failure> {
    let (table, selection) = match &args.action {
        DataAction::Windows(selection) => ("windows", selection),
        DataAction::Histograms(selection) => ("histograms", selection),
        DataAction::Reference(selection) => ("reference", selection),
    };
    let session = Session::open(&args.shared)?;
    let query = query(selection, Timestamp::now());
    let bytes = fetch(&session.client, table, &query, selection, session.json).await?;
    if session.json {
        table::print_json(&json!({"out": selection.out, "bytes": bytes, "table": table}));
    } else {
        table::print_line(&format!(
            "{table} of {} in {}: {}",
            selection.family,
            selection.out.display(),
            bytes_text(bytes)
        ));
    }
    Ok(Exit::Done)
}

fn query(selection: &SelectionArgs, now: Timestamp) -> Vec<(&'static str, String)> {
    let since_ms = match (selection.from, selection.last) {
        (Some(from), _) => Some(from.as_millisecond()),
        (None, Some(last)) => {
            let last_ms = i64::try_from(last.as_millis()).unwrap_or(i64::MAX);
            Some(now.as_millisecond().saturating_sub(last_ms))
        }
        (None, None) => None,
    };
    let until_ms = selection.until.map(Timestamp::as_millisecond);
    let mut query = vec![("family", selection.family.to_string())];
    query.extend(selection.version.map(|v| ("version", v.to_string())));
    query.extend(selection.segment.clone().map(|s| ("segment", s)));
    query.extend(selection.cohort.clone().map(|c| ("cohort", c)));
    query.extend(
        selection
            .rollout
            .as_ref()
            .map(|r| ("rollout", r.to_string())),
    );
    query.extend(since_ms.map(|ms| ("since_ms", ms.to_string())));
    query.extend(until_ms.map(|ms| ("until_ms", ms.to_string())));
    query
}

async fn fetch(
    client: &ApiClient,
    table: &str,
    query: &[(&str, String)],
    selection: &SelectionArgs,
    is_quiet: bool,
) -> Result<u64, Failure> {
    let (mut file, beside) = stream_whole(&selection.out)?;
    let mut to = Told {
        file: &mut file,
        written: 0,
        last: Instant::now(),
        is_told: !is_quiet && std::io::stderr().is_terminal(),
    };
    let fetched = client.export(table, query, FILE_MAX_BYTES, &mut to).await;
    to.end();
    let bytes = fetched?;
    beside.keep(&file)?;
    Ok(bytes)
}

/// Tells a person how far it is.
struct Told<'a> {
    file: &'a mut std::fs::File,
    written: u64,
    last: Instant,
    is_told: bool,
}

impl Told<'_> {
    fn end(&self) {
        if self.is_told && self.written > 0 {
            eprintln!();
        }
    }
}

impl Write for Told<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.written += written as u64;
        if self.is_told && self.last.elapsed() >= PROGRESS_EVERY {
            eprint!("\r{} so far", bytes_text(self.written));
            self.last = Instant::now();
        }
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}
