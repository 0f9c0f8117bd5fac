//! The binary form of tensors: little-endian, row-major, without stride or padding; `BOOL` is one byte,
//! 0 or 1; an element of `BYTES` is its length in four bytes, then itself.

use crate::inference::tensor::Values;
use dunlin_protocol::bundle::{DType, TensorSpec};
use tract_onnx::prelude::f16;

/// Bytes of the length before each element of `BYTES`.
const LENGTH_BYTES: usize = 4;

/// Bytes of one element; of `BYTES` the fewest.
pub(crate) fn width(dtype: DType) -> usize {
    match dtype {
        DType::BOOL | DType::UINT8 | DType::INT8 => 1,
        DType::UINT16 | DType::INT16 | DType::FP16 => 2,
        DType::UINT32 | DType::INT32 | DType::FP32 => 4,
        DType::UINT64 | DType::INT64 | DType::FP64 => 8,
        DType::BYTES => LENGTH_BYTES,
    }
}

/// Reads a tensor, whose bytes must be exactly as many as its elements take.
///
/// # Errors
/// What was expected and what came.
pub(crate) fn read(spec: &TensorSpec, bytes: &[u8]) -> Result<Values, String> {
    if spec.dtype == DType::BYTES {
        return Ok(Values::BYTES(read_strings(spec, bytes)?));
    }
    let expected = spec.elements().saturating_mul(width(spec.dtype));
    if bytes.len() != expected {
        return Err(format!("expected {expected} bytes, got {}", bytes.len()));
    }
    /// As many chunks as the length that was just checked has.
    fn all<const N: usize, T>(bytes: &[u8], from: impl Fn([u8; N]) -> T) -> Vec<T> {
        bytes.as_chunks::<N>().0.iter().map(|c| from(*c)).collect()
    }
    Ok(match spec.dtype {
        DType::BOOL => {
            if let Some(at) = bytes.iter().position(|b| *b > 1) {
                return Err(format!("byte {at} is {}, expected 0 or 1", bytes[at]));
            }
            Values::BOOL(bytes.iter().map(|b| *b == 1).collect())
        }
        DType::UINT8 => Values::UINT8(bytes.to_vec()),
        DType::INT8 => Values::INT8(bytes.iter().map(|b| b.cast_signed()).collect()),
        DType::UINT16 => Values::UINT16(all(bytes, u16::from_le_bytes)),
        DType::INT16 => Values::INT16(all(bytes, i16::from_le_bytes)),
        DType::UINT32 => Values::UINT32(all(bytes, u32::from_le_bytes)),
        DType::INT32 => Values::INT32(all(bytes, i32::from_le_bytes)),
        DType::UINT64 => Values::UINT64(all(bytes, u64::from_le_bytes)),
        DType::INT64 => Values::INT64(all(bytes, i64::from_le_bytes)),
        DType::FP16 => Values::FP16(all(bytes, half_from_le_bytes)),
        DType::FP32 => Values::FP32(all(bytes, f32::from_le_bytes)),
        DType::FP64 => Values::FP64(all(bytes, f64::from_le_bytes)),
        DType::BYTES => Values::BYTES(Vec::new()),
    })
}

/// Each element after its length; there must be as many as the shape has, and nothing after them.
fn read_strings(spec: &TensorSpec, mut bytes: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut list = Vec::new();
    let expected = spec.elements();
    while let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() {
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let Some((element, rest)) = rest.split_at_checked(length) else {
            let (at, left) = (list.len(), rest.len());
            return Err(format!("element {at} says {length} bytes, {left} are left"));
        };
        if list.len() == expected {
            return Err(format!("expected {expected} elements, got more"));
        }
        list.push(element.to_vec());
        bytes = rest;
    }
    if list.len() == expected && bytes.is_empty() {
        return Ok(list);
    }
    let (got, left) = (list.len(), bytes.len());
    Err(format!(
        "expected {expected} elements, got {got} and {left} bytes more"
    ))
}

fn half_from_le_bytes(bytes: [u8; 2]) -> f16 {
    f16::from_bits(u16::from_le_bytes(bytes))
}

/// Bytes that [`write`] adds for these values.
pub(crate) fn length(values: &Values) -> usize {
    let widths = values.len().saturating_mul(width(values.dtype()));
    match values {
        Values::BYTES(v) => v.iter().fold(widths, |n, b| n.saturating_add(b.len())),
        _ => widths,
    }
}

/// Adds the binary form of a tensor.
pub(crate) fn write(values: &Values, to: &mut Vec<u8>) {
    fn all<const N: usize, T: Copy>(values: &[T], to: &mut Vec<u8>, le: impl Fn(T) -> [u8; N]) {
        to.extend(values.iter().flat_map(|v| le(*v)));
    }
    match values {
        Values::BOOL(v) => all(v, to, |b| [u8::from(b)]),
        Values::UINT8(v) => to.extend_from_slice(v),
        Values::INT8(v) => all(v, to, i8::to_le_bytes),
        Values::UINT16(v) => all(v, to, u16::to_le_bytes),
        Values::INT16(v) => all(v, to, i16::to_le_bytes),
        Values::UINT32(v) => all(v, to, u32::to_le_bytes),
        Values::INT32(v) => all(v, to, i32::to_le_bytes),
        Values::UINT64(v) => all(v, to, u64::to_le_bytes),
        Values::INT64(v) => all(v, to, i64::to_le_bytes),
        Values::FP16(v) => all(v, to, |h| h.to_bits().to_le_bytes()),
        Values::FP32(v) => all(v, to, f32::to_le_bytes),
        Values::FP64(v) => all(v, to, f64::to_le_bytes),
        Values::BYTES(v) => {
            for element in v {
                // No element is longer: a body is shorter than that.
                let length = u32::try_from(element.len()).unwrap_or(u32::MAX);
                to.extend_from_slice(&length.to_le_bytes());
                to.extend_from_slice(element);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec(dtype: DType, elements: usize) -> TensorSpec {
        TensorSpec {
            name: "x".to_owned(),
            dtype,
            shape: vec![elements],
            layout: None,
        }
    }

    const ALL: [DType; 12] = [
        DType::BOOL,
        DType::UINT8,
        DType::UINT16,
        DType::UINT32,
        DType::UINT64,
        DType::INT8,
        DType::INT16,
        DType::INT32,
        DType::INT64,
        DType::FP16,
        DType::FP32,
        DType::FP64,
    ];

    #[test]
    fn bytes_are_little_endian() {
        let read = |dtype, bytes: &[u8]| read(&spec(dtype, 1), bytes).unwrap();
        assert_eq!(read(DType::UINT16, &[1, 2]), Values::UINT16(vec![513]));
        assert_eq!(
            read(DType::INT32, &[254, 255, 255, 255]),
            Values::INT32(vec![-2])
        );
        assert_eq!(
            read(DType::FP32, &[0, 0, 0x80, 0x3f]),
            Values::FP32(vec![1.0])
        );
        assert_eq!(
            read(DType::FP16, &[0, 0x3c]),
            Values::FP16(vec![f16::from_f32(1.0)])
        );
        assert_eq!(read(DType::BOOL, &[1]), Values::BOOL(vec![true]));
    }

    #[test]
    fn another_length_and_odd_truth_values_are_refused() {
        let error = read(&spec(DType::FP32, 2), &[0; 9]).unwrap_err();
        assert_eq!(error, "expected 8 bytes, got 9");
        let error = read(&spec(DType::BOOL, 2), &[1, 2]).unwrap_err();
        assert_eq!(error, "byte 1 is 2, expected 0 or 1");
    }

    #[test]
    fn byte_strings_have_their_length_before_them() {
        let values = Values::BYTES(vec![b"ab".to_vec(), vec![]]);
        let mut bytes = Vec::new();
        write(&values, &mut bytes);
        assert_eq!(bytes, [2, 0, 0, 0, b'a', b'b', 0, 0, 0, 0]);
        assert_eq!(length(&values), bytes.len());
        assert_eq!(read(&spec(DType::BYTES, 2), &bytes).unwrap(), values);
        for (elements, cut, hint) in [
            (1, 10, "expected 1 elements, got more"),
            (3, 10, "expected 3 elements, got 2"),
            (2, 9, "got 1 and 3 bytes more"),
            (2, 5, "element 0 says 2 bytes, 1 are left"),
        ] {
            let error = read(&spec(DType::BYTES, elements), &bytes[..cut]).unwrap_err();
            assert!(error.contains(hint), "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_was_written_reads_the_same(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            for dtype in ALL {
                let mut bytes = bytes.clone();
                if dtype == DType::BOOL {
                    bytes.iter_mut().for_each(|b| *b &= 1);
                }
                let elements = bytes.len() / width(dtype);
                bytes.truncate(elements * width(dtype));
                let values = read(&spec(dtype, elements), &bytes).unwrap();
                let mut again = Vec::new();
                write(&values, &mut again);
                prop_assert_eq!(length(&values), again.len());
                prop_assert_eq!(again, bytes);
            }
        }
    }
}
