//! Reference rows from a file or a folder.

use dunlin_agent::pipeline::record::{fields, is_missing};
use dunlin_protocol::bundle::{DType, GoldenValues, TensorSpec};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

/// Longest line, and largest file of a folder.
const ROW_MAX_BYTES: u64 = 64 << 20;
/// Most files of a folder.
const FILES_MAX: usize = 1_000_000;

/// What is wrong with the data, and where.
#[derive(Debug, thiserror::Error)]
#[error("{}{}: {problem}", path.display(), line.map_or_else(String::new, |n| format!(":{n}")))]
pub(super) struct RowsError {
    path: PathBuf,
    line: Option<u64>,
    problem: String,
}

/// One row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    /// Values by tensor.
    pub(super) values: BTreeMap<String, GoldenValues>,
    /// The right class.
    pub(super) label: Option<String>,
}

/// A row of JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    inputs: BTreeMap<String, GoldenValues>,
    #[serde(default)]
    label: Option<serde_json::Value>,
}

#[derive(Debug)]
enum Source {
    Csv {
        lines: BufReader<File>,
        /// Place of the label's column.
        label: Option<usize>,
    },
    Json(BufReader<File>),
    Folder(std::vec::IntoIter<(PathBuf, Option<String>)>),
}

/// Rows, one after another.
#[derive(Debug)]
pub(super) struct Rows {
    path: PathBuf,
    line: u64,
    source: Source,
    /// Columns but the label's.
    names: Vec<String>,
    inputs: Vec<TensorSpec>,
}

impl Rows {
    /// Opens them.
    ///
    /// # Errors
    /// Nothing there that can be read.
    pub(super) fn open(path: &Path, label: Option<&str>) -> Result<Self, RowsError> {
        let wrong = |problem: String| RowsError {
            path: path.to_owned(),
            line: None,
            problem,
        };
        let mut rows = Self {
            path: path.to_owned(),
            line: 0,
            source: Source::Folder(Vec::new().into_iter()),
            names: Vec::new(),
            inputs: Vec::new(),
        };
        if path.is_dir() {
            let mut found = Vec::new();
            files_in(path, None, &mut found).map_err(|e| wrong(e.to_string()))?;
            found.sort();
            rows.source = Source::Folder(found.into_iter());
            return Ok(rows);
        }
        let file = File::open(path).map_err(|e| wrong(e.to_string()))?;
        let lines = BufReader::new(file);
        let extension = path.extension().map(|e| e.to_ascii_lowercase());
        match extension.as_deref().and_then(|e| e.to_str()) {
            Some("jsonl" | "ndjson") => rows.source = Source::Json(lines),
            Some("csv") => rows.begin_csv(lines, label)?,
            _ => {
                return Err(wrong(
                    "expected a .csv or .jsonl file, or a folder".to_owned(),
                ));
            }
        }
        Ok(rows)
    }

    fn begin_csv(
        &mut self,
        mut lines: BufReader<File>,
        label: Option<&str>,
    ) -> Result<(), RowsError> {
        let header = self.read_line(&mut lines)?;
        let header = header.ok_or_else(|| self.wrong("expected a header".to_owned()))?;
        let mut names = fields(&header).map_err(|e| self.wrong(e.to_string()))?;
        let place = match label {
            None => None,
            Some(label) => {
                let place = names.iter().position(|name| name == label);
                let missing = || self.wrong(format!("no column {label:?} in {names:?}"));
                Some(place.ok_or_else(missing)?)
            }
        };
        if let Some(place) = place {
            names.remove(place);
        }
        self.names = names;
        self.source = Source::Csv {
            lines,
            label: place,
        };
        Ok(())
    }

    /// Names of the columns, if they have some.
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// What the rows are for.
    ///
    /// # Errors
    /// Data of this kind cannot fill these inputs.
    pub(super) fn fit(&mut self, inputs: &[TensorSpec]) -> Result<(), RowsError> {
        self.inputs = inputs.to_vec();
        let described = || {
            let all = inputs
                .iter()
                .map(|spec| format!("{:?} {:?}", spec.name, spec.shape));
            all.collect::<Vec<_>>().join(", ")
        };
        match &self.source {
            Source::Json(_) => Ok(()),
            Source::Folder(_) => match inputs {
                [one] if one.dtype == DType::BYTES && one.elements() == 1 => Ok(()),
                _ => Err(self.wrong(format!(
                    "a folder of files is for a model that takes one BYTES element, this one takes {}",
                    described()
                ))),
            },
            Source::Csv { .. } => match inputs {
                [one] if one.elements() == self.names.len() => Ok(()),
                [one] => Err(self.wrong(format!(
                    "{} columns beside the label's, the model takes {} ({})",
                    self.names.len(),
                    one.elements(),
                    described()
                ))),
                many => match many
                    .iter()
                    .find(|i| i.elements() != 1 || !self.names.contains(&i.name))
                {
                    None => Ok(()),
                    Some(input) => Err(self.wrong(format!(
                        "no column {:?} for an input of one element; the model takes {}",
                        input.name,
                        described()
                    ))),
                },
            },
        }
    }

    /// The next one.
    ///
    /// # Errors
    /// A row that cannot be read.
    pub(super) fn next_row(&mut self) -> Result<Option<Row>, RowsError> {
        match std::mem::replace(&mut self.source, Source::Folder(Vec::new().into_iter())) {
            Source::Folder(mut files) => {
                let next = files.next();
                self.source = Source::Folder(files);
                next.map(|(file, label)| self.of_file(file, label))
                    .transpose()
            }
            Source::Json(mut lines) => {
                let line = self.read_line(&mut lines)?;
                self.source = Source::Json(lines);
                line.map(|line| self.of_json(&line)).transpose()
            }
            Source::Csv { mut lines, label } => {
                let line = self.read_line(&mut lines)?;
                self.source = Source::Csv { lines, label };
                line.map(|line| self.of_csv(&line, label)).transpose()
            }
        }
    }

    /// Something is wrong with the row that was read last.
    pub(super) fn wrong(&self, problem: String) -> RowsError {
        RowsError {
            path: self.path.clone(),
            line: (self.line > 0).then_some(self.line),
            problem,
        }
    }

    /// The next line that is not empty, bounded.
    fn read_line(&mut self, lines: &mut BufReader<File>) -> Result<Option<Vec<u8>>, RowsError> {
        loop {
            let mut line = Vec::new();
            self.line += 1;
            let read = lines.take(ROW_MAX_BYTES).read_until(b'\n', &mut line);
            let read = read.map_err(|e| self.wrong(e.to_string()))?;
            if read == 0 {
                return Ok(None);
            }
            if read as u64 == ROW_MAX_BYTES {
                return Err(self.wrong(format!("a line of more than {ROW_MAX_BYTES} bytes")));
            }
            if !line.trim_ascii().is_empty() {
                return Ok(Some(line));
            }
        }
    }

    fn of_json(&self, line: &[u8]) -> Result<Row, RowsError> {
        let written: Written =
            serde_json::from_slice(line).map_err(|e| self.wrong(e.to_string()))?;
        let label = written.label.map(|label| match label {
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        });
        Ok(Row {
            values: written.inputs,
            label,
        })
    }

    fn of_csv(&self, line: &[u8], label: Option<usize>) -> Result<Row, RowsError> {
        let mut cells = fields(line).map_err(|e| self.wrong(e.to_string()))?;
        let expected = self.names.len() + usize::from(label.is_some());
        if cells.len() != expected {
            let got = cells.len();
            return Err(self.wrong(format!("expected {expected} columns, got {got}")));
        }
        let label = label.map(|place| cells.remove(place));
        let label = label.filter(|label| !label.is_empty());
        let value = |spec: &TensorSpec, cells: &[String]| {
            if spec.dtype == DType::BYTES {
                let texts = cells.iter().map(|cell| cell.clone().into_bytes());
                return Ok(GoldenValues::Bytes(texts.collect()));
            }
            let numbers = cells.iter().map(|cell| number(cell));
            let numbers: Result<Vec<f64>, String> = numbers.collect();
            numbers.map(GoldenValues::Numbers).map_err(|cell| {
                self.wrong(format!("{:?}: expected a number, got {cell:?}", spec.name))
            })
        };
        let mut values = BTreeMap::new();
        for spec in &self.inputs {
            let of_input = match self.inputs.as_slice() {
                [_] => &cells[..],
                _ => {
                    let place = self.names.iter().position(|name| *name == spec.name);
                    place.map_or(&[][..], |place| &cells[place..=place])
                }
            };
            values.insert(spec.name.clone(), value(spec, of_input)?);
        }
        Ok(Row { values, label })
    }

    fn of_file(&mut self, file: PathBuf, label: Option<String>) -> Result<Row, RowsError> {
        self.path = file;
        let opened = File::open(&self.path).map_err(|e| self.wrong(e.to_string()))?;
        let mut bytes = Vec::new();
        let read = opened.take(ROW_MAX_BYTES + 1).read_to_end(&mut bytes);
        let read = read.map_err(|e| self.wrong(e.to_string()))?;
        if read as u64 > ROW_MAX_BYTES {
            return Err(self.wrong(format!("more than {ROW_MAX_BYTES} bytes")));
        }
        let name = self
            .inputs
            .first()
            .map_or_else(String::new, |i| i.name.clone());
        let values = BTreeMap::from([(name, GoldenValues::Bytes(vec![bytes]))]);
        Ok(Row { values, label })
    }
}

fn number(cell: &str) -> Result<f64, String> {
    match cell {
        missing if is_missing(missing) => Ok(f64::NAN),
        "true" | "True" | "TRUE" => Ok(1.0),
        "false" | "False" | "FALSE" => Ok(0.0),
        _ => cell.parse().map_err(|_| cell.to_owned()),
    }
}

/// Files with the folder they are in, where that is not the first one.
fn files_in(
    folder: &Path,
    label: Option<&str>,
    found: &mut Vec<(PathBuf, Option<String>)>,
) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        // Links to files are followed, links to folders are not: they may lead round in a circle.
        if entry.file_type()?.is_dir() {
            files_in(&entry.path(), Some(&name), found)?;
        } else if entry.path().is_file() {
            found.push((entry.path(), label.map(str::to_owned)));
        }
        if found.len() > FILES_MAX {
            let problem = format!("more than {FILES_MAX} files");
            return Err(std::io::Error::other(problem));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "rows_tests.rs"]
mod tests;
