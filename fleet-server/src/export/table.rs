//! Rows into Parquet. The one place that names the library.
//!
//! Rows are gathered by column and written as a row group once they hold `GROUP_BYTES`, so memory is
//! bounded by that, however long the table. A file without its last bytes is none: what breaks off
//! is never taken for a whole table.

use parquet::basic::{Compression, LogicalType, Repetition, TimeUnit, Type as Physical, ZstdLevel};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::types::Type;
use std::io::Write;
use std::sync::Arc;

/// Bytes of gathered values that make a row group.
const GROUP_BYTES: usize = 16 << 20;
/// Most rows of a row group.
const GROUP_ROWS: usize = 1 << 20;
/// Times that every reader can hold: the years 1970 to 9999, in milliseconds since 1970.
const TIMES_MS: std::ops::Range<i64> = 0..253_402_300_800_000;

/// Why a table was not written.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The library, or where it writes to.
    #[error("parquet: {0}")]
    Parquet(#[from] ParquetError),
    /// A row that is not of the table's columns.
    #[error("parquet: column {column}: {problem}")]
    Row {
        /// Which column, counted from 0.
        column: usize,
        /// What is wrong.
        problem: &'static str,
    },
}

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// UTF-8 text.
    Text,
    /// Text, or nothing.
    OptionalText,
    /// An unsigned 64-bit number.
    Count,
    /// A double.
    Real,
    /// A double, or nothing.
    OptionalReal,
    /// Milliseconds since 1970, UTC; nothing for years before 1970 and after 9999.
    Time,
    /// Yes or no.
    Flag,
    /// A list of unsigned 64-bit numbers.
    Counts,
    /// A list of them, or nothing.
    OptionalCounts,
    /// A list of doubles.
    Reals,
}

/// A column's name and what it holds.
pub type Field = (String, Kind);

impl Kind {
    fn is_list(self) -> bool {
        matches!(self, Self::Counts | Self::OptionalCounts | Self::Reals)
    }

    fn repetition(self) -> Repetition {
        match self {
            Self::OptionalText | Self::OptionalReal | Self::Time | Self::OptionalCounts => {
                Repetition::OPTIONAL
            }
            _ => Repetition::REQUIRED,
        }
    }

    fn leaf(self, name: &str, repetition: Repetition) -> Result<Type, ParquetError> {
        let (physical, logical) = match self {
            Self::Text | Self::OptionalText => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
            Self::Count | Self::Counts | Self::OptionalCounts => {
                (Physical::INT64, Some(LogicalType::integer(64, false)))
            }
            Self::Real | Self::OptionalReal | Self::Reals => (Physical::DOUBLE, None),
            Self::Flag => (Physical::BOOLEAN, None),
            Self::Time => {
                let logical = LogicalType::timestamp(true, TimeUnit::MILLIS);
                (Physical::INT64, Some(logical))
            }
        };
        Type::primitive_type_builder(name, physical)
            .with_repetition(repetition)
            .with_logical_type(logical)
            .build()
    }

    fn schema(self, name: &str) -> Result<Type, ParquetError> {
        if !self.is_list() {
            return self.leaf(name, self.repetition());
        }
        // The three levels that the format's standard has for lists.
        let element = self.leaf("element", Repetition::REQUIRED)?;
        let list = Type::group_type_builder("list")
            .with_repetition(Repetition::REPEATED)
            .with_fields(vec![Arc::new(element)])
            .build()?;
        Type::group_type_builder(name)
            .with_repetition(self.repetition())
            .with_logical_type(Some(LogicalType::List))
            .with_fields(vec![Arc::new(list)])
            .build()
    }

    fn values(self) -> Values {
        match self {
            Self::Text | Self::OptionalText => Values::Texts(Vec::new()),
            Self::Real | Self::OptionalReal | Self::Reals => Values::Reals(Vec::new()),
            Self::Flag => Values::Flags(Vec::new()),
            _ => Values::Numbers(Vec::new()),
        }
    }
}

#[derive(Debug)]
enum Values {
    Texts(Vec<ByteArray>),
    Numbers(Vec<i64>),
    Reals(Vec<f64>),
    Flags(Vec<bool>),
}

/// One column's gathered values, with the format's definition and repetition levels.
#[derive(Debug)]
struct Column {
    kind: Kind,
    values: Values,
    definitions: Vec<i16>,
    repetitions: Vec<i16>,
}

impl Column {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            values: kind.values(),
            definitions: Vec::new(),
            repetitions: Vec::new(),
        }
    }

    /// Levels of a list of so many elements; `None` for a list that is not there.
    fn list(&mut self, length: Option<usize>) {
        let is_optional = self.kind.repetition() == Repetition::OPTIONAL;
        let empty = i16::from(is_optional);
        match length {
            None => self.level(0, 0),
            Some(0) => self.level(empty, 0),
            Some(length) => {
                for at in 0..length {
                    self.level(empty + 1, i16::from(at > 0));
                }
            }
        }
    }

    fn level(&mut self, definition: i16, repetition: i16) {
        self.definitions.push(definition);
        self.repetitions.push(repetition);
    }

    fn write(&mut self, mut to: SerializedColumnWriter<'_>) -> Result<(), ParquetError> {
        let has_definitions = self.kind.is_list() || self.kind.repetition() == Repetition::OPTIONAL;
        let definitions = has_definitions.then_some(self.definitions.as_slice());
        let repetitions = self.kind.is_list().then_some(self.repetitions.as_slice());
        match &self.values {
            Values::Texts(values) => {
                let writer = to.typed::<ByteArrayType>();
                writer.write_batch(values, definitions, repetitions)?;
            }
            Values::Numbers(values) => {
                let writer = to.typed::<Int64Type>();
                writer.write_batch(values, definitions, repetitions)?;
            }
            Values::Reals(values) => {
                let writer = to.typed::<DoubleType>();
                writer.write_batch(values, definitions, repetitions)?;
            }
            Values::Flags(values) => {
                let writer = to.typed::<BoolType>();
                writer.write_batch(values, definitions, repetitions)?;
            }
        }
        to.close()?;
        *self = Self::new(self.kind);
        Ok(())
    }
}

/// A table that is written to `W`.
pub struct Table<W: Write + Send> {
    file: SerializedFileWriter<W>,
    columns: Vec<Column>,
    rows: usize,
    bytes: usize,
}

impl<W: Write + Send> Table<W> {
    /// Begins a table. `about` goes into the file's key-value metadata.
    ///
    /// # Errors
    /// [`TableError`]
    pub fn begin(
        to: W,
        name: &str,
        fields: &[Field],
        about: Vec<(String, String)>,
    ) -> Result<Self, TableError> {
        let types: Result<Vec<_>, ParquetError> = fields
            .iter()
            .map(|(name, kind)| kind.schema(name).map(Arc::new))
            .collect();
        let schema = Type::group_type_builder(name).with_fields(types?).build()?;
        let about = about
            .into_iter()
            .map(|(key, value)| KeyValue::new(key, value));
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
            .set_statistics_enabled(EnabledStatistics::Chunk)
            .set_offset_index_disabled(true)
            .set_created_by(concat!("dunlin-server ", env!("CARGO_PKG_VERSION")).to_owned())
            .set_key_value_metadata(Some(about.collect()))
            .build();
        Ok(Self {
            file: SerializedFileWriter::new(to, Arc::new(schema), Arc::new(properties))?,
            columns: fields.iter().map(|(_, kind)| Column::new(*kind)).collect(),
            rows: 0,
            bytes: 0,
        })
    }

    /// Begins a row; it counts once it is [`end`](Row::end)ed.
    pub fn row(&mut self) -> Row<'_, W> {
        Row {
            table: self,
            at: 0,
            problem: None,
        }
    }

    fn flush(&mut self) -> Result<(), TableError> {
        if self.rows == 0 {
            return Ok(());
        }
        let mut group = self.file.next_row_group()?;
        for column in &mut self.columns {
            if let Some(writer) = group.next_column()? {
                column.write(writer)?;
            }
        }
        group.close()?;
        (self.rows, self.bytes) = (0, 0);
        Ok(())
    }

    /// Writes what is left, and the footer.
    ///
    /// # Errors
    /// [`TableError`]; it is no table then.
    pub fn finish(mut self) -> Result<(), TableError> {
        self.flush()?;
        self.file.close()?;
        Ok(())
    }
}

/// A row: one call a column, in the order of the fields.
#[must_use]
pub struct Row<'a, W: Write + Send> {
    table: &'a mut Table<W>,
    at: usize,
    problem: Option<TableError>,
}

impl<W: Write + Send> Row<'_, W> {
    fn push(&mut self, kinds: &[Kind], bytes: usize, add: impl FnOnce(&mut Column) -> Option<()>) {
        let column = self.at;
        self.at += 1;
        let found = self.table.columns.get_mut(column);
        let added = found
            .filter(|column| kinds.contains(&column.kind))
            .and_then(add);
        self.table.bytes += bytes;
        if added.is_none() {
            self.problem.get_or_insert(TableError::Row {
                column,
                problem: "holds something else",
            });
        }
    }

    /// Text.
    pub fn text(mut self, text: &str) -> Self {
        self.push(&[Kind::Text], text.len() + 16, |column| {
            let Values::Texts(values) = &mut column.values else {
                return None;
            };
            values.push(ByteArray::from(text));
            Some(())
        });
        self
    }

    /// Text, or nothing.
    pub fn optional_text(mut self, text: Option<&str>) -> Self {
        let bytes = text.map_or(0, str::len) + 16;
        self.push(&[Kind::OptionalText], bytes, |column| {
            column.definitions.push(i16::from(text.is_some()));
            let Values::Texts(values) = &mut column.values else {
                return None;
            };
            values.extend(text.map(ByteArray::from));
            Some(())
        });
        self
    }

    /// A number.
    pub fn count(mut self, count: u64) -> Self {
        self.push(&[Kind::Count], 8, |column| {
            let Values::Numbers(values) = &mut column.values else {
                return None;
            };
            // The same 64 bits: the column says that they are unsigned.
            values.push(count.cast_signed());
            Some(())
        });
        self
    }

    /// Yes or no.
    pub fn flag(mut self, flag: bool) -> Self {
        self.push(&[Kind::Flag], 1, |column| {
            let Values::Flags(values) = &mut column.values else {
                return None;
            };
            values.push(flag);
            Some(())
        });
        self
    }

    /// A double.
    pub fn real(mut self, value: f64) -> Self {
        self.push(&[Kind::Real], 8, |column| {
            let Values::Reals(values) = &mut column.values else {
                return None;
            };
            values.push(value);
            Some(())
        });
        self
    }

    /// A double, or nothing.
    pub fn optional_real(mut self, value: Option<f64>) -> Self {
        self.push(&[Kind::OptionalReal], 10, |column| {
            column.definitions.push(i16::from(value.is_some()));
            let Values::Reals(values) = &mut column.values else {
                return None;
            };
            values.extend(value);
            Some(())
        });
        self
    }

    /// Milliseconds since 1970; nothing if readers could not hold it.
    pub fn time(mut self, time_ms: i64) -> Self {
        let time_ms = TIMES_MS.contains(&time_ms).then_some(time_ms);
        self.push(&[Kind::Time], 10, |column| {
            column.definitions.push(i16::from(time_ms.is_some()));
            let Values::Numbers(values) = &mut column.values else {
                return None;
            };
            values.extend(time_ms);
            Some(())
        });
        self
    }

    /// A list of numbers; `None` only where the column allows it.
    pub fn counts(mut self, counts: Option<&[u64]>) -> Self {
        let kinds: &[Kind] = match counts {
            Some(_) => &[Kind::Counts, Kind::OptionalCounts],
            None => &[Kind::OptionalCounts],
        };
        let bytes = 12 * counts.map_or(0, <[u64]>::len) + 4;
        self.push(kinds, bytes, |column| {
            column.list(counts.map(<[u64]>::len));
            let Values::Numbers(values) = &mut column.values else {
                return None;
            };
            values.extend(counts.unwrap_or_default().iter().map(|n| n.cast_signed()));
            Some(())
        });
        self
    }

    /// A list of doubles.
    pub fn reals(mut self, reals: &[f64]) -> Self {
        self.push(&[Kind::Reals], 12 * reals.len() + 4, |column| {
            column.list(Some(reals.len()));
            let Values::Reals(values) = &mut column.values else {
                return None;
            };
            values.extend(reals);
            Some(())
        });
        self
    }

    /// Ends the row.
    ///
    /// # Errors
    /// Other columns than the table's, or a row group could not be written.
    pub fn end(self) -> Result<(), TableError> {
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        if self.at != self.table.columns.len() {
            return Err(TableError::Row {
                column: self.at,
                problem: "is missing",
            });
        }
        self.table.rows += 1;
        if self.table.bytes >= GROUP_BYTES || self.table.rows >= GROUP_ROWS {
            self.table.flush()?;
        }
        Ok(())
    }
}

/// A file's rows as text.
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) fn rows(file: Vec<u8>) -> Vec<String> {
    use parquet::file::reader::{FileReader as _, SerializedFileReader};
    let reader = SerializedFileReader::new(bytes::Bytes::from(file)).unwrap();
    let rows = reader.get_row_iter(None).unwrap();
    rows.map(|row| row.unwrap().to_string()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use bytes::Bytes;
    use parquet::file::reader::{FileReader as _, SerializedFileReader};

    fn written(fields: &[Field], rows: impl FnOnce(&mut Table<&mut Vec<u8>>)) -> Vec<u8> {
        let mut bytes = Vec::new();
        let about = vec![("dunlin.format".to_owned(), "dunlin.test/1".to_owned())];
        let mut table = Table::begin(&mut bytes, "test", fields, about).unwrap();
        rows(&mut table);
        table.finish().unwrap();
        bytes
    }

    #[test]
    fn rows_come_back_as_they_went_in() {
        let field = |name: &str, kind| (name.to_owned(), kind);
        let fields = [
            field("text", Kind::Text),
            field("maybe", Kind::OptionalText),
            field("count", Kind::Count),
            field("when", Kind::Time),
            field("mean", Kind::OptionalReal),
            field("counts", Kind::Counts),
            field("cells", Kind::OptionalCounts),
            field("values", Kind::Reals),
        ];
        let bytes = written(&fields, |table| {
            let row = table.row().text("a").optional_text(Some("b"));
            let row = row.count(u64::MAX).time(1_700_000_000_123);
            let row = row.optional_real(Some(0.5)).counts(Some(&[1, 2]));
            row.counts(Some(&[])).reals(&[1.5]).end().unwrap();
            let row = table.row().text("").optional_text(None);
            let row = row.count(0).time(i64::MAX).optional_real(None);
            row.counts(Some(&[])).counts(None).reals(&[]).end().unwrap();
        });
        let reader = SerializedFileReader::new(Bytes::from(bytes.clone())).unwrap();
        let about = reader.metadata().file_metadata().key_value_metadata();
        assert_eq!(about.unwrap()[0].value.as_deref(), Some("dunlin.test/1"));
        assert_eq!(
            super::rows(bytes),
            [
                r#"{text: "a", maybe: "b", count: 18446744073709551615, when: 2023-11-14 22:13:20.123 +00:00, mean: 0.5, counts: [1, 2], cells: [], values: [1.5]}"#,
                r#"{text: "", maybe: null, count: 0, when: null, mean: null, counts: [], cells: null, values: []}"#,
            ]
        );
    }

    #[test]
    fn a_row_of_other_columns_is_refused() {
        let fields = [("n".to_owned(), Kind::Count), ("t".to_owned(), Kind::Text)];
        written(&fields, |table| {
            assert!(table.row().text("a").text("b").end().is_err());
        });
        written(&fields, |table| {
            assert!(table.row().count(1).end().is_err());
        });
    }

    #[test]
    fn what_is_gathered_is_written_in_groups() {
        let fields = [("counts".to_owned(), Kind::Counts)];
        let counts: Vec<u64> = (0..100_000).collect();
        let bytes = written(&fields, |table| {
            for _ in 0..40 {
                table.row().counts(Some(&counts)).end().unwrap();
                assert!(table.bytes < GROUP_BYTES);
            }
        });
        let reader = SerializedFileReader::new(Bytes::from(bytes)).unwrap();
        assert!(reader.metadata().num_row_groups() > 2);
        assert_eq!(reader.metadata().file_metadata().num_rows(), 40);
    }
}
