//! Where the tensors of an ONNX file are.
//!
//! Only protobuf's wire format is read, and of the schema (onnx.proto3) only the way to tensors:
//! initializers and constants of the main graph, of subgraphs and of functions. Fields may come in
//! any order, unknown ones are passed over. What does not fit is not an error: the bytes are then
//! coded without knowing what they mean.

use super::wire::Slice;
use std::ops::Range;

/// Deepest nesting of graphs that is followed.
const DEPTH_MAX: usize = 16;

/// Numbers of one tensor as they lie in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tensor {
    /// Initializer's name, or the constant's output and attribute.
    pub(super) name: Vec<u8>,
    /// `TensorProto.DataType`.
    pub(super) dtype: u64,
    /// Dimensions, outermost first.
    pub(super) dims: Vec<u64>,
    /// The payload, little-endian.
    pub(super) place: Range<usize>,
    /// Bytes of a number; 1 where numbers are smaller.
    pub(super) width: usize,
    /// Whether numbers are sign, exponent and mantissa.
    pub(super) is_float: bool,
}

/// Width in bytes, and whether it is a float, by `TensorProto.DataType`.
fn number(dtype: u64) -> Option<(usize, bool)> {
    Some(match dtype {
        1 | 14 => (4, true),               // FLOAT, COMPLEX64
        10 | 16 => (2, true),              // FLOAT16, BFLOAT16
        11 | 15 => (8, true),              // DOUBLE, COMPLEX128
        2 | 3 | 9 | 17..=25 => (1, false), // 8 bits or fewer
        4 | 5 => (2, false),
        6 | 12 => (4, false),
        7 | 13 => (8, false),
        _ => return None,
    })
}

/// What is to be known of a tensor to code its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    /// Bytes of a number.
    pub(super) width: usize,
    /// Bits of the mantissa, if numbers are sign, exponent and mantissa.
    pub(super) mantissa_bits: Option<u8>,
    /// Numbers in an index of the outermost dimension; 0 if there is but one dimension.
    pub(super) outer_row: usize,
    /// Numbers in the innermost dimension; 0 if there is but one dimension.
    pub(super) inner_row: usize,
}

impl Tensor {
    /// What is to be known to code its numbers.
    pub(super) fn kind(&self) -> Kind {
        let count = self.place.len() / self.width;
        let length = |dims: &[u64]| {
            let product = dims
                .iter()
                .try_fold(1_u64, |all, dim| all.checked_mul(*dim));
            let product = product.and_then(|product| usize::try_from(product).ok());
            product.filter(|length| *length < count).unwrap_or(0)
        };
        let dims = &self.dims[..];
        let (outer_row, inner_row) = match dims {
            [] | [_] => (0, 0),
            [_, inner @ ..] => (length(inner), length(&dims[dims.len() - 1..])),
        };
        let mantissa_bits = match self.dtype {
            10 => 10,
            16 => 7,
            11 | 15 => 52,
            _ => 23,
        };
        Kind {
            width: self.width,
            mantissa_bits: self.is_float.then_some(mantissa_bits),
            outer_row,
            inner_row,
        }
    }
}

/// Every tensor payload of a model, in the order of the file; none if it is no model.
pub(super) fn tensors(file: &[u8]) -> Vec<Tensor> {
    let mut walk = Walk {
        file,
        found: Vec::new(),
    };
    if walk.model().is_none() {
        return Vec::new();
    }
    let mut found = walk.found;
    found.sort_by_key(|tensor| tensor.place.start);
    let mut end = 0;
    found.retain(|tensor| {
        let is_apart = tensor.place.start >= end;
        if is_apart {
            end = tensor.place.end;
        }
        is_apart
    });
    found
}

/// A field's value; lengths and places are the file's.
enum Value {
    Varint(u64),
    Bytes(Range<usize>),
    Fixed,
}

struct Walk<'a> {
    file: &'a [u8],
    found: Vec<Tensor>,
}

impl<'a> Walk<'a> {
    /// The fields of a message, `None` if it is none.
    fn fields(&self, place: &Range<usize>) -> Option<Vec<(u64, Value)>> {
        let mut rest = Slice::new(self.file.get(place.clone())?);
        let mut fields = Vec::new();
        while !rest.is_empty() {
            let key = rest.varint()?;
            let value = match key & 7 {
                0 => Value::Varint(rest.varint()?),
                1 => rest.take(8).map(|_| Value::Fixed)?,
                2 => {
                    let length = rest.varint()?;
                    let start = place.end - rest.len();
                    let bytes = rest.take(length)?;
                    Value::Bytes(start..start + bytes.len())
                }
                5 => rest.take(4).map(|_| Value::Fixed)?,
                _ => return None,
            };
            fields.push((key >> 3, value));
        }
        Some(fields)
    }

    fn bytes(&self, place: &Range<usize>) -> &'a [u8] {
        self.file.get(place.clone()).unwrap_or_default()
    }

    fn model(&mut self) -> Option<()> {
        for (field, value) in self.fields(&(0..self.file.len()))? {
            match (field, value) {
                (7, Value::Bytes(graph)) => self.graph(&graph, b"", 0)?,
                // FunctionProto: its nodes are in field 7.
                (25, Value::Bytes(function)) => self.nodes(&function, 7, b"function/", 0)?,
                _ => {}
            }
        }
        Some(())
    }

    fn graph(&mut self, place: &Range<usize>, path: &[u8], depth: usize) -> Option<()> {
        for (field, value) in self.fields(place)? {
            if let (5, Value::Bytes(tensor)) = (field, value) {
                self.tensor(&tensor, path)?;
            }
        }
        self.nodes(place, 1, path, depth)
    }

    /// The nodes in field `number` of a message.
    fn nodes(
        &mut self,
        place: &Range<usize>,
        number: u64,
        path: &[u8],
        depth: usize,
    ) -> Option<()> {
        for (field, value) in self.fields(place)? {
            match value {
                Value::Bytes(node) if field == number => self.node(&node, path, depth)?,
                _ => {}
            }
        }
        Some(())
    }

    fn node(&mut self, place: &Range<usize>, path: &[u8], depth: usize) -> Option<()> {
        let fields = self.fields(place)?;
        let output = fields.iter().find_map(|(field, value)| match value {
            Value::Bytes(name) if *field == 2 => Some(self.bytes(name)),
            _ => None,
        });
        let mut path = path.to_vec();
        path.extend_from_slice(output.unwrap_or_default());
        path.push(b'/');
        for (field, value) in &fields {
            let (5, Value::Bytes(attribute)) = (field, value) else {
                continue;
            };
            for (field, value) in self.fields(attribute)? {
                match (field, value) {
                    (5 | 10, Value::Bytes(tensor)) => self.tensor(&tensor, &path)?,
                    (6 | 11, Value::Bytes(graph)) if depth < DEPTH_MAX => {
                        self.graph(&graph, &path, depth + 1)?;
                    }
                    _ => {}
                }
            }
        }
        Some(())
    }

    fn tensor(&mut self, place: &Range<usize>, path: &[u8]) -> Option<()> {
        let (mut name, mut dtype, mut dims) = (path.to_vec(), 0, Vec::new());
        let (mut raw, mut floats, mut doubles) = (None, None, None);
        for (field, value) in self.fields(place)? {
            match (field, value) {
                (1, Value::Varint(dim)) => dims.push(dim),
                (1, Value::Bytes(packed)) => {
                    let mut rest = Slice::new(self.bytes(&packed));
                    while !rest.is_empty() {
                        dims.push(rest.varint()?);
                    }
                }
                (2, Value::Varint(number)) => dtype = number,
                (4, Value::Bytes(packed)) => floats = Some(packed),
                (8, Value::Bytes(own)) => name.extend_from_slice(self.bytes(&own)),
                (9, Value::Bytes(bytes)) => raw = Some(bytes),
                (10, Value::Bytes(packed)) => doubles = Some(packed),
                _ => {}
            }
        }
        // `float_data` holds floats and complex floats, `double_data` likewise; raw data anything.
        let place = match dtype {
            1 | 14 => raw.or(floats),
            11 | 15 => raw.or(doubles),
            _ => raw,
        };
        if let (Some(place), Some((width, is_float))) = (place, number(dtype))
            && !place.is_empty()
            && place.len().is_multiple_of(width)
        {
            self.found.push(Tensor {
                name,
                dtype,
                dims,
                place,
                width,
                is_float,
            });
        }
        Some(())
    }
}
