//! What is inside a sealed batch, and the rows that it becomes.
//!
//! ```text
//! offset bytes
//!  0     4     length of the index, big-endian, at most 512 KiB
//!  4     n     index: [`Index`] as JSON
//! 4+n    …     the tensors' bytes, one after the other in the index's order
//! ```
//! A tensor's bytes are as in the binary tensors of the Open Inference Protocol: little-endian,
//! row-major; `BOOL` one byte; an element of `BYTES` is its length in four bytes, then itself. So
//! every value is kept to the last bit, NaN included.

use super::Stage;
use super::seal::Header;
use crate::bundle::{DType, Lineage};
use crate::id::{DeviceId, Digest, Family};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Longest index, in bytes.
pub const INDEX_MAX_BYTES: usize = 512 << 10;
/// Most features that are named in it.
pub const FEATURES_MAX: usize = 1024;
const SCHEMA: &str = "dunlin.samples/1";

/// Why the content of a batch is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("samples: {0}")]
pub struct SamplesError(String);

fn wrong(problem: impl Into<String>) -> SamplesError {
    SamplesError(problem.into())
}

/// A tensor of a sample; its bytes follow the index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorEntry {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Bytes of it.
    pub bytes: usize,
}

/// A name for one element of a kept tensor, from the bundle's profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureName {
    /// The name.
    pub name: String,
    /// The tensor.
    pub tensor: String,
    /// The element, row-major.
    pub index: usize,
}

/// One kept request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// When it was answered, in milliseconds since 1970 by the device's clock.
    pub time_ms: i64,
    /// Its weight in the draw: 1 for an ordinary input, more the less it looks like the reference.
    pub weight: f64,
    /// The observed scores' largest element.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
    /// Its index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<u64>,
    /// What was kept of the request.
    pub inputs: Vec<TensorEntry>,
    /// The observed scores, if the bundle has any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<TensorEntry>,
}

/// What a batch holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Index {
    /// `dunlin.samples/1`.
    pub schema: String,
    /// Which values were kept.
    pub stage: Stage,
    /// Where the model comes from.
    #[serde(default)]
    pub lineage: Lineage,
    /// Class names, by index.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Names of elements, at most [`FEATURES_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<FeatureName>,
    /// The samples.
    pub samples: Vec<Entry>,
}

impl Index {
    /// An index without samples.
    #[must_use]
    pub fn new(stage: Stage, lineage: Lineage) -> Self {
        Self {
            schema: SCHEMA.to_owned(),
            stage,
            lineage,
            labels: Vec::new(),
            features: Vec::new(),
            samples: Vec::new(),
        }
    }

    /// The content of a batch: this index and the bytes of its tensors.
    ///
    /// # Errors
    /// An index that is too long.
    pub fn encode(&self, tensors: &[u8]) -> Result<Vec<u8>, SamplesError> {
        let json = serde_json::to_vec(self).map_err(|e| wrong(e.to_string()))?;
        if json.len() > INDEX_MAX_BYTES {
            let got = json.len();
            return Err(wrong(format!(
                "an index of {got} bytes, at most {INDEX_MAX_BYTES}"
            )));
        }
        let length = u32::try_from(json.len()).unwrap_or(u32::MAX);
        Ok([&length.to_be_bytes()[..], &json, tensors].concat())
    }
}

/// Values of a tensor. What is narrower than 64 bits was widened, which is exact.
#[derive(Debug, Clone, PartialEq)]
pub enum CapturedValues {
    /// `BOOL`.
    Truths(Vec<bool>),
    /// `UINT8` to `UINT64`.
    Unsigned(Vec<u64>),
    /// `INT8` to `INT64`.
    Signed(Vec<i64>),
    /// `FP16` to `FP64`.
    Floats(Vec<f64>),
    /// `BYTES`.
    Bytes(Vec<Vec<u8>>),
}

/// A tensor of a sample.
#[derive(Debug, Clone, PartialEq)]
pub struct CapturedTensor {
    /// Its name.
    pub name: String,
    /// Element type on the device.
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Row-major.
    pub values: CapturedValues,
}

/// One sample, opened, with all that says where it comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct CapturedRow {
    /// The device.
    pub device: DeviceId,
    /// The model's family.
    pub family: Family,
    /// Its version.
    pub version: u64,
    /// Digest of its manifest.
    pub bundle: Digest,
    /// Begin of the window, in milliseconds since 1970 by the device's clock.
    pub window_start_ms: i64,
    /// Its end.
    pub window_end_ms: i64,
    /// When the request was answered.
    pub time_ms: i64,
    /// Its weight in the draw, at least 1.
    pub weight: f64,
    /// Requests that the window's samples were drawn from.
    pub considered: u64,
    /// Which values are in `inputs`.
    pub stage: Stage,
    /// The observed scores' largest element.
    pub confidence: Option<f64>,
    /// Its index.
    pub class: Option<u64>,
    /// Its name.
    pub label: Option<String>,
    /// What was kept of the request.
    pub inputs: Vec<CapturedTensor>,
    /// The observed scores, if the bundle has any.
    pub outputs: Vec<CapturedTensor>,
    /// Elements that the bundle's profile names: name and value.
    pub features: Vec<(String, f64)>,
    /// Where the model comes from.
    pub lineage: Lineage,
}

/// Reads the content of an opened batch.
///
/// # Errors
/// What is not of this format.
pub fn rows(header: &Header, plain: &[u8]) -> Result<Vec<CapturedRow>, SamplesError> {
    let (length, rest) = plain
        .split_first_chunk::<4>()
        .ok_or_else(|| wrong("it ends too early"))?;
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    if length > INDEX_MAX_BYTES {
        let problem = format!("an index of {length} bytes, at most {INDEX_MAX_BYTES}");
        return Err(wrong(problem));
    }
    let (json, mut tensors) = rest
        .split_at_checked(length)
        .ok_or_else(|| wrong("it ends within the index"))?;
    let index: Index = serde_json::from_slice(json).map_err(|e| wrong(format!("index: {e}")))?;
    if index.schema != SCHEMA {
        let got = index.schema;
        return Err(wrong(format!("schema: expected {SCHEMA:?}, got {got:?}")));
    }
    let mut all = Vec::new();
    for entry in &index.samples {
        let inputs = take_all(&entry.inputs, &mut tensors)?;
        let outputs = take_all(&entry.outputs, &mut tensors)?;
        all.push(CapturedRow {
            device: header.device.clone(),
            family: header.family.clone(),
            version: header.version,
            bundle: header.bundle,
            window_start_ms: header.start_ms,
            window_end_ms: header.end_ms,
            time_ms: entry.time_ms,
            weight: entry.weight,
            considered: header.considered,
            stage: index.stage,
            confidence: entry.confidence,
            class: entry.class,
            label: label(&index.labels, entry.class),
            features: features(&index.features, &inputs),
            inputs,
            outputs,
            lineage: index.lineage.clone(),
        });
    }
    match tensors.len() {
        0 => Ok(all),
        left => Err(wrong(format!("{left} bytes that belong to no tensor"))),
    }
}

fn label(labels: &[String], class: Option<u64>) -> Option<String> {
    let class = usize::try_from(class?).ok()?;
    labels.get(class).cloned()
}

fn features(names: &[FeatureName], inputs: &[CapturedTensor]) -> Vec<(String, f64)> {
    let value = |name: &FeatureName| {
        let tensor = inputs.iter().find(|t| t.name == name.tensor)?;
        Some((name.name.clone(), tensor.values.number(name.index)?))
    };
    names.iter().filter_map(value).collect()
}

fn take_all(
    entries: &[TensorEntry],
    bytes: &mut &[u8],
) -> Result<Vec<CapturedTensor>, SamplesError> {
    let mut all = Vec::new();
    for entry in entries {
        let (own, rest) = bytes
            .split_at_checked(entry.bytes)
            .ok_or_else(|| wrong(format!("it ends within tensor {:?}", entry.name)))?;
        *bytes = rest;
        let values = CapturedValues::read(entry, own)
            .map_err(|problem| wrong(format!("tensor {:?}: {problem}", entry.name)))?;
        all.push(CapturedTensor {
            name: entry.name.clone(),
            dtype: entry.dtype,
            shape: entry.shape.clone(),
            values,
        });
    }
    Ok(all)
}

impl CapturedValues {
    fn read(entry: &TensorEntry, bytes: &[u8]) -> Result<Self, String> {
        fn all<const N: usize, T>(bytes: &[u8], from: impl Fn([u8; N]) -> T) -> Vec<T> {
            bytes.as_chunks::<N>().0.iter().map(|c| from(*c)).collect()
        }
        let elements = entry
            .shape
            .iter()
            .try_fold(1_usize, |n, d| n.checked_mul(*d));
        let elements = elements.ok_or("more elements than there can be")?;
        let width = match entry.dtype {
            DType::BOOL | DType::UINT8 | DType::INT8 => 1,
            DType::UINT16 | DType::INT16 | DType::FP16 => 2,
            DType::UINT32 | DType::INT32 | DType::FP32 => 4,
            DType::UINT64 | DType::INT64 | DType::FP64 => 8,
            DType::BYTES => return strings(elements, bytes).map(Self::Bytes),
        };
        if elements.checked_mul(width) != Some(bytes.len()) {
            let got = bytes.len();
            return Err(format!("{elements} elements of {width} bytes, got {got}"));
        }
        Ok(match entry.dtype {
            DType::BOOL => Self::Truths(bytes.iter().map(|b| *b != 0).collect()),
            DType::UINT8 => Self::Unsigned(bytes.iter().map(|b| u64::from(*b)).collect()),
            DType::INT8 => Self::Signed(all(bytes, |b: [u8; 1]| i8::from_le_bytes(b).into())),
            DType::UINT16 => Self::Unsigned(all(bytes, |b| u16::from_le_bytes(b).into())),
            DType::INT16 => Self::Signed(all(bytes, |b| i16::from_le_bytes(b).into())),
            DType::UINT32 => Self::Unsigned(all(bytes, |b| u32::from_le_bytes(b).into())),
            DType::INT32 => Self::Signed(all(bytes, |b| i32::from_le_bytes(b).into())),
            DType::UINT64 => Self::Unsigned(all(bytes, u64::from_le_bytes)),
            DType::INT64 => Self::Signed(all(bytes, i64::from_le_bytes)),
            DType::FP16 => Self::Floats(all(bytes, |b| half(u16::from_le_bytes(b)))),
            DType::FP32 => Self::Floats(all(bytes, |b| f32::from_le_bytes(b).into())),
            DType::FP64 => Self::Floats(all(bytes, f64::from_le_bytes)),
            DType::BYTES => Self::Bytes(Vec::new()),
        })
    }

    /// One element as a number, if it is one.
    #[must_use]
    #[allow(clippy::cast_precision_loss)] // a value for a table; the exact one is in the tensor
    pub fn number(&self, index: usize) -> Option<f64> {
        match self {
            Self::Truths(v) => v.get(index).map(|b| f64::from(u8::from(*b))),
            Self::Unsigned(v) => v.get(index).map(|n| *n as f64),
            Self::Signed(v) => v.get(index).map(|n| *n as f64),
            Self::Floats(v) => v.get(index).copied(),
            Self::Bytes(_) => None,
        }
    }

    /// As JSON: a list; what JSON has no number for is `null`, byte strings are Base64.
    #[must_use]
    pub fn to_json(&self) -> Value {
        use base64::Engine as _;
        match self {
            Self::Truths(v) => v.clone().into(),
            Self::Unsigned(v) => v.clone().into(),
            Self::Signed(v) => v.clone().into(),
            Self::Floats(v) => v.iter().map(|n| Value::from(*n)).collect(),
            Self::Bytes(v) => {
                let base64 = base64::engine::general_purpose::STANDARD;
                v.iter().map(|b| Value::from(base64.encode(b))).collect()
            }
        }
    }
}

/// Each element after its length.
fn strings(elements: usize, mut bytes: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut list = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let split = rest.split_at_checked(length);
        let (element, rest) = split.ok_or_else(|| format!("element {} is cut", list.len()))?;
        list.push(element.to_vec());
        bytes = rest;
    }
    match bytes.is_empty() && list.len() == elements {
        true => Ok(list),
        false => Err(format!("expected {elements} elements, got {}", list.len())),
    }
}

/// An IEEE 754 binary16 number.
fn half(bits: u16) -> f64 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    match exponent {
        0 => sign * fraction * 2_f64.powi(-24),
        31 if fraction == 0.0 => sign * f64::INFINITY,
        31 => f64::NAN,
        _ => sign * (1.0 + fraction / 1024.0) * 2_f64.powi(exponent - 15),
    }
}

impl CapturedRow {
    /// As one JSON object.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let tensors = |all: &[CapturedTensor]| {
            let named = all.iter().map(|t| (t.name.clone(), t.values.to_json()));
            Value::Object(named.collect::<Map<_, _>>())
        };
        let features = self.features.iter().map(|(n, v)| (n.clone(), (*v).into()));
        serde_json::json!({
            "device": self.device,
            "family": self.family,
            "version": self.version,
            "bundle": self.bundle,
            "window_start_ms": self.window_start_ms,
            "window_end_ms": self.window_end_ms,
            "time_ms": self.time_ms,
            "weight": self.weight,
            "considered": self.considered,
            "stage": self.stage,
            "confidence": self.confidence,
            "class": self.class,
            "label": self.label,
            "inputs": tensors(&self.inputs),
            "outputs": tensors(&self.outputs),
            "features": features.collect::<Map<_, _>>(),
            "lineage": self.lineage,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::seal::{SecretKey, tests::header};
    use super::*;

    fn tensor(name: &str, dtype: DType, shape: &[usize], bytes: usize) -> TensorEntry {
        TensorEntry {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
            bytes,
        }
    }

    fn entry(inputs: Vec<TensorEntry>, outputs: Vec<TensorEntry>) -> Entry {
        Entry {
            time_ms: 1500,
            weight: 12.5,
            confidence: Some(0.5),
            class: Some(1),
            inputs,
            outputs,
        }
    }

    fn opened(index: &Index, tensors: &[u8]) -> Result<Vec<CapturedRow>, SamplesError> {
        let header = header(SecretKey::derive(&[1; 32]).recipient());
        rows(&header, &index.encode(tensors).unwrap())
    }

    #[test]
    fn every_value_comes_back_to_the_last_bit() {
        let mut index = Index::new(Stage::Sent, Lineage::default());
        index.labels = vec!["a".to_owned(), "b".to_owned()];
        index.features = vec![FeatureName {
            name: "second".to_owned(),
            tensor: "x".to_owned(),
            index: 1,
        }];
        let inputs = vec![
            tensor("x", DType::FP32, &[1, 3], 12),
            tensor("jpeg", DType::BYTES, &[1], 7),
        ];
        index.samples = vec![entry(inputs, vec![tensor("p", DType::UINT64, &[1], 8)])];
        let mut bytes = Vec::new();
        for x in [0.1_f32, -2.5, f32::NAN] {
            bytes.extend_from_slice(&x.to_le_bytes());
        }
        bytes.extend_from_slice(&3_u32.to_le_bytes());
        bytes.extend_from_slice(b"\xff\xd8\xff");
        bytes.extend_from_slice(&u64::MAX.to_le_bytes());
        let rows = opened(&index, &bytes).unwrap();
        let row = &rows[0];
        let CapturedValues::Floats(x) = &row.inputs[0].values else {
            panic!("{row:?}");
        };
        assert_eq!(x[..2], [f64::from(0.1_f32), -2.5]);
        assert!(x[2].is_nan());
        let jpeg = CapturedValues::Bytes(vec![b"\xff\xd8\xff".to_vec()]);
        assert_eq!(row.inputs[1].values, jpeg);
        assert_eq!(
            row.outputs[0].values,
            CapturedValues::Unsigned(vec![u64::MAX])
        );
        assert_eq!(row.label.as_deref(), Some("b"));
        assert_eq!(row.features, [("second".to_owned(), -2.5)]);
        let json = row.to_json();
        assert_eq!(json["inputs"]["x"][2], Value::Null);
        assert_eq!(json["inputs"]["jpeg"][0], "/9j/");
        assert_eq!(json["outputs"]["p"][0], u64::MAX);
        assert_eq!(json["features"]["second"], -2.5);
        assert_eq!(json["device"], "edge-07");
    }

    #[test]
    fn bytes_that_do_not_fit_are_refused() {
        let mut index = Index::new(Stage::Graph, Lineage::default());
        index.samples = vec![entry(vec![tensor("x", DType::FP32, &[2], 8)], Vec::new())];
        assert!(opened(&index, &[0; 8]).is_ok());
        assert!(opened(&index, &[0; 7]).is_err());
        assert!(opened(&index, &[0; 9]).is_err());
        index.samples[0].inputs[0].shape = vec![usize::MAX, 2];
        assert!(opened(&index, &[0; 8]).is_err());
        index.samples[0].inputs[0] = tensor("x", DType::BYTES, &[1], 8);
        assert!(opened(&index, &[255; 8]).is_err());
        let header = header(SecretKey::derive(&[1; 32]).recipient());
        for bad in [
            &b""[..],
            b"\0\0\0\x09{}",
            b"\xff\xff\xff\xff",
            b"\0\0\0\x02{}",
        ] {
            assert!(rows(&header, bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn half_numbers_are_ieee_754s() {
        for (bits, value) in [
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x0001, 2_f64.powi(-24)),
            (0x3555, 0.333_251_953_125),
            (0xfc00, f64::NEG_INFINITY),
        ] {
            assert_eq!(half(bits), value);
        }
        assert!(half(0x7e00).is_nan());
    }
}
