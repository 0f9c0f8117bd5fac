//! Windows as two tables: one row a window, and one row a window and histogram.

use super::VersionLineage;
use super::table::{Field, Kind, Row, Table, TableError};
use crate::drift::query::UNPUBLISHED;
use crate::drift::query::pool::{self, Judged, Soundness};
use crate::store::ReceivedWindow;
use dunlin_protocol::bundle::Profile;
use dunlin_protocol::sketch::{Histogram, MICRO};
use dunlin_protocol::telemetry::Window;
use std::io::Write;

/// Columns of `windows`.
const WINDOWS: [(&str, Kind); 23] = [
    ("device", Kind::Text),
    ("family", Kind::Text),
    ("version", Kind::Count),
    ("bundle", Kind::Text),
    ("model", Kind::OptionalText),
    ("profile", Kind::OptionalText),
    ("window_start", Kind::Time),
    ("window_end", Kind::Time),
    ("received_at", Kind::Time),
    ("parts", Kind::Count),
    ("segment", Kind::OptionalText),
    ("inferences", Kind::Count),
    ("errors", Kind::Count),
    ("refused", Kind::Count),
    ("confidence_sum_micro", Kind::Count),
    ("entropy_sum_micro", Kind::Count),
    ("confidence_mean", Kind::OptionalReal),
    ("entropy_mean", Kind::OptionalReal),
    ("outputs", Kind::Counts),
    ("latency_buckets", Kind::Counts),
    ("expected_confusion_nano", Kind::OptionalCounts),
    ("left_out", Kind::OptionalText),
    ("counted", Kind::Flag),
];

/// Columns of `histograms`.
const HISTOGRAMS: [(&str, Kind); 22] = [
    ("device", Kind::Text),
    ("family", Kind::Text),
    ("version", Kind::Count),
    ("bundle", Kind::Text),
    ("profile", Kind::OptionalText),
    ("window_start", Kind::Time),
    ("window_end", Kind::Time),
    ("received_at", Kind::Time),
    ("parts", Kind::Count),
    ("segment", Kind::OptionalText),
    ("signal", Kind::Text),
    ("position", Kind::Count),
    ("name", Kind::OptionalText),
    ("counts", Kind::Counts),
    ("under", Kind::Count),
    ("over", Kind::Count),
    ("nan", Kind::Count),
    ("pos_inf", Kind::Count),
    ("neg_inf", Kind::Count),
    ("missing", Kind::Count),
    ("left_out", Kind::OptionalText),
    ("isolated", Kind::OptionalText),
];

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One row a window.
    Windows,
    /// One row a window and histogram.
    Histograms,
}

impl Shape {
    /// Stable name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Windows => "windows",
            Self::Histograms => "histograms",
        }
    }

    pub(super) fn fields(self) -> Vec<Field> {
        let fields: &[(&str, Kind)] = match self {
            Self::Windows => &WINDOWS,
            Self::Histograms => &HISTOGRAMS,
        };
        fields.iter().map(|(n, k)| ((*n).to_owned(), *k)).collect()
    }

    /// Writes a window's rows. `versions` are those of its family.
    pub(super) fn write<W: Write + Send>(
        self,
        table: &mut Table<W>,
        received: &ReceivedWindow,
        versions: &[VersionLineage],
    ) -> Result<(), TableError> {
        let number = received.window.version;
        let version = versions.iter().find(|v| v.bundle.version == number);
        let reference = version.and_then(|v| v.reference.as_ref().ok());
        let judged = pool::judge(received, version.map(|v| v.bundle.digest), reference);
        let (left_out, profile) = match &judged {
            Judged::Refused(why) => (Some(why.as_str()), None),
            Judged::Unreferenced if version.is_none() => (Some(UNPUBLISHED), None),
            Judged::Unreferenced => (None, None),
            Judged::Scored(profile) => (None, Some(*profile)),
        };
        match self {
            Self::Windows => {
                let counted = version.is_some() && !matches!(judged, Judged::Refused(_));
                let model = version
                    .filter(|v| v.bundle.digest == received.window.bundle)
                    .and_then(VersionLineage::model);
                window(table, received, model, left_out, counted)
            }
            Self::Histograms => histograms(table, received, left_out, profile),
        }
    }
}

fn window<W: Write + Send>(
    table: &mut Table<W>,
    received: &ReceivedWindow,
    model: Option<&str>,
    left_out: Option<&str>,
    counted: bool,
) -> Result<(), TableError> {
    let window = &received.window;
    let profile = window.profile.map(|digest| digest.to_string());
    head(table.row(), received)
        .optional_text(model)
        .optional_text(profile.as_deref())
        .time(window.start_ms)
        .time(window.end_ms)
        .time(received.received_ms)
        .count(received.parts)
        .optional_text(window.segment.as_deref())
        .count(window.inferences)
        .count(window.errors)
        .count(window.refused)
        .count(window.confidence_sum_micro)
        .count(window.entropy_sum_micro)
        .optional_real(mean(window.confidence_sum_micro, window))
        .optional_real(mean(window.entropy_sum_micro, window))
        .counts(Some(&window.outputs))
        .counts(Some(&window.latency.buckets))
        .counts(window.expected_confusion_nano.as_deref())
        .optional_text(left_out)
        .flag(counted)
        .end()
}

fn head<'a, W: Write + Send>(row: Row<'a, W>, received: &ReceivedWindow) -> Row<'a, W> {
    row.text(received.device.as_str())
        .text(received.window.family.as_str())
        .count(received.window.version)
        .text(&received.window.bundle.to_string())
}

#[allow(clippy::cast_precision_loss, reason = "a mean to six digits")]
fn mean(sum_micro: u64, window: &Window) -> Option<f64> {
    (window.inferences > 0).then(|| sum_micro as f64 / MICRO / window.inferences as f64)
}

fn histograms<W: Write + Send>(
    table: &mut Table<W>,
    received: &ReceivedWindow,
    left_out: Option<&str>,
    profile: Option<&Profile>,
) -> Result<(), TableError> {
    let window = &received.window;
    let known = received.soundness.as_deref();
    let known = |at: usize| known.and_then(|known| known.get(at).copied());
    let outputs = [
        ("confidence", &window.confidence),
        ("entropy", &window.entropy),
    ];
    for (at, (signal, histogram)) in outputs.into_iter().enumerate() {
        let judged = known(at).unwrap_or_else(|| pool::of_output(histogram));
        let isolated = profile.and_then(|_| code(judged));
        let is = Signal {
            signal,
            position: 0,
            name: Some(signal),
            left_out,
            isolated,
        };
        is.write(table, received, histogram)?;
    }
    for (position, histogram) in window.features.iter().enumerate() {
        let feature = profile.and_then(|profile| profile.features.get(position));
        let isolated = feature.and_then(|f| {
            let known = known(pool::OUTPUTS + position);
            code(known.unwrap_or_else(|| pool::of_input(&f.counts, histogram)))
        });
        let is = Signal {
            signal: "feature",
            position: position as u64,
            name: feature.map(|feature| feature.name.as_str()),
            left_out,
            isolated,
        };
        is.write(table, received, histogram)?;
    }
    Ok(())
}

fn code(soundness: Soundness) -> Option<&'static str> {
    match soundness {
        Soundness::Sound => None,
        Soundness::Unusable => Some("unusable"),
        Soundness::Constant => Some("constant"),
    }
}

struct Signal<'a> {
    signal: &'a str,
    position: u64,
    name: Option<&'a str>,
    left_out: Option<&'a str>,
    isolated: Option<&'a str>,
}

impl Signal<'_> {
    fn write<W: Write + Send>(
        &self,
        table: &mut Table<W>,
        received: &ReceivedWindow,
        histogram: &Histogram,
    ) -> Result<(), TableError> {
        let window = &received.window;
        let profile = window.profile.map(|digest| digest.to_string());
        head(table.row(), received)
            .optional_text(profile.as_deref())
            .time(window.start_ms)
            .time(window.end_ms)
            .time(received.received_ms)
            .count(received.parts)
            .optional_text(window.segment.as_deref())
            .text(self.signal)
            .count(self.position)
            .optional_text(self.name)
            .counts(Some(&histogram.counts))
            .count(histogram.under)
            .count(histogram.over)
            .count(histogram.nan)
            .count(histogram.pos_inf)
            .count(histogram.neg_inf)
            .count(histogram.missing)
            .optional_text(self.left_out)
            .optional_text(self.isolated)
            .end()
    }
}
