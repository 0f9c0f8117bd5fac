//! The values of one tensor, and their ways in (JSON, golden cases, tract) and out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dunlin_protocol::bundle::{DType, Statistic, TensorSpec};
use dunlin_protocol::distinct;
use serde::de::{DeserializeSeed, Deserializer, Error as _, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};
use std::fmt;
use tract_onnx::prelude::{Datum, DatumType, Tensor, TractError, TractResult, f16};

/// The values of one tensor, row-major; the shape lives in the manifest's [`TensorSpec`].
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Values {
    BOOL(Vec<bool>),
    UINT8(Vec<u8>),
    UINT16(Vec<u16>),
    UINT32(Vec<u32>),
    UINT64(Vec<u64>),
    INT8(Vec<i8>),
    INT16(Vec<i16>),
    INT32(Vec<i32>),
    INT64(Vec<i64>),
    FP16(Vec<f16>),
    FP32(Vec<f32>),
    FP64(Vec<f64>),
    /// Byte strings of any length; never in a graph.
    BYTES(Vec<Vec<u8>>),
}

/// Runs `$body` with `$v` bound to the typed vector of numbers, or gives `$bytes`.
macro_rules! each {
    ($values:expr, $v:ident => $body:expr, $b:pat => $bytes:expr) => {
        match $values {
            Values::BYTES($b) => $bytes,
            Values::BOOL($v) => $body,
            Values::UINT8($v) => $body,
            Values::UINT16($v) => $body,
            Values::UINT32($v) => $body,
            Values::UINT64($v) => $body,
            Values::INT8($v) => $body,
            Values::INT16($v) => $body,
            Values::INT32($v) => $body,
            Values::INT64($v) => $body,
            Values::FP16($v) => $body,
            Values::FP32($v) => $body,
            Values::FP64($v) => $body,
        }
    };
}

/// Builds the variant of `$dtype` from `$make`, an expression generic over the numbers' type.
macro_rules! build {
    ($dtype:expr, $make:expr, $bytes:expr) => {
        match $dtype {
            DType::BYTES => $bytes,
            DType::BOOL => Values::BOOL($make),
            DType::UINT8 => Values::UINT8($make),
            DType::UINT16 => Values::UINT16($make),
            DType::UINT32 => Values::UINT32($make),
            DType::UINT64 => Values::UINT64($make),
            DType::INT8 => Values::INT8($make),
            DType::INT16 => Values::INT16($make),
            DType::INT32 => Values::INT32($make),
            DType::INT64 => Values::INT64($make),
            DType::FP16 => Values::FP16($make),
            DType::FP32 => Values::FP32($make),
            DType::FP64 => Values::FP64($make),
        }
    };
}

/// tract's name of an element type.
pub(crate) fn datum_type(dtype: DType) -> DatumType {
    match dtype {
        DType::BOOL => DatumType::Bool,
        DType::UINT8 => DatumType::U8,
        DType::UINT16 => DatumType::U16,
        DType::UINT32 => DatumType::U32,
        DType::UINT64 => DatumType::U64,
        DType::INT8 => DatumType::I8,
        DType::INT16 => DatumType::I16,
        DType::INT32 => DatumType::I32,
        DType::INT64 => DatumType::I64,
        DType::FP16 => DatumType::F16,
        DType::FP32 => DatumType::F32,
        DType::FP64 => DatumType::F64,
        // The manifest's check keeps it away from graphs.
        DType::BYTES => DatumType::Blob,
    }
}

/// A tensor as people read it: `"pixels" FP32 [1, 64]`.
pub(crate) fn describe(spec: &TensorSpec) -> String {
    format!("{:?} {} {:?}", spec.name, spec.dtype.as_str(), spec.shape)
}

impl Values {
    /// The element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        match self {
            Self::BOOL(_) => DType::BOOL,
            Self::UINT8(_) => DType::UINT8,
            Self::UINT16(_) => DType::UINT16,
            Self::UINT32(_) => DType::UINT32,
            Self::UINT64(_) => DType::UINT64,
            Self::INT8(_) => DType::INT8,
            Self::INT16(_) => DType::INT16,
            Self::INT32(_) => DType::INT32,
            Self::INT64(_) => DType::INT64,
            Self::FP16(_) => DType::FP16,
            Self::FP32(_) => DType::FP32,
            Self::FP64(_) => DType::FP64,
            Self::BYTES(_) => DType::BYTES,
        }
    }

    /// Number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        each!(self, v => v.len(), v => v.len())
    }

    /// Whether there is no value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value at a row-major index, as a 64-bit float (integers beyond 2^53 are rounded); `None`
    /// of `BYTES`.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<f64> {
        each!(self, v => v.get(index).map(|x| x.to_f64()), _ => None)
    }

    /// Every value as a 64-bit float (integers beyond 2^53 are rounded); none of `BYTES`.
    pub fn iter_f64(&self) -> Box<dyn Iterator<Item = f64> + '_> {
        each!(
            self,
            v => Box::new(v.iter().map(|x| x.to_f64())),
            _ => Box::new(std::iter::empty())
        )
    }

    /// Which of some categories the value at an index is, by their place; their number if it is none of
    /// them. Numbers are compared as they are written in JSON.
    #[must_use]
    pub(crate) fn category(&self, index: usize, categories: &[String]) -> Option<usize> {
        let place = |is: &dyn Fn(&String) -> bool| {
            let found = categories.iter().position(is);
            Some(found.unwrap_or(categories.len()))
        };
        match self {
            Self::BYTES(list) => {
                let value = list.get(index)?;
                place(&|category| category.as_bytes() == value)
            }
            Self::BOOL(list) => {
                let value = list.get(index)?.to_string();
                place(&|category| *category == value)
            }
            numbers => {
                let value = numbers.get(index)?.to_string();
                place(&|category| *category == value)
            }
        }
    }

    /// The hash of the value at an index, as [`Self::category`] compares it.
    #[must_use]
    pub(crate) fn hash(&self, index: usize) -> Option<u64> {
        match self {
            Self::BYTES(list) => Some(distinct::hash(list.get(index)?)),
            Self::BOOL(list) => Some(distinct::hash(list.get(index)?.to_string().as_bytes())),
            numbers => Some(distinct::hash(numbers.get(index)?.to_string().as_bytes())),
        }
    }

    /// A statistic of all values, or of those at one place of a dimension (`(axis, index)`); NaN of
    /// `BYTES`. `shape` is the tensor's.
    #[must_use]
    pub(crate) fn statistic(
        &self,
        statistic: Statistic,
        shape: &[usize],
        at: Option<(usize, usize)>,
    ) -> f64 {
        let Some((axis, index)) = at else {
            let row = shape.last().copied().unwrap_or(1);
            return each!(self, v => statistic.of(v.iter().map(|x| x.to_f64()), row), _ => f64::NAN);
        };
        let inner: usize = shape.iter().skip(axis + 1).product();
        let whole = inner
            .saturating_mul(shape.get(axis).copied().unwrap_or(1))
            .max(1);
        let place = index.saturating_mul(inner)..index.saturating_add(1).saturating_mul(inner);
        let mut others = shape.iter().enumerate().rev().filter(|(n, _)| *n != axis);
        let row = others.next().map_or(1, |(_, n)| *n);
        each!(self, v => {
            let chosen = v.chunks_exact(whole).filter_map(|c| c.get(place.clone())).flatten();
            statistic.of(chosen.map(|x| x.to_f64()), row)
        }, _ => f64::NAN)
    }

    /// Values of an element type from 64-bit floats.
    ///
    /// # Errors
    /// The first number that the element type cannot hold, in words.
    pub fn from_f64(dtype: DType, numbers: &[f64]) -> Result<Self, String> {
        fn all<T: Element>(numbers: &[f64]) -> Result<Vec<T>, String> {
            numbers.iter().map(|&n| T::from_f64(n)).collect()
        }
        Ok(build!(
            dtype,
            all(numbers)?,
            return Err("numbers are no BYTES".to_owned())
        ))
    }

    /// Reads the `data` of a request: flat, or nested exactly as the shape says.
    ///
    /// # Errors
    /// What was expected and what was found.
    pub(crate) fn from_json(spec: &TensorSpec, json: &str) -> Result<Self, String> {
        fn read<T: Element>(spec: &TensorSpec, json: &str) -> Result<Vec<T>, String> {
            let mut flat = Flat {
                shape: &spec.shape,
                elements: spec.elements(),
                leaf_depth: None,
                out: Vec::with_capacity(spec.elements()),
            };
            let mut reader = serde_json::Deserializer::from_str(json);
            Level {
                flat: &mut flat,
                depth: 0,
            }
            .deserialize(&mut reader)
            .map_err(|e| plain(&e))?;
            if flat.out.len() != flat.elements {
                return Err(format!(
                    "expected {} values, got {}",
                    flat.elements,
                    flat.out.len()
                ));
            }
            Ok(flat.out)
        }
        Ok(build!(
            spec.dtype,
            read(spec, json)?,
            Self::BYTES(read(spec, json)?)
        ))
    }

    /// As [`from_json`](Self::from_json), of `BYTES` whose texts are base64.
    ///
    /// # Errors
    /// What was expected and what was found.
    pub(crate) fn from_base64_json(spec: &TensorSpec, json: &str) -> Result<Self, String> {
        let Self::BYTES(texts) = Self::from_json(spec, json)? else {
            return Err(format!("expected {}", describe(spec)));
        };
        let decode = |text: Vec<u8>| STANDARD.decode(text);
        let bytes: Result<_, _> = texts.into_iter().map(decode).collect();
        bytes
            .map(Self::BYTES)
            .map_err(|e| format!("expected base64: {e}"))
    }

    /// A tract tensor of this shape. The number of values has been checked against it.
    pub(crate) fn to_tensor(&self, shape: &[usize]) -> TractResult<Tensor> {
        each!(
            self,
            v => Tensor::from_shape(shape, v),
            _ => Err(TractError::msg("a graph takes no BYTES"))
        )
    }

    /// The values of a tract tensor, whose element type and shape must be those expected;
    /// quantised integers count as the integers they are stored in.
    pub(crate) fn from_tensor(spec: &TensorSpec, tensor: &Tensor) -> Result<Self, String> {
        fn read<T: Datum + Copy>(tensor: &Tensor) -> Result<Vec<T>, String> {
            let view = tensor
                .to_plain_array_view::<T>()
                .map_err(|e| format!("{e:#}"))?;
            Ok(view.iter().copied().collect())
        }
        let unquantised = tensor.datum_type().unquantized();
        // tract keeps some shape arithmetic in a symbolic integer type of its own.
        let symbolic = unquantised == DatumType::TDim && spec.dtype == DType::INT64;
        if (unquantised != datum_type(spec.dtype) && !symbolic)
            || tensor.shape() != spec.shape.as_slice()
        {
            return Err(format!(
                "expected {}, got {:?} {:?}",
                describe(spec),
                tensor.datum_type(),
                tensor.shape()
            ));
        }
        if symbolic {
            let plain = tensor
                .cast_to_dt(datum_type(spec.dtype))
                .map_err(|e| format!("{e:#}"))?;
            return Ok(Self::INT64(read(&plain)?));
        }
        if tensor.datum_type() != datum_type(spec.dtype) {
            return quantised(spec, tensor);
        }
        Ok(build!(
            spec.dtype,
            read(tensor)?,
            return Err("a graph gives no BYTES".to_owned())
        ))
    }
}

/// Stored integers of a quantised tensor, without scale and zero point.
fn quantised(spec: &TensorSpec, tensor: &Tensor) -> Result<Values, String> {
    let bytes = tensor.as_bytes();
    Ok(match spec.dtype {
        DType::INT8 => Values::INT8(bytes.iter().map(|b| b.cast_signed()).collect()),
        DType::UINT8 => Values::UINT8(bytes.to_vec()),
        DType::INT32 => Values::INT32(
            bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|c| i32::from_ne_bytes(*c))
                .collect(),
        ),
        other => return Err(format!("quantised {} is not supported", other.as_str())),
    })
}

/// serde_json's message without the position, which would be relative to one tensor's data.
fn plain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// JSON cannot hold NaN and ±∞: they are written as `null`. `BYTES` are written as texts.
impl Serialize for Values {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::FP16(v) => serializer.collect_seq(v.iter().map(|x| x.to_f32())),
            Self::BOOL(v) => v.serialize(serializer),
            Self::UINT8(v) => v.serialize(serializer),
            Self::UINT16(v) => v.serialize(serializer),
            Self::UINT32(v) => v.serialize(serializer),
            Self::UINT64(v) => v.serialize(serializer),
            Self::INT8(v) => v.serialize(serializer),
            Self::INT16(v) => v.serialize(serializer),
            Self::INT32(v) => v.serialize(serializer),
            Self::INT64(v) => v.serialize(serializer),
            Self::FP32(v) => v.serialize(serializer),
            Self::FP64(v) => v.serialize(serializer),
            Self::BYTES(v) => serializer.collect_seq(v.iter().map(|b| String::from_utf8_lossy(b))),
        }
    }
}

/// An element that JSON numbers and golden values turn into, or say why not.
trait Element: Sized {
    const NAME: &'static str;
    fn from_i64(n: i64) -> Result<Self, String>;
    fn from_u64(n: u64) -> Result<Self, String>;
    fn from_f64(n: f64) -> Result<Self, String>;
    fn from_text(text: &str) -> Result<Self, String> {
        let start: String = text.chars().take(16).collect();
        Err(unfit::<Self>(format_args!("the text {start:?}")))
    }
}

/// An element that is a number.
trait Number: Element + Copy {
    fn to_f64(self) -> f64;
}

impl Element for Vec<u8> {
    const NAME: &'static str = "BYTES";
    fn from_i64(n: i64) -> Result<Self, String> {
        Err(unfit::<Self>(n))
    }
    fn from_u64(n: u64) -> Result<Self, String> {
        Err(unfit::<Self>(n))
    }
    fn from_f64(n: f64) -> Result<Self, String> {
        Err(unfit::<Self>(n))
    }
    fn from_text(text: &str) -> Result<Self, String> {
        Ok(text.as_bytes().to_vec())
    }
}

fn unfit<T: Element>(n: impl fmt::Display) -> String {
    format!("{n} does not fit {}", T::NAME)
}

macro_rules! integer {
    ($($t:ty = $name:literal),*) => {$(
        impl Element for $t {
            const NAME: &'static str = $name;
            fn from_i64(n: i64) -> Result<Self, String> {
                n.try_into().map_err(|_| unfit::<Self>(n))
            }
            fn from_u64(n: u64) -> Result<Self, String> {
                n.try_into().map_err(|_| unfit::<Self>(n))
            }
            fn from_f64(n: f64) -> Result<Self, String> {
                // Whole numbers that clients write with a decimal point are still whole.
                #[allow(clippy::cast_possible_truncation)]
                let whole = n as i64;
                #[allow(clippy::cast_precision_loss, clippy::float_cmp)]
                if (whole as f64) == n { Self::from_i64(whole) } else { Err(unfit::<Self>(n)) }
            }
        }
        impl Number for $t {
            #[allow(clippy::cast_precision_loss, clippy::cast_lossless)]
            fn to_f64(self) -> f64 {
                self as f64
            }
        }
    )*};
}

integer!(
    u8 = "UINT8",
    u16 = "UINT16",
    u32 = "UINT32",
    u64 = "UINT64",
    i8 = "INT8",
    i16 = "INT16",
    i32 = "INT32",
    i64 = "INT64"
);

macro_rules! float {
    ($t:ty, $name:literal, $narrow:expr, $widen:expr) => {
        impl Element for $t {
            const NAME: &'static str = $name;
            #[allow(clippy::cast_precision_loss)]
            fn from_i64(n: i64) -> Result<Self, String> {
                <Self as Element>::from_f64(n as f64)
            }
            #[allow(clippy::cast_precision_loss)]
            fn from_u64(n: u64) -> Result<Self, String> {
                <Self as Element>::from_f64(n as f64)
            }
            fn from_f64(n: f64) -> Result<Self, String> {
                let narrow: Self = $narrow(n);
                if n.is_finite() && !narrow.is_finite() {
                    return Err(unfit::<Self>(n));
                }
                Ok(narrow)
            }
        }
        impl Number for $t {
            fn to_f64(self) -> f64 {
                $widen(self)
            }
        }
    };
}

#[allow(clippy::cast_possible_truncation)]
fn to_f32(n: f64) -> f32 {
    n as f32
}

float!(f16, "FP16", f16::from_f64, f16::to_f64);
float!(f32, "FP32", to_f32, f64::from);
float!(f64, "FP64", std::convert::identity, std::convert::identity);

impl Element for bool {
    const NAME: &'static str = "BOOL";
    fn from_i64(n: i64) -> Result<Self, String> {
        match n {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(unfit::<Self>(n)),
        }
    }
    fn from_u64(n: u64) -> Result<Self, String> {
        i64::try_from(n)
            .map_err(|_| unfit::<Self>(n))
            .and_then(Self::from_i64)
    }
    fn from_f64(n: f64) -> Result<Self, String> {
        if n == 0.0 {
            Ok(false)
        } else if n == 1.0 {
            Ok(true)
        } else {
            Err(unfit::<Self>(n))
        }
    }
}

impl Number for bool {
    fn to_f64(self) -> f64 {
        f64::from(u8::from(self))
    }
}

/// Collects a flat or nested array; never more values than the shape has.
struct Flat<'a, T> {
    shape: &'a [usize],
    elements: usize,
    leaf_depth: Option<usize>,
    out: Vec<T>,
}

impl<T: Element> Flat<'_, T> {
    fn push<E: serde::de::Error>(
        &mut self,
        depth: usize,
        value: Result<T, String>,
    ) -> Result<(), E> {
        let leaf = *self.leaf_depth.get_or_insert(depth);
        let rank = self.shape.len();
        if depth != leaf || (depth != 1 && depth != rank) {
            return Err(E::custom(format!(
                "a value nested {depth} deep: expected a flat array, or one nested {rank} deep"
            )));
        }
        if self.out.len() == self.elements {
            return Err(E::custom(format!(
                "expected {} values, got more",
                self.elements
            )));
        }
        self.out.push(value.map_err(E::custom)?);
        Ok(())
    }
}

/// One level of nesting.
struct Level<'a, 'b, T> {
    flat: &'a mut Flat<'b, T>,
    depth: usize,
}

impl<'de, T: Element> DeserializeSeed<'de> for Level<'_, '_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: Element> Visitor<'de> for Level<'_, '_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.depth == 0 {
            return f.write_str("an array");
        }
        write!(f, "{} values, flat or nested by shape", T::NAME)
    }

    fn visit_bool<E: serde::de::Error>(self, b: bool) -> Result<(), E> {
        let value = if T::NAME == <bool as Element>::NAME {
            T::from_u64(u64::from(b))
        } else {
            Err(unfit::<T>(b))
        };
        self.flat.push(self.depth, value)
    }

    fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<(), E> {
        self.flat.push(self.depth, T::from_i64(n))
    }

    fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<(), E> {
        self.flat.push(self.depth, T::from_u64(n))
    }

    fn visit_f64<E: serde::de::Error>(self, n: f64) -> Result<(), E> {
        self.flat.push(self.depth, T::from_f64(n))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        self.flat.push(self.depth, T::from_text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let mut count = 0_usize;
        let depth = self.depth + 1;
        while items
            .next_element_seed(Level {
                flat: self.flat,
                depth,
            })?
            .is_some()
        {
            count += 1;
        }
        let nested = self
            .flat
            .leaf_depth
            .is_none_or(|leaf| leaf > 1 || self.flat.shape.len() == 1);
        match self.flat.shape.get(self.depth) {
            Some(&expected) if nested && count != expected => Err(A::Error::custom(format!(
                "dimension {} has {count} entries, expected shape {:?}",
                self.depth, self.flat.shape
            ))),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "tensor_tests.rs"]
mod tests;
