//! Typed contents: the values of a tensor as numbers of protocol buffers, in a field of their kind.

use super::wire::{Field, Fields, Held, Message, WireError, number};
use crate::inference::tensor::Values;
use dunlin_protocol::bundle::{DType, TensorSpec};

/// The field that holds a tensor's values, and its name; 16-bit floats have none.
fn field(dtype: DType) -> Option<(u64, &'static str)> {
    Some(match dtype {
        DType::BOOL => (1, "bool_contents"),
        DType::INT8 | DType::INT16 | DType::INT32 => (2, "int_contents"),
        DType::INT64 => (3, "int64_contents"),
        DType::UINT8 | DType::UINT16 | DType::UINT32 => (4, "uint_contents"),
        DType::UINT64 => (5, "uint64_contents"),
        DType::FP32 => (6, "fp32_contents"),
        DType::FP64 => (7, "fp64_contents"),
        DType::BYTES => (8, "bytes_contents"),
        DType::FP16 => return None,
    })
}

/// Reads the values of a tensor; there must be exactly as many as its shape has.
///
/// # Errors
/// What was expected and what came.
pub(crate) fn read(spec: &TensorSpec, contents: &[u8]) -> Result<Values, String> {
    Ok(match spec.dtype {
        DType::BOOL => Values::BOOL(integers(spec, contents, |n| match n {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        })?),
        // Negative numbers of 32 bits travel as those of 64.
        DType::INT8 => Values::INT8(integers(spec, contents, |n| {
            n.cast_signed().try_into().ok()
        })?),
        DType::INT16 => Values::INT16(integers(spec, contents, |n| {
            n.cast_signed().try_into().ok()
        })?),
        DType::INT32 => Values::INT32(integers(spec, contents, |n| {
            n.cast_signed().try_into().ok()
        })?),
        DType::INT64 => Values::INT64(integers(spec, contents, |n| Some(n.cast_signed()))?),
        DType::UINT8 => Values::UINT8(integers(spec, contents, |n| n.try_into().ok())?),
        DType::UINT16 => Values::UINT16(integers(spec, contents, |n| n.try_into().ok())?),
        DType::UINT32 => Values::UINT32(integers(spec, contents, |n| n.try_into().ok())?),
        DType::UINT64 => Values::UINT64(integers(spec, contents, Some)?),
        DType::FP32 => Values::FP32(floats(
            spec,
            contents,
            f32::from_le_bytes,
            |held| match held {
                Held::Fixed32(bytes) => Some(bytes),
                _ => None,
            },
        )?),
        DType::FP64 => Values::FP64(floats(
            spec,
            contents,
            f64::from_le_bytes,
            |held| match held {
                Held::Fixed64(bytes) => Some(bytes),
                _ => None,
            },
        )?),
        DType::BYTES => Values::BYTES(strings(spec, contents)?),
        DType::FP16 => {
            return Err("FP16 has no typed contents: send raw_input_contents".to_owned());
        }
    })
}

/// Gives each field with the tensor's values to `add`; any other field is one too many.
fn each_field<'a>(
    spec: &TensorSpec,
    contents: &'a [u8],
    mut add: impl FnMut(Field<'a>) -> Result<(), String>,
) -> Result<(), String> {
    let (wanted, name) = field(spec.dtype).unwrap_or_default();
    for field in Fields::of(contents) {
        let field = field.map_err(|e| e.to_string())?;
        if field.number != wanted {
            return Err(format!("expected {name}, got field {}", field.number));
        }
        add(field)?;
    }
    Ok(())
}

/// A list that has exactly as many values as the tensor in the end.
struct Exactly<T> {
    expected: usize,
    list: Vec<T>,
}

impl<T> Exactly<T> {
    fn of(spec: &TensorSpec) -> Self {
        let expected = spec.elements();
        let list = Vec::with_capacity(expected);
        Self { expected, list }
    }

    fn push(&mut self, value: T) -> Result<(), String> {
        if self.list.len() == self.expected {
            return Err(format!("expected {} values, got more", self.expected));
        }
        self.list.push(value);
        Ok(())
    }

    fn finish(self) -> Result<Vec<T>, String> {
        let (expected, got) = (self.expected, self.list.len());
        if got == expected {
            return Ok(self.list);
        }
        Err(format!("expected {expected} values, got {got}"))
    }
}

fn integers<T>(
    spec: &TensorSpec,
    contents: &[u8],
    fit: impl Fn(u64) -> Option<T>,
) -> Result<Vec<T>, String> {
    let mut values = Exactly::of(spec);
    let dtype = spec.dtype.as_str();
    let fitting =
        |n: u64| fit(n).ok_or_else(|| format!("{} does not fit {dtype}", n.cast_signed()));
    each_field(spec, contents, |field| match field.held {
        Held::Number(n) => values.push(fitting(n)?),
        Held::Bytes(mut packed) => {
            while !packed.is_empty() {
                let n = number(&mut packed).map_err(|e| e.to_string())?;
                values.push(fitting(n)?)?;
            }
            Ok(())
        }
        _ => Err(WireError::Type(field.number).to_string()),
    })?;
    values.finish()
}

fn strings(spec: &TensorSpec, contents: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut values = Exactly::of(spec);
    each_field(spec, contents, |field| match field.held {
        Held::Bytes(bytes) => values.push(bytes.to_vec()),
        _ => Err(WireError::Type(field.number).to_string()),
    })?;
    values.finish()
}

fn floats<const N: usize, T>(
    spec: &TensorSpec,
    contents: &[u8],
    from: impl Fn([u8; N]) -> T,
    single: impl Fn(Held<'_>) -> Option<[u8; N]>,
) -> Result<Vec<T>, String> {
    let mut values = Exactly::of(spec);
    each_field(spec, contents, |field| match field.held {
        Held::Bytes(packed) => {
            let (chunks, rest) = packed.as_chunks::<N>();
            if !rest.is_empty() {
                return Err(WireError::Cut.to_string());
            }
            chunks.iter().try_for_each(|c| values.push(from(*c)))
        }
        held => match single(held) {
            Some(bytes) => values.push(from(bytes)),
            None => Err(WireError::Type(field.number).to_string()),
        },
    })?;
    values.finish()
}

/// The typed contents of a tensor; none where the protocol has no field for its type.
pub(crate) fn write(values: &Values) -> Option<Message> {
    let (field, _) = field(values.dtype())?;
    let mut contents = Message::default();
    let wide = |n: i64| n.cast_unsigned();
    match values {
        Values::BOOL(v) => contents.numbers(field, v.iter().map(|b| u64::from(*b))),
        Values::INT8(v) => contents.numbers(field, v.iter().map(|n| wide(i64::from(*n)))),
        Values::INT16(v) => contents.numbers(field, v.iter().map(|n| wide(i64::from(*n)))),
        Values::INT32(v) => contents.numbers(field, v.iter().map(|n| wide(i64::from(*n)))),
        Values::INT64(v) => contents.numbers(field, v.iter().map(|n| wide(*n))),
        Values::UINT8(v) => contents.numbers(field, v.iter().map(|n| u64::from(*n))),
        Values::UINT16(v) => contents.numbers(field, v.iter().map(|n| u64::from(*n))),
        Values::UINT32(v) => contents.numbers(field, v.iter().map(|n| u64::from(*n))),
        Values::UINT64(v) => contents.numbers(field, v.iter().copied()),
        Values::FP32(_) | Values::FP64(_) => {
            let length = crate::inference::api::binary::length(values);
            contents.bytes_of(field, length, |to| {
                crate::inference::api::binary::write(values, to);
            });
        }
        Values::BYTES(v) => v.iter().for_each(|b| contents.bytes(field, b)),
        Values::FP16(_) => return None,
    }
    Some(contents)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn spec(dtype: DType, elements: usize) -> TensorSpec {
        TensorSpec {
            name: "x".to_owned(),
            dtype,
            shape: vec![elements],
            layout: None,
        }
    }

    #[test]
    fn what_was_written_reads_the_same() {
        for values in [
            Values::BOOL(vec![true, false]),
            Values::INT8(vec![-128, 127]),
            Values::INT16(vec![-1, 300]),
            Values::INT32(vec![i32::MIN, i32::MAX]),
            Values::INT64(vec![i64::MIN, 5]),
            Values::UINT8(vec![0, 255]),
            Values::UINT16(vec![65535, 1]),
            Values::UINT32(vec![u32::MAX, 0]),
            Values::UINT64(vec![u64::MAX, 7]),
            Values::FP32(vec![0.5, -1.5]),
            Values::FP64(vec![f64::MAX, 0.0]),
            Values::BYTES(vec![b"red".to_vec(), vec![]]),
        ] {
            let contents = write(&values).unwrap().into_bytes();
            let spec = spec(values.dtype(), 2);
            assert_eq!(read(&spec, &contents).unwrap(), values);
        }
        let half = Values::FP16(vec![tract_onnx::prelude::f16::from_f32(1.0)]);
        assert!(write(&half).is_none());
        assert!(read(&spec(DType::FP16, 1), &[]).is_err());
    }

    #[test]
    fn single_fields_count_as_packed_ones_do() {
        let mut contents = Message::default();
        contents.number(2, 5_u64);
        contents.numbers(2, [6].into_iter());
        let read = read(&spec(DType::INT32, 2), &contents.into_bytes()).unwrap();
        assert_eq!(read, Values::INT32(vec![5, 6]));
    }

    #[test]
    fn contents_that_do_not_fit_are_told() {
        let mut ints = Message::default();
        ints.numbers(2, [300, 1].into_iter());
        let ints = ints.into_bytes();
        for (dtype, elements, hint) in [
            (DType::INT8, 2, "300 does not fit INT8"),
            (DType::INT32, 3, "expected 3 values, got 2"),
            (DType::INT32, 1, "expected 1 values, got more"),
            (DType::FP32, 2, "expected fp32_contents, got field 2"),
        ] {
            let error = read(&spec(dtype, elements), &ints).unwrap_err();
            assert!(error.contains(hint), "{error}");
        }
        let error = read(&spec(DType::FP32, 1), &[0x32, 3, 1, 2, 3]).unwrap_err();
        assert!(error.contains("middle of a field"), "{error}");
    }
}
