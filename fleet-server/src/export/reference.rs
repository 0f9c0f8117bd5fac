//! Reference profiles as a table: one row a signal and bin.

use super::VersionLineage;
use super::table::{Field, Kind, Table, TableError};
use dunlin_protocol::bundle::Profile;
use dunlin_protocol::sketch::Edges;
use std::io::Write;

const COLUMNS: [(&str, Kind); 11] = [
    ("family", Kind::Text),
    ("version", Kind::Count),
    ("bundle", Kind::Text),
    ("profile", Kind::Text),
    ("signal", Kind::Text),
    ("position", Kind::Count),
    ("name", Kind::Text),
    ("bin", Kind::Count),
    ("lower", Kind::OptionalReal),
    ("upper", Kind::OptionalReal),
    ("count", Kind::Count),
];

pub(super) const NAME: &str = "reference";

pub(super) fn fields() -> Vec<Field> {
    let columns = COLUMNS.iter();
    columns.map(|(n, k)| ((*n).to_owned(), *k)).collect()
}

/// Writes a version's reference; nothing if it has none.
pub(super) fn write<W: Write + Send>(
    table: &mut Table<W>,
    version: &VersionLineage,
) -> Result<(), TableError> {
    let Ok(reference) = &version.reference else {
        return Ok(());
    };
    let profile: &Profile = &reference.profile;
    let of = Of {
        version,
        profile: &reference.digest.to_string(),
    };
    for (at, feature) in profile.features.iter().enumerate() {
        let bins = (&feature.edges, feature.counts.as_slice());
        of.bins(table, ("feature", at as u64, &feature.name), bins)?;
    }
    for (signal, output) in [
        ("confidence", &profile.confidence),
        ("entropy", &profile.entropy),
    ] {
        let bins = (&output.edges, output.counts.as_slice());
        of.bins(table, (signal, 0, signal), bins)?;
    }
    let classes = profile.outputs.classes.iter().zip(&profile.outputs.counts);
    for (at, (class, count)) in classes.enumerate() {
        let signal = ("output", at as u64, class.as_str());
        of.row(table, signal, at as u64, (None, None), *count)?;
    }
    Ok(())
}

struct Of<'a> {
    version: &'a VersionLineage,
    profile: &'a str,
}

/// Kind, position and name.
type Signal<'a> = (&'a str, u64, &'a str);

impl Of<'_> {
    fn bins<W: Write + Send>(
        &self,
        table: &mut Table<W>,
        signal: Signal<'_>,
        (edges, counts): (&Edges, &[u64]),
    ) -> Result<(), TableError> {
        let pairs = edges.as_slice().windows(2).zip(counts);
        for (bin, (edges, count)) in pairs.enumerate() {
            let span = (edges.first().copied(), edges.last().copied());
            self.row(table, signal, bin as u64, span, *count)?;
        }
        Ok(())
    }

    fn row<W: Write + Send>(
        &self,
        table: &mut Table<W>,
        (signal, position, name): Signal<'_>,
        bin: u64,
        (lower, upper): (Option<f64>, Option<f64>),
        count: u64,
    ) -> Result<(), TableError> {
        let bundle = &self.version.bundle;
        let row = table.row().text(bundle.family.as_str());
        let row = row.count(bundle.version).text(&bundle.digest.to_string());
        let row = row.text(self.profile).text(signal).count(position);
        let row = row.text(name).count(bin);
        let row = row.optional_real(lower).optional_real(upper);
        row.count(count).end()
    }
}
