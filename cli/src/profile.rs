//! `dunlin bundle profile`: the reference that devices are compared with, from rows of data.

mod rows;

use crate::failure::{Exit, Failure};
use crate::files;
use crate::pack::staged;
use crate::table;
use clap::Args;
use dunlin_agent::inference::reference::{Made, Reference};
use dunlin_protocol::bundle::{DOCUMENT_MAX_BYTES, Segments};
use rows::{Rows, RowsError};
use serde_json::json;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How often progress is shown on a terminal.
const SHOWN_EVERY: Duration = Duration::from_millis(200);

/// `dunlin bundle profile`.
#[derive(Debug, Args)]
pub struct ProfileArgs {
    /// bundle.toml, or the folder it is in; a profile that it names need not be there yet
    pub spec: PathBuf,
    /// Rows as devices will see them: .csv with a header, .jsonl, or a folder of files (images, sound)
    #[arg(long, value_name = "PATH")]
    pub data: PathBuf,
    /// Where to write the profile
    #[arg(short, long, value_name = "FILE", default_value = "profile.json")]
    pub out: PathBuf,
    /// Column of the right class, by name or number: adds a calibration, from which accuracy is
    /// estimated without labels (in .jsonl it is "label", in a folder the file's own folder)
    #[arg(long, value_name = "COLUMN")]
    pub label: Option<String>,
    /// Request parameter by which devices count apart, such as camera
    #[arg(long, value_name = "KEY", requires = "segments")]
    pub segment_key: Option<String>,
    /// What it may be (repeatable, at most 16)
    #[arg(long = "segment", value_name = "VALUE", requires = "segment_key")]
    pub segments: Vec<String>,
    /// Most rows that are read, from the beginning
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rows_max: u32,
}

/// Makes a profile and says what is in it.
///
/// # Errors
/// A spec, a model or rows that do not fit together.
pub(crate) fn run(args: &ProfileArgs, is_json: bool) -> Result<Exit, Failure> {
    let segments = args.segment_key.clone().map(|key| Segments {
        key,
        values: args.segments.clone(),
    });
    if let Some(segments) = &segments {
        let checked = segments.check();
        checked.map_err(|e| Failure::usage(format!("--segment-key, --segment: {e}")))?;
    }
    let slot = staged(&args.spec)?;
    let mut rows = Rows::open(&args.data, args.label.as_deref())?;
    let mut reference = Reference::open(slot.path(), rows.names(), segments)
        .map_err(|e| Failure::new(format!("{}: {e}", args.spec.display())))?;
    rows.fit(&reference.inputs())?;
    let is_shown = std::io::stderr().is_terminal();
    let mut shown = Instant::now();
    let mut is_cut = false;
    while let Some(row) = rows.next_row()? {
        if reference.rows() == args.rows_max as usize {
            is_cut = true;
            break;
        }
        let added = reference.add(&row.values, row.label.as_deref());
        added.map_err(|e| Failure::from(rows.wrong(e.to_string())))?;
        if is_shown && shown.elapsed() >= SHOWN_EVERY {
            shown = Instant::now();
            eprint!("\r{} rows", reference.rows());
        }
    }
    if is_shown {
        eprint!("\r\x1b[K");
    }
    let Made { profile, mut notes } = reference
        .finish()
        .map_err(|e| Failure::new(format!("{}: {e}", args.data.display())))?;
    if is_cut {
        notes.push(format!("only the first {} rows were read", args.rows_max));
    }
    let json = serde_json::to_vec(&profile).map_err(|e| Failure::new(e.to_string()))?;
    if json.len() as u64 > DOCUMENT_MAX_BYTES {
        let problem = format!(
            "{} bytes, at most {DOCUMENT_MAX_BYTES} are accepted",
            json.len()
        );
        return Err(Failure::new(format!("profile: {problem}")));
    }
    files::write_whole(&args.out, &json)?;
    let accuracy = profile.calibration.as_ref().map(|c| (c.right, c.rows));
    if is_json {
        table::print_json(&json!({
            "out": args.out, "rows": profile.rows, "features": profile.features.len(),
            "classes": profile.outputs.classes.len(), "segments": profile.segments,
            "calibration": accuracy.map(|(right, rows)| json!({"rows": rows, "right": right})),
            "notes": notes,
        }));
        return Ok(Exit::Done);
    }
    table::print_line(&format!(
        "{}: {} features, {} classes, from {} rows",
        args.out.display(),
        profile.features.len(),
        profile.outputs.classes.len(),
        profile.rows
    ));
    if let Some((right, rows)) = accuracy {
        table::print_line(&format!(
            "calibration from {rows} labelled rows, {right} of which the model got right"
        ));
    }
    for note in notes {
        table::print_line(&note);
    }
    Ok(Exit::Done)
}

impl From<RowsError> for Failure {
    fn from(error: RowsError) -> Self {
        Self::new(error.to_string())
    }
}
