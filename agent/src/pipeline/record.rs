//! A record: what a source gave, made into a request of the Open Inference Protocol v2, and the
//! answer made into a result.
//!
//! Pure: bytes in, bytes out. `raw` and `bytes` travel as the protocol's binary tensor data.

mod csv;
#[cfg(test)]
mod tests;

pub use csv::{Header, fields, header, is_missing};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Longest id that the inference API takes, in bytes.
const ID_MAX_BYTES: usize = 256;

/// How payloads are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// A request of the protocol, an object of input names and arrays, or one bare array.
    Json,
    /// A record a line: the elements of the one input, or a column for each of several inputs.
    Csv,
    /// The inputs' elements one after another, little-endian.
    Raw,
    /// The whole payload is the one element of a `BYTES` input: an image, audio.
    Bytes,
}

impl Format {
    /// Reads `json`, `csv`, `raw` or `bytes`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "json" => Some(Self::Json),
            "csv" => Some(Self::Csv),
            "raw" => Some(Self::Raw),
            "bytes" => Some(Self::Bytes),
            _ => None,
        }
    }

    /// The format of a file by its extension: images, audio and what is not known are bytes.
    #[must_use]
    pub fn of_extension(extension: &str) -> Self {
        match extension.to_ascii_lowercase().as_str() {
            "csv" => Self::Csv,
            "json" => Self::Json,
            "raw" | "bin" => Self::Raw,
            _ => Self::Bytes,
        }
    }
}

/// An input as the model's metadata tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Input {
    /// Name.
    pub name: String,
    /// Type, as the protocol writes it.
    pub datatype: String,
    /// Shape; -1 where the model takes any.
    pub shape: Vec<i64>,
}

impl Input {
    /// Bytes of all its elements; none where a size is open or elements have no fixed size.
    #[must_use]
    pub fn bytes(&self) -> Option<usize> {
        elements(self)?.checked_mul(element_bytes(&self.datatype)?)
    }
}

/// A model's metadata, as far as requests need it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Metadata {
    /// Its inputs, in order.
    pub inputs: Vec<Input>,
}

/// A request's body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// JSON, and after it binary data if there is some.
    pub body: Vec<u8>,
    /// Length of the JSON if binary data follows it.
    pub json_bytes: Option<usize>,
}

impl Request {
    /// With parameters that hold for all records, where a record does not say otherwise.
    #[must_use]
    pub fn with_parameters(mut self, parameters: &BTreeMap<String, String>) -> Self {
        if parameters.is_empty() {
            return self;
        }
        let end = self.json_bytes.unwrap_or(self.body.len());
        let head = self.body.get(..end).unwrap_or_default();
        let Ok(Value::Object(mut whole)) = serde_json::from_slice(head) else {
            return self;
        };
        let given = whole
            .entry("parameters")
            .or_insert_with(|| Value::Object(Map::new()));
        // What is no object is refused by the model, with its reason.
        if let Value::Object(given) = given {
            for (name, value) in parameters {
                let text = || Value::String(value.clone());
                given.entry(name.clone()).or_insert_with(text);
            }
        }
        let head = Value::Object(whole).to_string().into_bytes();
        let json_bytes = self.json_bytes.map(|_| head.len());
        let mut body = head;
        body.extend_from_slice(self.body.get(end..).unwrap_or_default());
        self.body = body;
        self.json_bytes = json_bytes;
        self
    }
}

/// Why a payload is no record of this model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// It cannot be read at all.
    #[error("expected {expected}, got {got}")]
    Payload {
        /// What the format says.
        expected: String,
        /// What came.
        got: String,
    },
    /// An input is missing, strange or of another size.
    #[error("input {input:?}: expected {expected}, got {got}")]
    Input {
        /// Its name.
        input: String,
        /// What the model says.
        expected: String,
        /// What came.
        got: String,
    },
    /// The model is not one that this format can feed.
    #[error("format {format}: expected a model with {expected}, got {got}")]
    Model {
        /// The format.
        format: &'static str,
        /// What it can feed.
        expected: &'static str,
        /// The model's inputs.
        got: String,
    },
}

/// Makes a request of a payload. `id` names it in the answer unless it is a request with an id of
/// its own.
///
/// # Errors
/// [`RecordError`] says what does not fit the model.
pub fn request(
    format: Format,
    payload: &[u8],
    header: Option<&Header>,
    id: &str,
    metadata: &Metadata,
) -> Result<Request, RecordError> {
    match format {
        Format::Json => from_json(payload, id, metadata),
        Format::Csv => csv::request(payload, header, id, metadata),
        Format::Raw => from_raw(payload, id, metadata),
        Format::Bytes => from_bytes(payload, id, metadata),
    }
}

fn from_json(payload: &[u8], id: &str, metadata: &Metadata) -> Result<Request, RecordError> {
    let value: Value = serde_json::from_slice(payload).map_err(|e| RecordError::Payload {
        expected: "JSON".to_owned(),
        got: format!("{} bytes that are none: {e}", payload.len()),
    })?;
    match value {
        Value::Object(mut whole) if is_request(&whole) => {
            if !whole.get("id").is_some_and(Value::is_string) {
                whole.insert("id".to_owned(), Value::String(short(id)));
            }
            Ok(plain(&Value::Object(whole)))
        }
        Value::Object(mut named) => {
            let inputs = metadata.inputs.iter().map(|input| {
                let value = named.remove(&input.name);
                let value = value.ok_or_else(|| missing(input))?;
                tensor(input, value)
            });
            let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
            match named.keys().next() {
                None => Ok(of_inputs(id, &inputs)),
                Some(stranger) => Err(RecordError::Payload {
                    expected: format!("inputs {}", names(metadata)),
                    got: format!("{:?} too", cut(stranger)),
                }),
            }
        }
        other => {
            let input = only_input("json (a bare array)", "one input", metadata)?;
            Ok(of_inputs(id, &[tensor(input, other)?]))
        }
    }
}

/// A request has a list of objects where an object of inputs has a list of numbers or strings.
fn is_request(object: &Map<String, Value>) -> bool {
    let inputs = object.get("inputs").and_then(Value::as_array);
    inputs.is_some_and(|list| !list.is_empty() && list.iter().all(Value::is_object))
}

fn tensor(input: &Input, value: Value) -> Result<Value, RecordError> {
    let mut data = Vec::new();
    flatten(value, &mut data);
    let shape = shape(input, data.len())?;
    Ok(json!({ "name": input.name, "datatype": input.datatype, "shape": shape, "data": data }))
}

/// Nested lists lie in memory as one. (`serde_json` bounds how deep they may be nested.)
fn flatten(value: Value, into: &mut Vec<Value>) {
    match value {
        Value::Array(items) => items.into_iter().for_each(|item| flatten(item, into)),
        other => into.push(other),
    }
}

/// The shape for so many elements; where the model takes any size, what is left is filled in.
fn shape(input: &Input, elements: usize) -> Result<Vec<u64>, RecordError> {
    let wrong = || RecordError::Input {
        input: input.name.clone(),
        expected: format!("{} {:?}", input.datatype, input.shape),
        got: format!("{elements} elements"),
    };
    let elements = u64::try_from(elements).map_err(|_| wrong())?;
    let mut fixed = Some(1_u64);
    for size in input
        .shape
        .iter()
        .filter_map(|size| u64::try_from(*size).ok())
    {
        fixed = fixed.and_then(|fixed| fixed.checked_mul(size));
    }
    let fixed = fixed.ok_or_else(wrong)?;
    // One open size takes what there is; further ones are 1.
    let mut open = elements.checked_div(fixed).unwrap_or(0);
    let any = input.shape.iter().any(|size| *size < 0);
    let fits = if any {
        open > 0 && fixed.checked_mul(open) == Some(elements)
    } else {
        fixed == elements
    };
    if !fits {
        return Err(wrong());
    }
    let sizes = input
        .shape
        .iter()
        .map(|size| u64::try_from(*size).unwrap_or_else(|_| std::mem::replace(&mut open, 1)));
    Ok(sizes.collect())
}

fn element_bytes(datatype: &str) -> Option<usize> {
    match datatype {
        "BOOL" | "INT8" | "UINT8" => Some(1),
        "INT16" | "UINT16" | "FP16" | "BF16" => Some(2),
        "INT32" | "UINT32" | "FP32" => Some(4),
        "INT64" | "UINT64" | "FP64" => Some(8),
        _ => None,
    }
}

fn from_raw(payload: &[u8], id: &str, metadata: &Metadata) -> Result<Request, RecordError> {
    let mut rest = payload.len();
    let mut inputs = Vec::new();
    for (at, input) in metadata.inputs.iter().enumerate() {
        let size = element_bytes(&input.datatype).ok_or_else(|| RecordError::Model {
            format: "raw",
            expected: "inputs of numbers",
            got: described(metadata),
        })?;
        let last = at + 1 == metadata.inputs.len();
        // Where a size is open, the last input takes what is left.
        let elements = match elements(input) {
            Some(elements) => elements,
            None if last => rest / size,
            None => {
                return Err(RecordError::Model {
                    format: "raw",
                    expected: "fixed sizes in all inputs but the last",
                    got: described(metadata),
                });
            }
        };
        let bytes = elements.saturating_mul(size);
        if bytes > rest || (last && bytes != rest) {
            return Err(RecordError::Input {
                input: input.name.clone(),
                expected: format!("{bytes} bytes ({} {:?})", input.datatype, input.shape),
                got: format!("{rest} bytes"),
            });
        }
        rest -= bytes;
        inputs.push(binary(input, &shape(input, elements)?, bytes));
    }
    Ok(with_binary(id, &inputs, payload))
}

/// `None` where a size is open.
fn elements(input: &Input) -> Option<usize> {
    input.shape.iter().try_fold(1_usize, |n, size| {
        n.checked_mul(usize::try_from(*size).ok()?)
    })
}

fn from_bytes(payload: &[u8], id: &str, metadata: &Metadata) -> Result<Request, RecordError> {
    let input = only_input("bytes", "one BYTES input of one element", metadata)?;
    let (fits, length) = (shape(input, 1), u32::try_from(payload.len()));
    let (true, Ok(shape), Ok(length)) = (input.datatype == "BYTES", fits, length) else {
        return Err(RecordError::Model {
            format: "bytes",
            expected: "one BYTES input of one element",
            got: described(metadata),
        });
    };
    // The binary tensor data extension writes an element's length before it.
    let element = [&length.to_le_bytes()[..], payload].concat();
    let inputs = [binary(input, &shape, element.len())];
    Ok(with_binary(id, &inputs, &element))
}

fn binary(input: &Input, shape: &[u64], bytes: usize) -> Value {
    json!({
        "name": input.name,
        "datatype": input.datatype,
        "shape": shape,
        "parameters": { "binary_data_size": bytes },
    })
}

fn with_binary(id: &str, inputs: &[Value], data: &[u8]) -> Request {
    let Request { mut body, .. } = of_inputs(id, inputs);
    let json_bytes = Some(body.len());
    body.extend_from_slice(data);
    Request { body, json_bytes }
}

fn of_inputs(id: &str, inputs: &[Value]) -> Request {
    plain(&json!({ "id": short(id), "inputs": inputs }))
}

fn plain(value: &Value) -> Request {
    Request {
        body: value.to_string().into_bytes(),
        json_bytes: None,
    }
}

/// The result of a record: the protocol's answer on one line.
///
/// # Errors
/// The answer is none.
pub fn result(answer: &[u8]) -> Result<Vec<u8>, RecordError> {
    let wrong = |got: String| RecordError::Payload {
        expected: "an answer of the inference API".to_owned(),
        got,
    };
    let value: Value = serde_json::from_slice(answer).map_err(|e| wrong(e.to_string()))?;
    if value
        .get("outputs")
        .is_none_or(|outputs| !outputs.is_array())
    {
        return Err(wrong("an object without outputs".to_owned()));
    }
    // As it came, if it can be: no number is written anew.
    if answer.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
        return Ok(value.to_string().into_bytes());
    }
    Ok(answer.to_vec())
}

fn only_input<'a>(
    format: &'static str,
    expected: &'static str,
    metadata: &'a Metadata,
) -> Result<&'a Input, RecordError> {
    match metadata.inputs.as_slice() {
        [input] => Ok(input),
        _ => Err(RecordError::Model {
            format,
            expected,
            got: described(metadata),
        }),
    }
}

fn missing(input: &Input) -> RecordError {
    RecordError::Input {
        input: input.name.clone(),
        expected: format!("{} {:?}", input.datatype, input.shape),
        got: "nothing of that name".to_owned(),
    }
}

fn described(metadata: &Metadata) -> String {
    let inputs = metadata.inputs.iter();
    let inputs = inputs.map(|i| format!("{:?} {} {:?}", i.name, i.datatype, i.shape));
    inputs.collect::<Vec<_>>().join(", ")
}

fn names(metadata: &Metadata) -> String {
    let names = metadata.inputs.iter().map(|i| format!("{:?}", i.name));
    names.collect::<Vec<_>>().join(", ")
}

/// An id that the API takes: its end, which tells records of one source apart.
fn short(id: &str) -> String {
    let mut from = id.len().saturating_sub(ID_MAX_BYTES);
    while !id.is_char_boundary(from) {
        from += 1;
    }
    id[from..].to_owned()
}

/// Foreign text, short enough for a message.
fn cut(text: &str) -> String {
    text.chars().take(40).collect()
}
