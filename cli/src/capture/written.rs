//! Opened samples as files: a line of JSON each, or a Parquet table.

use crate::failure::Failure;
use crate::files;
use dunlin_protocol::capture::samples::{CapturedRow, CapturedTensor, CapturedValues};
use dunlin_server::export::samples::{Sample, Samples};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;

/// Writes rows as the file's name says: `.parquet`, else a line of JSON each; to standard output
/// without a file. They are what somebody's sensors saw: a file is its owner's alone.
pub(super) fn write_rows(out: Option<&Path>, rows: &[CapturedRow]) -> Result<(), Failure> {
    let Some(path) = out else {
        return std::io::stdout()
            .write_all(&lines(rows))
            .map_err(Failure::new);
    };
    let bytes = match path.extension().is_some_and(|e| e == "parquet") {
        true => as_table(rows)?,
        false => lines(rows),
    };
    Ok(files::write_secret(path, &bytes)?)
}

fn lines(rows: &[CapturedRow]) -> Vec<u8> {
    let mut text = Vec::new();
    for row in rows {
        text.extend_from_slice(row.to_json().to_string().as_bytes());
        text.push(b'\n');
    }
    text
}

fn as_table(rows: &[CapturedRow]) -> Result<Vec<u8>, Failure> {
    let of_numbers = |row: &CapturedRow| {
        let tensors = row.inputs.iter().filter(|t| numbers(t).is_some());
        tensors.map(|t| t.name.clone()).collect::<Vec<_>>()
    };
    let inputs: BTreeSet<String> = rows.iter().flat_map(of_numbers).collect();
    let left_out: BTreeSet<&str> = rows
        .iter()
        .flat_map(|row| &row.inputs)
        .filter(|t| numbers(t).is_none())
        .map(|t| t.name.as_str())
        .collect();
    for name in left_out {
        eprintln!(
            "dunlin: input {name:?} holds bytes, for which a table of numbers has no column: see it as JSON"
        );
    }
    // By bundle, since rows of several may be asked for at once.
    let lineage: BTreeMap<String, _> = rows
        .iter()
        .map(|row| (row.bundle.to_string(), json!(row.lineage)))
        .collect();
    let about = vec![("dunlin.lineage".to_owned(), json!(lineage).to_string())];
    let mut bytes = Vec::new();
    let mut table =
        Samples::begin(&mut bytes, inputs.into_iter().collect(), about).map_err(Failure::new)?;
    for row in rows {
        table.write(&sample(row)).map_err(Failure::new)?;
    }
    table.finish().map_err(Failure::new)?;
    Ok(bytes)
}

fn sample(row: &CapturedRow) -> Sample {
    let named = |t: &CapturedTensor| Some((t.name.clone(), numbers(t)?));
    Sample {
        device: row.device.clone(),
        family: row.family.clone(),
        version: row.version,
        bundle: row.bundle,
        window_start_ms: row.window_start_ms,
        window_end_ms: row.window_end_ms,
        time_ms: row.time_ms,
        weight: row.weight,
        considered: row.considered,
        confidence: row.confidence,
        predicted: row.label.clone(),
        outputs: row.outputs.iter().filter_map(numbers).flatten().collect(),
        inputs: row.inputs.iter().filter_map(named).collect(),
    }
}

/// As doubles (whole numbers beyond 2^53 are rounded); none of bytes.
#[allow(clippy::cast_precision_loss, reason = "said above")]
fn numbers(tensor: &CapturedTensor) -> Option<Vec<f64>> {
    Some(match &tensor.values {
        CapturedValues::Truths(v) => v.iter().map(|t| f64::from(u8::from(*t))).collect(),
        CapturedValues::Unsigned(v) => v.iter().map(|n| *n as f64).collect(),
        CapturedValues::Signed(v) => v.iter().map(|n| *n as f64).collect(),
        CapturedValues::Floats(v) => v.clone(),
        CapturedValues::Bytes(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use dunlin_protocol::bundle::{DType, Lineage};
    use dunlin_protocol::capture::Stage;
    use dunlin_protocol::id::Digest;

    fn row() -> CapturedRow {
        let tensor = |name: &str, dtype, values| CapturedTensor {
            name: name.to_owned(),
            dtype,
            shape: vec![1, 2],
            values,
        };
        CapturedRow {
            device: "edge-1".parse().unwrap(),
            family: "digits".parse().unwrap(),
            version: 2,
            bundle: Digest::of(b"b"),
            window_start_ms: 1_790_000_000_000,
            window_end_ms: 1_790_000_060_000,
            time_ms: 1_790_000_000_005,
            weight: 40.0,
            considered: 600,
            stage: Stage::Sent,
            confidence: Some(0.5),
            class: Some(1),
            label: Some("one".to_owned()),
            inputs: vec![
                tensor("x", DType::FP32, CapturedValues::Floats(vec![1.5, -2.0])),
                tensor("n", DType::INT64, CapturedValues::Signed(vec![-3, 4])),
                tensor("photo", DType::BYTES, CapturedValues::Bytes(vec![vec![1]])),
            ],
            outputs: vec![tensor(
                "p",
                DType::FP32,
                CapturedValues::Floats(vec![0.5, 0.5]),
            )],
            features: Vec::new(),
            lineage: Lineage::default(),
        }
    }

    #[test]
    fn the_files_name_says_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (table, text) = (
            folder.path().join("s.parquet"),
            folder.path().join("s.ndjson"),
        );
        write_rows(Some(&table), &[row(), row()]).unwrap();
        write_rows(Some(&text), &[row(), row()]).unwrap();
        let table = std::fs::read(table).unwrap();
        assert!(table.starts_with(b"PAR1") && table.ends_with(b"PAR1"));
        let has = |text: &str| table.windows(text.len()).any(|w| w == text.as_bytes());
        assert!(has("input_x") && has("input_n") && !has("input_photo"));
        assert!(has("dunlin.lineage") && has("edge-1"));
        let text = std::fs::read_to_string(text).unwrap();
        assert_eq!(text.lines().count(), 2);
    }

    #[test]
    fn a_sample_has_every_number() {
        let sample = sample(&row());
        assert_eq!(sample.inputs["n"], [-3.0, 4.0]);
        assert_eq!(
            (sample.inputs.len(), sample.outputs.len(), sample.considered),
            (2, 2, 600)
        );
    }
}
