//! What an operator wants to be told of.

use crate::drift::statistics::range;
use dunlin_protocol::bundle::segments::{NAME_MAX_BYTES, is_name};
use dunlin_protocol::id::Family;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

const NAME_MAX_CHARS: usize = 64;
const LABELS_MAX: usize = 32;
const DAY_S: u64 = 24 * 3600;
/// Longest look back, in seconds.
const LOOK_BACK_S_MAX: u64 = 90 * DAY_S;
/// Longest time a rule waits before it tells, in seconds.
const WAIT_S_MAX: u64 = 30 * DAY_S;

/// A rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Its name: a to z, 0 to 9 and `-`, at most 64.
    pub name: String,
    /// What counts.
    pub when: When,
    /// Only this segment of the family's requests counts; all if left out. Not with silence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<String>,
    /// How far back telemetry counts, 60 s to 90 days.
    #[serde(default = "an_hour")]
    pub look_back_s: u64,
    /// It is told once it has been so for this long, at most 30 days.
    #[serde(default)]
    pub for_s: u64,
    /// It is over once it has not been so for this long, at most 30 days.
    #[serde(default = "five_minutes")]
    pub clear_s: u64,
    /// How bad it is; passed on.
    #[serde(default)]
    pub severity: Severity,
    /// Webhooks that are told; all if empty.
    #[serde(default)]
    pub webhooks: Vec<String>,
    /// Whether the webhooks are also asked to have the model trained anew, with what was seen and a
    /// link to the data.
    #[serde(default)]
    pub retrain: bool,
}

fn an_hour() -> u64 {
    3600
}

fn five_minutes() -> u64 {
    300
}

/// How bad it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Look at it today.
    #[default]
    Warning,
    /// Get up.
    Critical,
}

/// A quantile of the latency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Quantile {
    /// The median.
    P50,
    /// Nine of ten.
    P90,
    /// Ninety-nine of a hundred.
    P99,
}

/// What counts. Those with a `family` are judged for each of its versions that serves somewhere,
/// silence for each device. Where telemetry does not suffice for a judgement, nothing changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum When {
    /// The population-stability index of inputs or outputs, or the share of an input's values outside
    /// the reference's range, passes both what sampling explains and a practical margin.
    Drift {
        /// The model family.
        #[schema(value_type = String)]
        family: Family,
        /// Practical margin of the index, above 0.
        #[serde(default = "tenth")]
        margin: f64,
        /// Practical margin of the share of values outside the reference's range, above 0; 1 leaves
        /// them aside.
        #[serde(default = "out_of_range_margin")]
        out_of_range_margin: f64,
        /// Features, or `confidence`, `entropy`, `output_mix`, that count; any if empty.
        #[serde(default)]
        signals: Vec<String>,
        /// As many of them must have drifted.
        #[serde(default = "one")]
        signals_min: u32,
    },
    /// The mean top-1 confidence is low.
    Confidence {
        /// The model family.
        #[schema(value_type = String)]
        family: Family,
        /// Below this, 0 to 1; over again at a fifth of the way to 1 above it.
        below: f64,
        /// So many inferences are needed for a judgement.
        #[serde(default = "hundred")]
        inferences_min: u64,
    },
    /// The accuracy estimated without labels (a bundle with a calibration) is low.
    Accuracy {
        /// The model family.
        #[schema(value_type = String)]
        family: Family,
        /// Below this, 0 to 1; over again at a fifth of the way to 1 above it.
        below: f64,
        /// So many inferences are needed for a judgement.
        #[serde(default = "hundred")]
        inferences_min: u64,
    },
    /// Requests fail.
    Errors {
        /// The model family.
        #[schema(value_type = String)]
        family: Family,
        /// More of a thousand than this; over again below four fifths of it.
        above_permille: u32,
        /// So many requests are needed for a judgement.
        #[serde(default = "hundred")]
        requests_min: u64,
    },
    /// Answers are slow.
    Latency {
        /// The model family.
        #[schema(value_type = String)]
        family: Family,
        /// Which part of the answers.
        quantile: Quantile,
        /// Slower than this, in microseconds; over again below four fifths of it.
        above_us: f64,
    },
    /// A version serves, and its devices send too little.
    MissingData {
        /// The model family.
        #[schema(value_type = String)]
        family: Family,
        /// Fewer inferences than this within the look back, all its devices together.
        #[serde(default = "one_inference")]
        inferences_min: u64,
    },
    /// A device has not been heard of.
    Silence {
        /// For longer than this, in seconds, 60 or more.
        after_s: u64,
        /// Devices with these labels; all if empty.
        #[serde(default)]
        labels: BTreeMap<String, String>,
    },
}

fn tenth() -> f64 {
    0.1
}

fn out_of_range_margin() -> f64 {
    range::MARGIN
}

fn one() -> u32 {
    1
}

fn one_inference() -> u64 {
    1
}

fn hundred() -> u64 {
    100
}

/// Why a rule is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: expected {expected}, got {got}")]
pub struct RuleError {
    /// Which field.
    pub field: &'static str,
    /// What it may be.
    pub expected: String,
    /// What it was.
    pub got: String,
}

fn within(field: &'static str, value: u64, min: u64, max: u64) -> Result<(), RuleError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(RuleError {
        field,
        expected: format!("{min} to {max}"),
        got: value.to_string(),
    })
}

fn positive(field: &'static str, value: f64, max: f64) -> Result<(), RuleError> {
    if value > 0.0 && value <= max {
        return Ok(());
    }
    Err(RuleError {
        field,
        expected: format!("more than 0, at most {max}"),
        got: value.to_string(),
    })
}

/// Whether a text may name a rule or a webhook.
///
/// # Errors
/// It may not.
pub fn check_name(name: &str) -> Result<(), RuleError> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if (1..=NAME_MAX_CHARS).contains(&name.chars().count()) && name.chars().all(fits) {
        return Ok(());
    }
    Err(RuleError {
        field: "name",
        expected: format!("1 to {NAME_MAX_CHARS} of a-z, 0-9 and -"),
        got: format!("{name:?}"),
    })
}

impl Rule {
    /// Checks what its type does not say.
    ///
    /// # Errors
    /// The first field that is out of its range.
    pub fn check(&self) -> Result<(), RuleError> {
        check_name(&self.name)?;
        if let Some(segment) = self.segment.as_ref().filter(|s| !is_name(s)) {
            return Err(RuleError {
                field: "segment",
                expected: format!("1 to {NAME_MAX_BYTES} bytes of a-z, A-Z, 0-9, _, - and ."),
                got: format!("{segment:?}"),
            });
        }
        within("look_back_s", self.look_back_s, 60, LOOK_BACK_S_MAX)?;
        within("for_s", self.for_s, 0, WAIT_S_MAX)?;
        within("clear_s", self.clear_s, 0, WAIT_S_MAX)?;
        match &self.when {
            When::Drift {
                margin,
                out_of_range_margin,
                signals_min,
                ..
            } => {
                positive("when.margin", *margin, 100.0)?;
                positive("when.out_of_range_margin", *out_of_range_margin, 1.0)?;
                within("when.signals_min", u64::from(*signals_min), 1, 1 << 20)
            }
            When::Confidence { below, .. } | When::Accuracy { below, .. } => {
                positive("when.below", *below, 1.0)
            }
            When::Errors { above_permille, .. } => {
                within("when.above_permille", u64::from(*above_permille), 0, 1000)
            }
            When::Latency { above_us, .. } => positive("when.above_us", *above_us, 1e12),
            When::MissingData { inferences_min, .. } => {
                within("when.inferences_min", *inferences_min, 1, u64::MAX)
            }
            When::Silence { .. } if self.segment.is_some() => Err(RuleError {
                field: "segment",
                expected: "none with silence, which is a device's".to_owned(),
                got: self.segment.clone().unwrap_or_default(),
            }),
            When::Silence { after_s, labels } => {
                within("when.labels", labels.len() as u64, 0, LABELS_MAX as u64)?;
                within("when.after_s", *after_s, 60, WAIT_S_MAX)
            }
        }
    }

    /// The family it is about, if it is about one.
    #[must_use]
    pub fn family(&self) -> Option<&Family> {
        match &self.when {
            When::Drift { family, .. }
            | When::Confidence { family, .. }
            | When::Accuracy { family, .. }
            | When::Errors { family, .. }
            | When::Latency { family, .. }
            | When::MissingData { family, .. } => Some(family),
            When::Silence { .. } => None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(when: &str) -> Rule {
        let text = format!(r#"{{"name":"r","when":{when}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn rules_have_defaults_that_pass_and_bounds_that_are_told() {
        for when in [
            r#"{"kind":"drift","family":"pump"}"#,
            r#"{"kind":"confidence","family":"pump","below":0.6}"#,
            r#"{"kind":"accuracy","family":"pump","below":0.9}"#,
            r#"{"kind":"errors","family":"pump","above_permille":10}"#,
            r#"{"kind":"latency","family":"pump","quantile":"p99","above_us":20000}"#,
            r#"{"kind":"missing_data","family":"pump"}"#,
            r#"{"kind":"silence","after_s":600}"#,
        ] {
            parse(when).check().unwrap();
        }
        let rule = parse(r#"{"kind":"silence","after_s":5}"#);
        let told = rule.check().unwrap_err().to_string();
        assert_eq!(told, "when.after_s: expected 60 to 2592000, got 5");
        let mut rule = parse(r#"{"kind":"drift","family":"pump","margin":0}"#);
        assert_eq!(rule.check().unwrap_err().field, "when.margin");
        let above_all = r#"{"kind":"drift","family":"pump","out_of_range_margin":1.5}"#;
        let error = parse(above_all).check().unwrap_err();
        assert_eq!(error.field, "when.out_of_range_margin");
        rule.name = "Über".to_owned();
        assert_eq!(rule.check().unwrap_err().field, "name");
        let unknown = r#"{"name":"r","when":{"kind":"silence","after_s":60,"label":{}}}"#;
        assert!(serde_json::from_str::<Rule>(unknown).is_err());
    }
}
