//! The messages themselves, by the numbers of their fields.

use super::contents;
use super::wire::{Field, Fields, Held, Message, WireError, number};
use crate::inference::api::given::{
    Data, Given, RANK_MAX, TENSORS_MAX, find_output, fit, listed, quoted,
};
use crate::inference::api::signature::Signature;
use crate::inference::api::{ApiError, ID_MAX_BYTES, binary, metadata};
use crate::inference::statistics::{Duration, Snapshot};
use crate::inference::steps::Shaped;
use crate::inference::tensor::Values;
use dunlin_protocol::bundle::flow::Output;
use dunlin_protocol::bundle::{DType, Dim};
use serde_json::{Map, Value};
use std::borrow::Cow;

/// Most bytes of a request's parameters.
const PARAMETERS_MAX_BYTES: usize = 4096;

fn malformed(what: &str) -> impl Fn(WireError) -> ApiError + '_ {
    move |e| ApiError::bad(format!("{what}: {e}"))
}

/// A model that a message names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Named<'a> {
    /// Family.
    pub(crate) name: &'a str,
    /// Version; none is any.
    pub(crate) version: Option<&'a str>,
}

impl<'a> Named<'a> {
    /// Reads `name` and `version` from fields of these numbers; others are skipped.
    pub(crate) fn read(message: &'a [u8], name: u64, version: u64) -> Result<Self, ApiError> {
        let mut named = Self::default();
        for field in Fields::of(message) {
            let field = field.map_err(malformed("request"))?;
            let text = || field.text().map_err(malformed("request"));
            if field.number == name {
                named.name = text()?;
            } else if field.number == version {
                named.version = Some(text()?).filter(|v| !v.is_empty());
            }
        }
        Ok(named)
    }
}

/// A request that fits its model.
#[derive(Debug, PartialEq)]
pub(crate) struct InferRequest {
    id: String,
    /// The client's parameters as fields of the answer.
    parameters: Vec<u8>,
    /// The same by name, as far as they are booleans, whole numbers or texts.
    pub(crate) named: Map<String, Value>,
    /// One value list an input, in the model's order.
    pub(crate) inputs: Vec<Values>,
    /// Indices of the outputs to give.
    outputs: Vec<usize>,
    /// Whether the answer's contents are raw, as the request's were.
    raw: bool,
}

/// An input tensor whose raw contents, if it has such, come later in the message.
struct Input<'a> {
    name: &'a str,
    datatype: &'a str,
    shape: Vec<u64>,
    contents: Option<&'a [u8]>,
}

impl InferRequest {
    /// Reads a `ModelInferRequest`.
    pub(crate) fn parse(message: &[u8], signature: &Signature<'_>) -> Result<Self, ApiError> {
        let wrong = malformed("the message is not an inference request");
        let (mut id, mut parameters) = ("", Message::default());
        let mut named = Map::new();
        let (mut inputs, mut raws, mut outputs) = (Vec::new(), Vec::new(), Vec::new());
        for field in Fields::of(message) {
            let field = field.map_err(&wrong)?;
            match field.number {
                3 => id = field.text().map_err(&wrong)?,
                4 => {
                    let entry = field.bytes().map_err(&wrong)?;
                    let (name, value) = parameter(entry).map_err(&wrong)?;
                    named.insert(name.to_owned(), value);
                    parameters.bytes(4, entry);
                }
                5 => at_most(
                    "inputs",
                    &mut inputs,
                    input(field.bytes().map_err(&wrong)?)?,
                )?,
                6 => {
                    let name = output(field.bytes().map_err(&wrong)?)?;
                    let taken = outputs.iter().copied();
                    outputs.push(find_output(signature, name, taken)?);
                }
                7 => {
                    let bytes = field.bytes().map_err(&wrong)?;
                    at_most("raw_input_contents", &mut raws, bytes)?;
                }
                _ => {}
            }
            if parameters.len() > PARAMETERS_MAX_BYTES {
                return Err(ApiError::bad(format!(
                    "parameters: at most {PARAMETERS_MAX_BYTES} bytes are accepted"
                )));
            }
        }
        if id.len() > ID_MAX_BYTES {
            return Err(ApiError::bad(format!(
                "id: at most {ID_MAX_BYTES} bytes are accepted"
            )));
        }
        if outputs.is_empty() {
            outputs = (0..signature.outputs.len()).collect();
        }
        Ok(Self {
            id: id.to_owned(),
            parameters: parameters.into_bytes(),
            named,
            raw: !raws.is_empty(),
            inputs: fit(signature, &given(inputs, &raws)?)?,
            outputs,
        })
    }
}

fn at_most<T>(what: &str, list: &mut Vec<T>, item: T) -> Result<(), ApiError> {
    if list.len() == TENSORS_MAX {
        return Err(ApiError::bad(format!("{what}: more than {TENSORS_MAX}")));
    }
    list.push(item);
    Ok(())
}

/// Name and value of an entry of a map of parameters; a value of another kind is null.
fn parameter(entry: &[u8]) -> Result<(&str, Value), WireError> {
    let (mut name, mut value) = ("", Value::Null);
    for field in Fields::of(entry) {
        let field = field?;
        match field.number {
            1 => name = field.text()?,
            2 => {
                for choice in Fields::of(field.bytes()?) {
                    let choice = choice?;
                    value = match (choice.number, choice.held) {
                        (1, Held::Number(n)) => Value::Bool(n != 0),
                        (2, Held::Number(n)) => n.cast_signed().into(),
                        (3, Held::Bytes(_)) => choice.text()?.into(),
                        (5, Held::Number(n)) => n.into(),
                        _ => Value::Null,
                    };
                }
            }
            _ => {}
        }
    }
    Ok((name, value))
}

/// Parameters of a tensor that ask for what is not there.
fn check_tensor_parameter(entry: Field<'_>) -> Result<(), ApiError> {
    let wrong = malformed("parameters of a tensor");
    let (name, _) = parameter(entry.bytes().map_err(&wrong)?).map_err(&wrong)?;
    if name.starts_with("shared_memory_") || name == "classification" {
        return Err(ApiError::bad(format!(
            "parameters of a tensor: {name}: that extension is not supported"
        )));
    }
    Ok(())
}

fn input(message: &[u8]) -> Result<Input<'_>, ApiError> {
    let wrong = malformed("an input");
    let mut input = Input {
        name: "",
        datatype: "",
        shape: Vec::new(),
        contents: None,
    };
    for field in Fields::of(message) {
        let field = field.map_err(&wrong)?;
        match field.number {
            1 => input.name = field.text().map_err(&wrong)?,
            2 => input.datatype = field.text().map_err(&wrong)?,
            3 => dimensions(field, &mut input.shape)?,
            4 => check_tensor_parameter(field)?,
            5 => input.contents = Some(field.bytes().map_err(&wrong)?),
            _ => {}
        }
    }
    Ok(input)
}

/// A negative dimension becomes a huge one, which no tensor has.
fn dimensions(field: Field<'_>, shape: &mut Vec<u64>) -> Result<(), ApiError> {
    let wrong = malformed("shape of an input");
    let mut add = |dimension| {
        if shape.len() == RANK_MAX {
            return Err(ApiError::bad(format!(
                "shape of an input: more than {RANK_MAX} dimensions"
            )));
        }
        shape.push(dimension);
        Ok(())
    };
    match field.held {
        Held::Number(one) => add(one),
        Held::Bytes(mut packed) => {
            while !packed.is_empty() {
                add(number(&mut packed).map_err(&wrong)?)?;
            }
            Ok(())
        }
        _ => Err(wrong(WireError::Type(field.number))),
    }
}

fn output(message: &[u8]) -> Result<&str, ApiError> {
    let wrong = malformed("an output");
    let mut name = "";
    for field in Fields::of(message) {
        let field = field.map_err(&wrong)?;
        match field.number {
            1 => name = field.text().map_err(&wrong)?,
            2 => check_tensor_parameter(field)?,
            _ => {}
        }
    }
    Ok(name)
}

/// Raw contents belong to the inputs in their order, and there is one for each or none.
fn given<'a>(inputs: Vec<Input<'a>>, raws: &[&'a [u8]]) -> Result<Vec<Given<'a>>, ApiError> {
    if !raws.is_empty() && raws.len() != inputs.len() {
        return Err(ApiError::bad(format!(
            "raw_input_contents: expected one for each of {} inputs, got {}",
            inputs.len(),
            raws.len()
        )));
    }
    let each = inputs.into_iter().enumerate().map(|(at, input)| {
        let data = match (raws.get(at), input.contents) {
            (Some(_), Some(_)) => {
                return Err(ApiError::bad(format!(
                    "input {} has both contents and raw_input_contents",
                    quoted(input.name)
                )));
            }
            (Some(raw), None) => Data::Binary(raw),
            (None, Some(contents)) => Data::Typed(contents),
            (None, None) => Data::Absent,
        };
        Ok(Given {
            name: Cow::Borrowed(input.name),
            datatype: Cow::Borrowed(input.datatype),
            shape: input.shape,
            data,
        })
    });
    each.collect()
}

/// A `ModelInferResponse`; `outputs` are all of the model's, in its order.
pub(crate) fn answer(
    signature: &Signature<'_>,
    request: &InferRequest,
    outputs: &[Shaped],
) -> Message {
    let wanted = request.outputs.iter().filter_map(|&at| {
        let declared = signature.outputs.get(at)?;
        Some((declared, outputs.get(at)?))
    });
    // Raw as well if one of them could not be given otherwise: it is all or none.
    let typed: Option<Vec<Message>> = match request.raw {
        true => None,
        false => wanted
            .clone()
            .map(|(_, o)| contents::write(&o.values))
            .collect(),
    };
    let bytes: usize = wanted.clone().map(|(_, o)| binary::length(&o.values)).sum();
    let mut answer = Message::with_capacity(bytes.saturating_add(512));
    answer.text(1, signature.name);
    answer.text(2, &signature.version.to_string());
    answer.text(3, &request.id);
    answer.fields(&request.parameters);
    for (at, (declared, given)) in wanted.clone().enumerate() {
        let mut output = tensor(&declared.name, given.values.dtype(), fixed(&given.shape));
        if let Some(contents) = typed.as_ref().and_then(|all| all.get(at)) {
            output.message(5, contents);
        }
        answer.message(5, &output);
    }
    if typed.is_none() {
        for (_, Shaped { values, .. }) in wanted {
            answer.bytes_of(6, binary::length(values), |to| binary::write(values, to));
        }
    }
    answer
}

/// Name, type and shape of a tensor.
fn tensor(name: &str, dtype: DType, shape: impl Iterator<Item = Dim>) -> Message {
    let mut tensor = Message::default();
    tensor.text(1, name);
    tensor.text(2, dtype.as_str());
    tensor.numbers(3, shape.map(|d| d.on_the_wire().cast_unsigned()));
    tensor
}

fn fixed(shape: &[usize]) -> impl Iterator<Item = Dim> {
    shape.iter().map(|n| Dim::Fixed(*n))
}

/// A `ServerMetadataResponse`.
pub(crate) fn server_metadata() -> Message {
    let mut answer = Message::default();
    answer.text(1, metadata::SERVER);
    answer.text(2, crate::VERSION);
    for extension in metadata::EXTENSIONS {
        answer.text(3, extension);
    }
    answer
}

/// A `ModelMetadataResponse`.
pub(crate) fn model_metadata(signature: &Signature<'_>) -> Message {
    let mut answer = Message::default();
    answer.text(1, signature.name);
    answer.text(2, &signature.version.to_string());
    answer.text(3, metadata::PLATFORM);
    for input in signature.inputs {
        let spec = &input.spec;
        answer.message(4, &tensor(&spec.name, spec.dtype, fixed(&spec.shape)));
    }
    for Output { name, of, .. } in signature.outputs {
        answer.message(5, &tensor(name, of.dtype, of.shape.iter().copied()));
    }
    answer
}

/// Adds a model to a `RepositoryIndexResponse`.
pub(crate) fn add_to_index(answer: &mut Message, signature: &Signature<'_>) {
    let mut entry = Message::default();
    entry.text(1, signature.name);
    entry.text(2, &signature.version.to_string());
    entry.text(3, "READY");
    answer.message(1, &entry);
}

/// Adds a model to a `ModelStatisticsResponse`.
pub(crate) fn add_statistics(answer: &mut Message, signature: &Signature<'_>, seen: &Snapshot) {
    let duration = |to: &mut Message, field, duration: &Duration| {
        let mut message = Message::default();
        message.number(1, duration.count);
        message.number(2, duration.ns);
        to.message(field, &message);
    };
    let mut inference = Message::default();
    duration(&mut inference, 1, &seen.success);
    duration(&mut inference, 2, &seen.fail);
    duration(&mut inference, 3, &seen.queue);
    duration(&mut inference, 4, &seen.compute_input);
    duration(&mut inference, 5, &seen.compute_infer);
    duration(&mut inference, 6, &seen.compute_output);
    let mut batch = Message::default();
    batch.number(1, 1_u64);
    duration(&mut batch, 2, &seen.compute_input);
    duration(&mut batch, 3, &seen.compute_infer);
    duration(&mut batch, 4, &seen.compute_output);
    let mut model = Message::default();
    model.text(1, signature.name);
    model.text(2, &signature.version.to_string());
    model.number(3, seen.last_inference_ms);
    model.number(4, seen.success.count);
    model.number(5, seen.success.count);
    model.message(6, &inference);
    model.message(7, &batch);
    answer.message(1, &model);
}

/// What a model takes, for errors of requests that are too long for it.
pub(crate) fn too_long(signature: &Signature<'_>, max_bytes: usize, got: usize) -> ApiError {
    ApiError::new(
        http::StatusCode::PAYLOAD_TOO_LARGE,
        format!(
            "the message has {got} bytes, at most {max_bytes} are accepted for {}",
            listed(signature.inputs)
        ),
    )
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
