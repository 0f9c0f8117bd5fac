//! Golden cases: inputs with the outputs that the training runtime computed.

use super::flow::{Flow, Input, Output};
use super::{DType, Manifest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;

const MAX_CASES: usize = 10_000;

/// Why a document is no set of golden cases for a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GoldenError {
    /// Not JSON of this shape.
    #[error("golden cases: {0}")]
    Json(String),
    /// Another schema.
    #[error("golden cases: schema: expected \"dunlin.golden/1\", got {0:?}")]
    Schema(String),
    /// No case or too many.
    #[error("golden cases: 1 to {MAX_CASES} cases, got {0}")]
    Count(usize),
    /// The manifest itself is not consistent.
    #[error("golden cases: {0}")]
    Manifest(String),
    /// A tensor that the manifest does not know, a missing one, or one of another length.
    #[error("golden case {case:?}: tensor {tensor:?}: expected {expected} values, got {got}")]
    Tensor {
        /// Name of the case.
        case: String,
        /// Name of the tensor.
        tensor: String,
        /// Elements by the manifest (0: the manifest has no such tensor).
        expected: usize,
        /// Values in the case.
        got: usize,
    },
    /// Values that are none of the tensor's element type, or do not make whole rows.
    #[error("golden case {case:?}: tensor {tensor:?}: expected {expected}, got {got}")]
    Values {
        /// Name of the case.
        case: String,
        /// Name of the tensor.
        tensor: String,
        /// What the manifest says.
        expected: String,
        /// What the case has.
        got: String,
    },
}

/// The values of one tensor, row-major.
#[derive(Debug, Clone, PartialEq)]
pub enum GoldenValues {
    /// Of any element type but `BYTES`: in JSON an array of numbers, of `true` and `false`, or of
    /// `null` for what is not a number.
    Numbers(Vec<f64>),
    /// Of `BYTES`: in JSON an array of texts, or `{"base64": [..]}` for what is no text.
    Bytes(Vec<Vec<u8>>),
}

impl GoldenValues {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Numbers(list) => list.len(),
            Self::Bytes(list) => list.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn is_of(&self, dtype: DType) -> bool {
        self.is_empty() || matches!(self, Self::Bytes(_)) == (dtype == DType::BYTES)
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Numbers(_) => "numbers",
            Self::Bytes(_) => "texts or bytes",
        }
    }
}

/// As in JSON.
#[derive(Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected an array of numbers (true and false for BOOL, null for NaN), an array of texts, or {\"base64\": [..]}"
)]
enum Written {
    Numbers(Vec<Number>),
    Texts(Vec<String>),
    Base64 { base64: Vec<String> },
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Number {
    Finite(f64),
    Truth(bool),
    Null(()),
}

impl Number {
    fn of(value: f64) -> Self {
        if value.is_nan() {
            Self::Null(())
        } else {
            Self::Finite(value)
        }
    }

    fn value(self) -> f64 {
        match self {
            Self::Finite(value) => value,
            Self::Truth(truth) => f64::from(u8::from(truth)),
            Self::Null(()) => f64::NAN,
        }
    }
}

impl Serialize for GoldenValues {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let written = match self {
            Self::Numbers(list) => Written::Numbers(list.iter().copied().map(Number::of).collect()),
            Self::Bytes(list) => Written::Base64 {
                base64: list.iter().map(|b| STANDARD.encode(b)).collect(),
            },
        };
        written.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for GoldenValues {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = match Written::deserialize(deserializer)? {
            Written::Numbers(list) => {
                return Ok(Self::Numbers(list.into_iter().map(Number::value).collect()));
            }
            Written::Texts(list) => list.into_iter().map(String::into_bytes).collect(),
            Written::Base64 { base64 } => base64
                .iter()
                .map(|text| STANDARD.decode(text).map_err(serde::de::Error::custom))
                .collect::<Result<_, _>>()?,
        };
        Ok(Self::Bytes(bytes))
    }
}

/// One case: what an application sends and what it must get.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GoldenCase {
    /// Name, for reports.
    pub name: String,
    /// The stream it belongs to. Cases that name the same one are its calls, in order; without a
    /// name, a case is the first call of a stream of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// Values by input, before the processing steps.
    pub inputs: BTreeMap<String, GoldenValues>,
    /// Values by output, after the processing steps.
    pub outputs: BTreeMap<String, GoldenValues>,
}

/// A set of golden cases (`dunlin.golden/1`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GoldenSet {
    /// `dunlin.golden/1`.
    pub schema: String,
    /// The runtime that computed the outputs.
    pub producer: String,
    /// The cases.
    pub cases: Vec<GoldenCase>,
}

impl GoldenSet {
    /// Parses a set and checks it against the manifest it belongs to. The caller has bounded
    /// `bytes` by the manifest's signed length.
    ///
    /// # Errors
    /// What does not fit, by case and tensor.
    pub fn parse(bytes: &[u8], manifest: &Manifest) -> Result<Self, GoldenError> {
        let set: Self =
            serde_json::from_slice(bytes).map_err(|e| GoldenError::Json(e.to_string()))?;
        if set.schema != "dunlin.golden/1" {
            return Err(GoldenError::Schema(set.schema));
        }
        if set.cases.is_empty() || set.cases.len() > MAX_CASES {
            return Err(GoldenError::Count(set.cases.len()));
        }
        let flow = Flow::of(manifest).map_err(|e| GoldenError::Manifest(e.to_string()))?;
        for case in &set.cases {
            for input in &flow.inputs {
                check_input(case, input)?;
            }
            let sent: Vec<&str> = flow.inputs.iter().map(|i| i.spec.name.as_str()).collect();
            no_stranger(case, &case.inputs, &sent)?;
            for output in &flow.outputs {
                check_output(case, output)?;
            }
            let got: Vec<&str> = flow.outputs.iter().map(|o| o.name.as_str()).collect();
            no_stranger(case, &case.outputs, &got)?;
        }
        Ok(set)
    }
}

fn wrong_length(case: &GoldenCase, tensor: &str, expected: usize, got: usize) -> GoldenError {
    GoldenError::Tensor {
        case: case.name.clone(),
        tensor: tensor.to_owned(),
        expected,
        got,
    }
}

fn wrong_values(case: &GoldenCase, tensor: &str, expected: String, got: String) -> GoldenError {
    GoldenError::Values {
        case: case.name.clone(),
        tensor: tensor.to_owned(),
        expected,
        got,
    }
}

fn check_input(case: &GoldenCase, input: &Input) -> Result<(), GoldenError> {
    let spec = &input.spec;
    let values = case.inputs.get(&spec.name);
    let got = values.map_or(0, GoldenValues::len);
    let Some(values) = values.filter(|_| got == spec.elements()) else {
        return Err(wrong_length(case, &spec.name, spec.elements(), got));
    };
    if !values.is_of(spec.dtype) {
        let expected = spec.dtype.as_str().to_owned();
        let got = values.kind().to_owned();
        return Err(wrong_values(case, &spec.name, expected, got));
    }
    if let GoldenValues::Bytes(list) = values
        && let Some(long) = list.iter().map(Vec::len).find(|&n| n > input.bytes_max)
    {
        let expected = format!("at most {} bytes", input.bytes_max);
        return Err(wrong_values(case, &spec.name, expected, long.to_string()));
    }
    Ok(())
}

/// Where a dimension varies, any number of whole rows will do.
fn check_output(case: &GoldenCase, output: &Output) -> Result<(), GoldenError> {
    let most = output.of.elements_max();
    let Some(values) = case.outputs.get(&output.name) else {
        return Err(wrong_length(case, &output.name, most, 0));
    };
    if output.of.fixed_shape().is_some() && values.len() != most {
        return Err(wrong_length(case, &output.name, most, values.len()));
    }
    let fixed = output.of.shape.iter().filter_map(|d| match d {
        super::Dim::Fixed(n) => Some(*n),
        super::Dim::UpTo(_) => None,
    });
    let row: usize = fixed.product();
    let whole = values.len() <= most && values.len().is_multiple_of(row.max(1));
    if !whole || !values.is_of(output.of.dtype) {
        let got = format!("{} {}", values.len(), values.kind());
        return Err(wrong_values(case, &output.name, output.of.to_string(), got));
    }
    Ok(())
}

fn no_stranger(
    case: &GoldenCase,
    values: &BTreeMap<String, GoldenValues>,
    known: &[&str],
) -> Result<(), GoldenError> {
    match values
        .iter()
        .find(|(name, _)| !known.contains(&name.as_str()))
    {
        Some((name, v)) => Err(wrong_length(case, name, 0, v.len())),
        None => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn document(pixels: usize, extra: &str) -> Vec<u8> {
        format!(
            r#"{{"schema":"dunlin.golden/1","producer":"p","cases":[{{"name":"a","inputs":{{"pixels":{:?}{extra}}},"outputs":{{"probabilities":{:?}}}}}]}}"#,
            vec![0.0; pixels],
            vec![0.1; 10]
        )
        .into_bytes()
    }

    #[test]
    fn numbers_may_be_truths_and_nan() {
        let values: GoldenValues = serde_json::from_str("[true, false, null, 2]").unwrap();
        let GoldenValues::Numbers(numbers) = &values else {
            panic!("{values:?}");
        };
        assert_eq!((numbers[0], numbers[1], numbers[3]), (1.0, 0.0, 2.0));
        assert!(numbers[2].is_nan());
        assert_eq!(
            serde_json::to_string(&values).unwrap(),
            "[1.0,0.0,null,2.0]"
        );
        let told = serde_json::from_str::<GoldenValues>("\"1\"").unwrap_err();
        assert!(told.to_string().contains("null for NaN"), "{told}");
    }

    #[test]
    fn cases_must_fit_the_manifest() {
        let manifest = super::super::manifest::tests::sample();
        assert!(GoldenSet::parse(&document(64, ""), &manifest).is_ok());
        let short = GoldenSet::parse(&document(63, ""), &manifest).unwrap_err();
        assert!(short.to_string().contains("expected 64 values, got 63"));
        let extra = GoldenSet::parse(&document(64, r#","y":[1]"#), &manifest).unwrap_err();
        assert!(matches!(extra, GoldenError::Tensor { expected: 0, .. }));
    }
}
