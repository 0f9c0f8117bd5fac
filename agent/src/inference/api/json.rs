//! The JSON of an inference request and its answer, and the binary tensors behind it.

use super::given::{Data, Given, RANK_MAX, TENSORS_MAX, find_output, fit, quoted};
use super::object::Object;
use super::signature::Signature;
use super::{ApiError, ID_MAX_BYTES, binary};
use crate::inference::steps::Shaped;
use crate::inference::tensor::{Values, describe};
use dunlin_protocol::bundle::DType;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

/// Longest `parameters` object, in bytes of JSON.
const PARAMETERS_MAX_BYTES: usize = 4096;
/// Whether outputs come in binary if the request says nothing of one; a parameter of the protocol's.
const BINARY_OUTPUT: &str = "binary_data_output";
/// Bytes of an answer's JSON for all that is no data: names, types and shapes.
const ANSWER_HEAD_BYTES: usize = 512;

/// A list that is refused as soon as it is longer than `MAX`.
struct AtMost<T, const MAX: usize>(Vec<T>);

impl<T, const MAX: usize> Default for AtMost<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for AtMost<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T, const MAX: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Items<T, MAX> {
            type Value = Vec<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MAX}")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    if list.len() == MAX {
                        return Err(serde::de::Error::custom(format_args!(
                            "a list of more than {MAX}"
                        )));
                    }
                    list.push(item);
                }
                Ok(list)
            }
        }
        deserializer
            .deserialize_seq(Items::<T, MAX>(PhantomData))
            .map(Self)
    }
}

#[derive(Deserialize)]
struct RawRequest<'a> {
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    parameters: Option<&'a RawValue>,
    #[serde(borrow)]
    inputs: AtMost<Object<RawInput<'a>>, TENSORS_MAX>,
    #[serde(borrow, default)]
    outputs: Option<AtMost<Object<RawOutput<'a>>, TENSORS_MAX>>,
}

#[derive(Deserialize)]
struct RawInput<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    datatype: Cow<'a, str>,
    shape: AtMost<u64, RANK_MAX>,
    #[serde(borrow, default)]
    parameters: Option<&'a RawValue>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct RawOutput<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow, default)]
    parameters: Option<&'a RawValue>,
}

/// Parameters of a tensor that mean something to the server; others are allowed and mean nothing.
#[derive(Deserialize, Default)]
struct TensorParameters {
    #[serde(default)]
    binary_data_size: Option<u64>,
    #[serde(default)]
    binary_data: Option<bool>,
    #[serde(default)]
    classification: Option<u64>,
    #[serde(default)]
    shared_memory_region: Option<serde::de::IgnoredAny>,
}

/// An output that the client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Its index among the model's outputs.
    pub(crate) index: usize,
    /// In binary, behind the JSON.
    pub(crate) binary: bool,
}

/// A request that fits its model.
#[derive(Debug, PartialEq)]
pub(crate) struct InferRequest {
    /// The client's name for it.
    pub(crate) id: Option<String>,
    /// The client's parameters, given back as they came; the protocol's own are taken out.
    pub(crate) parameters: Option<Map<String, Value>>,
    /// One value list an input, in the model's order.
    pub(crate) inputs: Vec<Values>,
    /// Outputs to give, in the client's order; all if it named none.
    pub(crate) outputs: Vec<Wanted>,
}

impl InferRequest {
    /// Reads a request's body. `json_bytes` is what `Inference-Header-Content-Length` says: the JSON is
    /// that long, and binary tensors follow; without it all of the body is JSON, and if it is zero, all
    /// of it is the one input's values.
    pub(crate) fn parse(
        body: &[u8],
        json_bytes: Option<usize>,
        signature: &Signature<'_>,
    ) -> Result<Self, ApiError> {
        if json_bytes == Some(0) {
            return Self::of_raw_body(body, signature);
        }
        let json_bytes = json_bytes.unwrap_or(body.len());
        let Some((json, tail)) = body.split_at_checked(json_bytes) else {
            return Err(ApiError::bad(format!(
                "Inference-Header-Content-Length is {json_bytes}, yet the body has {} bytes",
                body.len()
            )));
        };
        let raw: Object<RawRequest<'_>> =
            serde_json::from_slice(json).map_err(|e| not_json(json, &e))?;
        let raw = raw.0;
        if raw.id.as_ref().is_some_and(|id| id.len() > ID_MAX_BYTES) {
            return Err(ApiError::bad(format!(
                "id: at most {ID_MAX_BYTES} bytes are accepted"
            )));
        }
        let (parameters, binary) = request_parameters(raw.parameters)?;
        let given = given(raw.inputs.0, tail)?;
        Ok(Self {
            id: raw.id.map(Cow::into_owned),
            parameters,
            inputs: fit(signature, &given)?,
            outputs: wanted(raw.outputs.unwrap_or_default().0, binary, signature)?,
        })
    }

    /// A body without JSON: the values of the only input, or its only element if that is of `BYTES`; every
    /// output is given in binary.
    fn of_raw_body(body: &[u8], signature: &Signature<'_>) -> Result<Self, ApiError> {
        let [input] = signature.inputs else {
            return Err(ApiError::bad(format!(
                "Inference-Header-Content-Length is 0, which only a model with one input allows; this one has {}",
                signature.inputs.len()
            )));
        };
        let spec = &input.spec;
        let values = if spec.dtype == DType::BYTES && spec.elements() == 1 {
            Ok(Values::BYTES(vec![body.to_vec()]))
        } else {
            binary::read(spec, body)
        };
        let values =
            values.map_err(|e| ApiError::bad(format!("data of input {}: {e}", describe(spec))))?;
        Ok(Self {
            id: None,
            parameters: None,
            inputs: vec![values],
            outputs: all(signature, true),
        })
    }
}

fn all(signature: &Signature<'_>, binary: bool) -> Vec<Wanted> {
    let indices = 0..signature.outputs.len();
    indices.map(|index| Wanted { index, binary }).collect()
}

/// What JSON forbids and Python writes all the same is named.
fn not_json(json: &[u8], error: &serde_json::Error) -> ApiError {
    let line = json
        .split(|b| *b == b'\n')
        .nth(error.line().wrapping_sub(1));
    let at = error.column().saturating_sub(2);
    let near = line
        .and_then(|l| l.get(at..))
        .map(|l| &l[..l.len().min(12)]);
    let odd = |word: &[u8]| near.is_some_and(|n| n.windows(word.len()).any(|w| w == word));
    let hint = if odd(b"NaN") || odd(b"nfinity") {
        "; JSON has no NaN and no infinity, the binary form has"
    } else {
        ""
    };
    ApiError::bad(format!(
        "the body is not an inference request: {error}{hint}"
    ))
}

/// Takes the binary tensors off the tail, in the order of the inputs.
fn given<'a>(
    inputs: Vec<Object<RawInput<'a>>>,
    mut tail: &'a [u8],
) -> Result<Vec<Given<'a>>, ApiError> {
    let mut list = Vec::with_capacity(inputs.len());
    for Object(input) in inputs {
        let parameters = tensor_parameters("input", &input.name, input.parameters)?;
        let data = match (parameters.binary_data_size, input.data) {
            (Some(_), Some(_)) => {
                return Err(ApiError::bad(format!(
                    "input {} has both data and binary_data_size",
                    quoted(&input.name)
                )));
            }
            (None, Some(json)) => Data::Json(json.get()),
            (None, None) => Data::Absent,
            (Some(size), None) => {
                let size = usize::try_from(size).unwrap_or(usize::MAX);
                let Some((bytes, rest)) = tail.split_at_checked(size) else {
                    return Err(ApiError::bad(format!(
                        "input {}: binary_data_size is {size}, yet {} bytes are left of the body",
                        quoted(&input.name),
                        tail.len()
                    )));
                };
                tail = rest;
                Data::Binary(bytes)
            }
        };
        list.push(Given {
            name: input.name,
            datatype: input.datatype,
            shape: input.shape.0,
            data,
        });
    }
    if tail.is_empty() {
        return Ok(list);
    }
    Err(ApiError::bad(format!(
        "{} bytes behind the JSON belong to no input (binary_data_size says which do)",
        tail.len()
    )))
}

fn wanted(
    outputs: Vec<Object<RawOutput<'_>>>,
    binary: bool,
    signature: &Signature<'_>,
) -> Result<Vec<Wanted>, ApiError> {
    if outputs.is_empty() {
        return Ok(all(signature, binary));
    }
    let mut list: Vec<Wanted> = Vec::with_capacity(outputs.len());
    for Object(output) in outputs {
        let parameters = tensor_parameters("output", &output.name, output.parameters)?;
        let taken = list.iter().map(|w| w.index);
        list.push(Wanted {
            index: find_output(signature, &output.name, taken)?,
            binary: parameters.binary_data.unwrap_or(binary),
        });
    }
    Ok(list)
}

/// The client's parameters, and whether outputs are in binary unless it says otherwise.
fn request_parameters(
    raw: Option<&RawValue>,
) -> Result<(Option<Map<String, Value>>, bool), ApiError> {
    let map: Option<Map<String, Value>> = object("parameters", raw)?;
    let Some(mut map) = map else {
        return Ok((None, false));
    };
    let binary = match map.remove(BINARY_OUTPUT) {
        None => false,
        Some(Value::Bool(binary)) => binary,
        Some(_) => {
            let message = format!("parameters: {BINARY_OUTPUT}: expected true or false");
            return Err(ApiError::bad(message));
        }
    };
    Ok(((!map.is_empty()).then_some(map), binary))
}

fn tensor_parameters(
    kind: &str,
    name: &str,
    raw: Option<&RawValue>,
) -> Result<TensorParameters, ApiError> {
    let what = || format!("parameters of {kind} {}", quoted(name));
    if raw.is_none() {
        return Ok(TensorParameters::default());
    }
    let parameters: TensorParameters = object(&what(), raw)?.unwrap_or_default();
    let absent = if parameters.shared_memory_region.is_some() {
        "shared_memory_region: the shared memory extensions"
    } else if parameters.classification.is_some_and(|n| n > 0) {
        "classification: the classification extension"
    } else {
        return Ok(parameters);
    };
    let message = format!("{}: {absent} are not supported", what());
    Err(ApiError::bad(
        message.replace("extension are", "extension is"),
    ))
}

/// An object of bounded length, or null.
fn object<'a, T: Deserialize<'a>>(
    what: &str,
    raw: Option<&'a RawValue>,
) -> Result<Option<T>, ApiError> {
    let Some(raw) = raw else { return Ok(None) };
    let raw = raw.get();
    if raw.len() > PARAMETERS_MAX_BYTES {
        let got = raw.len();
        return Err(ApiError::bad(format!(
            "{what}: {got} bytes, at most {PARAMETERS_MAX_BYTES} are accepted"
        )));
    }
    if !raw.starts_with('{') && raw != "null" {
        return Err(ApiError::bad(format!("{what}: expected an object")));
    }
    serde_json::from_str(raw).map_err(|e| ApiError::bad(format!("{what}: {e}")))
}

#[derive(Serialize)]
struct RawAnswer<'a> {
    model_name: &'a str,
    model_version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<&'a Map<String, Value>>,
    outputs: Vec<RawAnswerOutput<'a>>,
}

#[derive(Serialize)]
struct RawAnswerOutput<'a> {
    name: &'a str,
    datatype: &'static str,
    shape: &'a [usize],
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<BinarySize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a Values>,
}

#[derive(Serialize)]
struct BinarySize {
    binary_data_size: usize,
}

/// The body of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rendered {
    /// JSON, and behind it the binary tensors.
    pub(crate) body: Vec<u8>,
    /// How long the JSON is if binary tensors follow.
    pub(crate) json_bytes: Option<usize>,
}

/// Renders an answer; `outputs` are all of the model's, in its order. In JSON, NaN and ±∞, which it
/// cannot hold, are `null`.
pub(crate) fn answer(
    signature: &Signature<'_>,
    request: &InferRequest,
    outputs: &[Shaped],
) -> Result<Rendered, ApiError> {
    let wanted = request.outputs.iter().filter_map(|wanted| {
        let declared = signature.outputs.get(wanted.index)?;
        Some((declared, outputs.get(wanted.index)?, wanted.binary))
    });
    let tail: usize = wanted
        .clone()
        .filter(|(.., binary)| *binary)
        .map(|(_, output, _)| binary::length(&output.values))
        .sum();
    let listed = wanted
        .clone()
        .map(|(declared, output, binary)| RawAnswerOutput {
            name: &declared.name,
            datatype: output.values.dtype().as_str(),
            shape: &output.shape,
            parameters: binary.then(|| BinarySize {
                binary_data_size: binary::length(&output.values),
            }),
            data: (!binary).then_some(&output.values),
        });
    let answer = RawAnswer {
        model_name: signature.name,
        model_version: signature.version.to_string(),
        id: request.id.as_deref(),
        parameters: request.parameters.as_ref(),
        outputs: listed.collect(),
    };
    let mut body = Vec::with_capacity(tail.saturating_add(ANSWER_HEAD_BYTES));
    serde_json::to_writer(&mut body, &answer)
        .map_err(|e| ApiError::internal(format!("answer: {e}")))?;
    let json_bytes = body.len();
    let mut any_binary = false;
    for (_, output, _) in wanted.filter(|(.., binary)| *binary) {
        binary::write(&output.values, &mut body);
        any_binary = true;
    }
    Ok(Rendered {
        body,
        json_bytes: any_binary.then_some(json_bytes),
    })
}

#[cfg(test)]
#[path = "json_tests.rs"]
mod tests;
