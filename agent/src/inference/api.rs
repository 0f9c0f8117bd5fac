//! The JSON of the Open Inference Protocol v2
//! (<https://github.com/open-inference/open-inference-protocol>), and nothing but it: values in, values out.

use super::steps::Shaped;
use super::tensor::{Values, describe};
use dunlin_protocol::bundle::flow::Input;
use dunlin_protocol::bundle::{DType, Flow, Manifest};
use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::borrow::Cow;

/// Longest request `id`, in bytes.
const ID_MAX_BYTES: usize = 256;
/// Longest `parameters` object, in bytes of JSON.
const PARAMETERS_MAX_BYTES: usize = 4096;
/// JSON bytes allowed for one element: a 64-bit float takes 24, the rest is for indentation.
const ELEMENT_MAX_BYTES: usize = 64;
/// JSON bytes allowed for all that is not data.
const REQUEST_HEAD_MAX_BYTES: usize = 64 * 1024;

/// An answer that is no answer: `{"error": …}`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {message}")]
pub(crate) struct ApiError {
    /// HTTP status.
    pub(crate) status: StatusCode,
    /// What, where, expected and got.
    pub(crate) message: String,
    /// The method that would have been right, if that was wrong.
    pub(crate) allow: Option<&'static str>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            allow: None,
        }
    }

    fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn body(&self) -> Vec<u8> {
        json!({ "error": self.message }).to_string().into_bytes()
    }
}

/// What a request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// `GET /v2`.
    Server,
    /// `GET /v2/health/live`.
    Live,
    /// `GET /v2/health/ready`.
    Ready,
    /// Something about a model.
    Model {
        /// Family.
        name: String,
        /// Version, if the path names one.
        version: Option<String>,
        /// What about it.
        ask: ModelAsk,
    },
}

/// What is asked about a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ModelAsk {
    /// `GET …`.
    Metadata,
    /// `GET …/ready`.
    Ready,
    /// `POST …/infer`.
    Infer,
}

/// Finds the route of a request.
pub(crate) fn route(method: &Method, path: &str) -> Result<Route, ApiError> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let model = |name: &str, version: Option<&str>, ask| Route::Model {
        name: name.to_owned(),
        version: version.map(str::to_owned),
        ask,
    };
    let ask = |last: &str| match last {
        "ready" => Some(ModelAsk::Ready),
        "infer" => Some(ModelAsk::Infer),
        _ => None,
    };
    let found = match parts.as_slice() {
        ["v2"] => Some(Route::Server),
        ["v2", "health", "live"] => Some(Route::Live),
        ["v2", "health", "ready"] => Some(Route::Ready),
        ["v2", "models", name] => Some(model(name, None, ModelAsk::Metadata)),
        ["v2", "models", name, "versions", v] => Some(model(name, Some(v), ModelAsk::Metadata)),
        ["v2", "models", name, last] => ask(last).map(|ask| model(name, None, ask)),
        ["v2", "models", name, "versions", v, last] => {
            ask(last).map(|ask| model(name, Some(v), ask))
        }
        _ => None,
    };
    let found = found.ok_or_else(|| {
        ApiError::new(
            StatusCode::NOT_FOUND,
            format!("no such path: {path:?}; see the Open Inference Protocol v2, /v2/…"),
        )
    })?;
    let infer = matches!(
        found,
        Route::Model {
            ask: ModelAsk::Infer,
            ..
        }
    );
    let expected = if infer { "POST" } else { "GET" };
    if method.as_str() == expected {
        return Ok(found);
    }
    let message = format!("{path}: expected {expected}, got {method}");
    Err(ApiError {
        allow: Some(expected),
        ..ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message)
    })
}

/// Most bytes that an honest request to this model needs.
pub(crate) fn request_max_bytes(flow: &Flow) -> usize {
    flow.inputs.iter().fold(REQUEST_HEAD_MAX_BYTES, |n, input| {
        // Base64 writes 3 bytes as 4, a text each byte as up to 6.
        let written = input
            .bytes_max
            .saturating_mul(if input.base64 { 2 } else { 6 });
        let element = written.saturating_add(ELEMENT_MAX_BYTES);
        n.saturating_add(input.spec.elements().saturating_mul(element))
    })
}

#[derive(Deserialize)]
struct RawRequest<'a> {
    #[serde(default)]
    id: Option<String>,
    #[serde(borrow, default)]
    parameters: Option<&'a RawValue>,
    #[serde(borrow)]
    inputs: Vec<RawInput<'a>>,
    #[serde(borrow, default)]
    outputs: Vec<RawOutput<'a>>,
}

#[derive(Deserialize)]
struct RawInput<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    datatype: Cow<'a, str>,
    shape: Vec<u64>,
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

/// A request that fits its model.
#[derive(Debug, PartialEq)]
pub(crate) struct InferRequest {
    /// The client's name for it.
    pub(crate) id: Option<String>,
    /// The client's parameters; given back as they came.
    pub(crate) parameters: Option<Map<String, Value>>,
    /// One value list an input, in the manifest's order.
    pub(crate) inputs: Vec<Values>,
    /// Indices of the outputs to give; all if the client named none.
    pub(crate) outputs: Vec<usize>,
}

impl InferRequest {
    /// Reads a request's body against the manifest.
    pub(crate) fn parse(body: &[u8], flow: &Flow) -> Result<Self, ApiError> {
        let raw: RawRequest<'_> = serde_json::from_slice(body)
            .map_err(|e| ApiError::bad(format!("the body is not an inference request: {e}")))?;
        if raw.id.as_ref().is_some_and(|id| id.len() > ID_MAX_BYTES) {
            return Err(ApiError::bad(format!(
                "id: at most {ID_MAX_BYTES} bytes are accepted"
            )));
        }
        let parameters = parameters("parameters", raw.parameters)?;
        if let Some(stranger) = raw
            .inputs
            .iter()
            .find(|i| flow.inputs.iter().all(|s| s.spec.name != i.name))
        {
            return Err(ApiError::bad(format!(
                "input {:?} is unknown; expected {}",
                stranger.name,
                listed(&flow.inputs)
            )));
        }
        let inputs = flow
            .inputs
            .iter()
            .map(|input| read_input(input, &raw.inputs))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            id: raw.id,
            parameters,
            inputs,
            outputs: wanted_outputs(&raw.outputs, flow)?,
        })
    }
}

fn listed(inputs: &[Input]) -> String {
    let described = inputs.iter().map(|i| describe(&i.spec));
    described.collect::<Vec<_>>().join(", ")
}

fn read_input(expected: &Input, inputs: &[RawInput<'_>]) -> Result<Values, ApiError> {
    let spec = &expected.spec;
    let mut named = inputs.iter().filter(|i| i.name == spec.name);
    let Some(input) = named.next() else {
        return Err(ApiError::bad(format!(
            "an input is missing: expected {}",
            describe(spec)
        )));
    };
    if named.next().is_some() {
        return Err(ApiError::bad(format!(
            "input {:?} is given twice",
            spec.name
        )));
    }
    parameters("an input's parameters", input.parameters)?;
    let shape_fits = input.shape.len() == spec.shape.len()
        && input
            .shape
            .iter()
            .zip(&spec.shape)
            .all(|(&got, &want)| usize::try_from(got) == Ok(want));
    if input.datatype != spec.dtype.as_str() || !shape_fits {
        let shape: Vec<u64> = input.shape.iter().copied().take(16).collect();
        let datatype: String = input.datatype.chars().take(16).collect();
        return Err(ApiError::bad(format!(
            "input: expected {}, got {datatype} {shape:?}",
            describe(spec)
        )));
    }
    let Some(data) = input.data else {
        return Err(ApiError::bad(format!("input {:?} has no data", spec.name)));
    };
    let values = if expected.base64 {
        Values::from_base64_json(spec, data.get())
    } else {
        Values::from_json(spec, data.get())
    };
    values.map_err(|e| ApiError::bad(format!("data of input {}: {e}", describe(spec))))
}

fn wanted_outputs(wanted: &[RawOutput<'_>], flow: &Flow) -> Result<Vec<usize>, ApiError> {
    if wanted.is_empty() {
        return Ok((0..flow.outputs.len()).collect());
    }
    let mut indices = Vec::new();
    for output in wanted {
        parameters("an output's parameters", output.parameters)?;
        let index = flow.outputs.iter().position(|(_, o)| o.name == output.name);
        match index {
            Some(index) if !indices.contains(&index) => indices.push(index),
            Some(_) => {
                return Err(ApiError::bad(format!(
                    "output {:?} is asked for twice",
                    output.name
                )));
            }
            None => {
                let known = flow
                    .outputs
                    .iter()
                    .map(|(_, o)| format!("{:?} {}", o.name, o.of));
                return Err(ApiError::bad(format!(
                    "output {:?} is unknown; the model has {}",
                    output.name,
                    known.collect::<Vec<_>>().join(", ")
                )));
            }
        }
    }
    Ok(indices)
}

/// Reads a `parameters` object; the binary extension is refused, not misread.
fn parameters(what: &str, raw: Option<&RawValue>) -> Result<Option<Map<String, Value>>, ApiError> {
    let Some(raw) = raw else { return Ok(None) };
    if raw.get().len() > PARAMETERS_MAX_BYTES {
        return Err(ApiError::bad(format!(
            "{what}: {} bytes, at most {PARAMETERS_MAX_BYTES} are accepted",
            raw.get().len()
        )));
    }
    let map: Option<Map<String, Value>> = serde_json::from_str(raw.get())
        .map_err(|_| ApiError::bad(format!("{what}: expected an object")))?;
    let binary = map.iter().flatten().find(|(key, value)| {
        key.starts_with("binary_data") && **value != Value::Bool(false) && !value.is_null()
    });
    match binary {
        Some((key, _)) => Err(no_binary(key)),
        None => Ok(map),
    }
}

/// The error for a request that uses the binary tensor extension.
pub(crate) fn no_binary(key: &str) -> ApiError {
    ApiError::bad(format!(
        "{key}: the binary tensor data extension is not supported; send and ask for JSON data"
    ))
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
    data: &'a Values,
}

/// The body of an answer. NaN and ±∞, which JSON cannot hold, are `null`.
pub(crate) fn answer(
    manifest: &Manifest,
    flow: &Flow,
    request: &InferRequest,
    outputs: &[Shaped],
) -> Result<Vec<u8>, ApiError> {
    let wanted = request.outputs.iter().filter_map(|&at| {
        let ((_, declared), got) = (flow.outputs.get(at)?, outputs.get(at)?);
        Some(RawAnswerOutput {
            name: &declared.name,
            datatype: got.values.dtype().as_str(),
            shape: &got.shape,
            data: &got.values,
        })
    });
    let answer = RawAnswer {
        model_name: manifest.family.as_str(),
        model_version: manifest.version.to_string(),
        id: request.id.as_deref(),
        parameters: request.parameters.as_ref(),
        outputs: wanted.collect(),
    };
    serde_json::to_vec(&answer)
        .map_err(|e| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("answer: {e}")))
}

/// The body of a model's metadata.
pub(crate) fn metadata(manifest: &Manifest, flow: &Flow) -> Value {
    let tensor = |name: &str, dtype: DType, shape: Value| json!({ "name": name, "datatype": dtype.as_str(), "shape": shape });
    let inputs = flow.inputs.iter().map(|i| {
        let spec = &i.spec;
        tensor(&spec.name, spec.dtype, json!(spec.shape))
    });
    let outputs = flow.outputs.iter().map(|(_, o)| {
        let shape = o.of.shape.iter().map(|d| d.on_the_wire());
        tensor(&o.name, o.of.dtype, shape.collect())
    });
    json!({
        "name": manifest.family,
        "versions": [manifest.version.to_string()],
        "platform": "onnx",
        "inputs": inputs.collect::<Value>(),
        "outputs": outputs.collect::<Value>(),
    })
}

/// The body of the server's metadata.
pub(crate) fn server_metadata() -> Value {
    json!({ "name": "dunlin", "version": crate::VERSION, "extensions": [] })
}

#[cfg(test)]
#[path = "api_tests.rs"]
mod tests;
