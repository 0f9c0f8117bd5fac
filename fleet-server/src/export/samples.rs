//! Captured inputs as a table: one row a request, a column an input.

use super::table::{Field, Kind, Table, TableError};
use dunlin_protocol::id::{DeviceId, Digest, Family};
use std::collections::BTreeMap;
use std::io::Write;

/// What every sample has.
const HEAD: [(&str, Kind); 12] = [
    ("device", Kind::Text),
    ("family", Kind::Text),
    ("version", Kind::Count),
    ("bundle", Kind::Text),
    ("window_start", Kind::Time),
    ("window_end", Kind::Time),
    ("time", Kind::Time),
    ("weight", Kind::Real),
    ("considered", Kind::Count),
    ("confidence", Kind::OptionalReal),
    ("predicted", Kind::OptionalText),
    ("outputs", Kind::Reals),
];

/// A captured request.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Who captured it.
    pub device: DeviceId,
    /// Family of the model.
    pub family: Family,
    /// Its version.
    pub version: u64,
    /// Digest of the bundle.
    pub bundle: Digest,
    /// Start of the window that it was drawn from, in milliseconds since 1970.
    pub window_start_ms: i64,
    /// Its end.
    pub window_end_ms: i64,
    /// When it was computed, in milliseconds since 1970.
    pub time_ms: i64,
    /// Its weight in the draw: 1 for an ordinary input, more for an unusual one.
    pub weight: f64,
    /// Requests that the window's samples were drawn from.
    pub considered: u64,
    /// Largest of the observed scores, if there are any.
    pub confidence: Option<f64>,
    /// The predicted class's name, if there is one.
    pub predicted: Option<String>,
    /// The observed scores.
    pub outputs: Vec<f64>,
    /// Inputs by tensor, row-major.
    pub inputs: BTreeMap<String, Vec<f64>>,
}

/// The table of samples. What it is written to is told when it is finished.
pub struct Samples<W: Write + Send> {
    table: Table<W>,
    inputs: Vec<String>,
}

impl<W: Write + Send> Samples<W> {
    /// Begins a table with a column `input_NAME` for each of these tensors; what a sample has of
    /// others is left out. `about` goes into the file's metadata.
    ///
    /// # Errors
    /// [`TableError`]
    pub fn begin(
        to: W,
        inputs: Vec<String>,
        about: Vec<(String, String)>,
    ) -> Result<Self, TableError> {
        let head = HEAD.iter().map(|(n, k)| ((*n).to_owned(), *k));
        let columns = inputs.iter().map(|n| (format!("input_{n}"), Kind::Reals));
        let fields: Vec<Field> = head.chain(columns).collect();
        Ok(Self {
            table: Table::begin(to, "samples", &fields, about)?,
            inputs,
        })
    }

    /// Writes a sample.
    ///
    /// # Errors
    /// [`TableError`]
    pub fn write(&mut self, sample: &Sample) -> Result<(), TableError> {
        let row = self.table.row().text(sample.device.as_str());
        let row = row.text(sample.family.as_str()).count(sample.version);
        let mut row = row
            .text(&sample.bundle.to_string())
            .time(sample.window_start_ms)
            .time(sample.window_end_ms)
            .time(sample.time_ms)
            .real(sample.weight)
            .count(sample.considered)
            .optional_real(sample.confidence)
            .optional_text(sample.predicted.as_deref())
            .reals(&sample.outputs);
        for name in &self.inputs {
            let values = sample.inputs.get(name).map(Vec::as_slice);
            row = row.reals(values.unwrap_or_default());
        }
        row.end()
    }

    /// Writes what is left, and the footer.
    ///
    /// # Errors
    /// [`TableError`]
    pub fn finish(self) -> Result<(), TableError> {
        self.table.finish()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_sample_without_an_input_has_an_empty_list() {
        let mut bytes = Vec::new();
        let inputs = vec!["x".to_owned(), "odd \" name".to_owned()];
        let mut samples = Samples::begin(&mut bytes, inputs, Vec::new()).unwrap();
        let sample = Sample {
            device: "edge-1".parse().unwrap(),
            family: "digits".parse().unwrap(),
            version: 3,
            bundle: Digest::of(b"b"),
            window_start_ms: 0,
            window_end_ms: 60_000,
            time_ms: 5,
            weight: 12.5,
            considered: 600,
            confidence: Some(0.75),
            predicted: None,
            outputs: vec![0.75, 0.25],
            inputs: BTreeMap::from([("x".to_owned(), vec![1.0, 2.0]), ("z".to_owned(), vec![])]),
        };
        samples.write(&sample).unwrap();
        samples.finish().unwrap();
        let rows = super::super::table::rows(bytes);
        assert_eq!(rows.len(), 1);
        assert!(rows[0].contains("weight: 12.5"), "{rows:?}");
        assert!(
            rows[0].ends_with("input_x: [1.0, 2.0], input_odd \" name: []}"),
            "{rows:?}"
        );
    }
}
