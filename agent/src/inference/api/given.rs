//! Tensors as a request gives them, in whatever form, held against what the model takes.

use super::signature::Signature;
use super::{ApiError, binary};
use crate::inference::tensor::{Values, describe};
use dunlin_protocol::bundle::flow::Input;
use std::borrow::Cow;

/// Most tensors a request may name.
pub(crate) const TENSORS_MAX: usize = 64;
/// Most dimensions a tensor of a request may have.
pub(crate) const RANK_MAX: usize = 16;
/// Characters of a client's text that an error repeats.
const QUOTED_MAX_CHARS: usize = 64;

/// One input tensor of a request.
#[derive(Debug)]
pub(crate) struct Given<'a> {
    /// Its name.
    pub(crate) name: Cow<'a, str>,
    /// Its element type, by the protocol's name.
    pub(crate) datatype: Cow<'a, str>,
    /// Its dimensions, as the client claims them.
    pub(crate) shape: Vec<u64>,
    /// Its values.
    pub(crate) data: Data<'a>,
}

/// The values of a tensor, not looked at yet.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Data<'a> {
    /// There are none.
    Absent,
    /// A JSON array, flat or nested by shape.
    Json(&'a str),
    /// The binary form: little-endian, row-major, nothing in between.
    Binary(&'a [u8]),
    /// gRPC's typed contents: one field of a message for each kind of number.
    #[cfg(feature = "grpc")]
    Typed(&'a [u8]),
}

/// A client's text, cut to what an error repeats.
pub(crate) fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED_MAX_CHARS) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

pub(crate) fn listed(inputs: &[Input]) -> String {
    let described = inputs.iter().map(|i| describe(&i.spec));
    described.collect::<Vec<_>>().join(", ")
}

/// The values of every input of the model, in the model's order.
pub(crate) fn fit(signature: &Signature<'_>, given: &[Given<'_>]) -> Result<Vec<Values>, ApiError> {
    let known = |name: &str| signature.inputs.iter().any(|input| input.spec.name == name);
    if let Some(stranger) = given.iter().find(|g| !known(&g.name)) {
        return Err(ApiError::bad(format!(
            "input {} is unknown; expected {}",
            quoted(&stranger.name),
            listed(signature.inputs)
        )));
    }
    let inputs = signature.inputs.iter();
    inputs.map(|expected| read(expected, given)).collect()
}

fn read(expected: &Input, given: &[Given<'_>]) -> Result<Values, ApiError> {
    let spec = &expected.spec;
    let mut named = given.iter().filter(|g| g.name == spec.name);
    let Some(input) = named.next() else {
        return Err(ApiError::bad(format!(
            "an input is missing: expected {}",
            describe(spec)
        )));
    };
    if named.next().is_some() {
        let message = format!("input {:?} is given twice", spec.name);
        return Err(ApiError::bad(message));
    }
    let dims = spec.shape.iter().zip(&input.shape);
    let shape_fits = input.shape.len() == spec.shape.len()
        && dims
            .clone()
            .all(|(&want, &got)| usize::try_from(got) == Ok(want));
    if input.datatype != spec.dtype.as_str() || !shape_fits {
        return Err(ApiError::bad(format!(
            "input: expected {}, got {} {:?}",
            describe(spec),
            input.datatype.chars().take(16).collect::<String>(),
            input.shape
        )));
    }
    let values = match input.data {
        Data::Absent => Err("there is none".to_owned()),
        Data::Json(json) if expected.base64 => Values::from_base64_json(spec, json),
        Data::Json(json) => Values::from_json(spec, json),
        Data::Binary(bytes) => binary::read(spec, bytes),
        #[cfg(feature = "grpc")]
        Data::Typed(contents) => crate::inference::grpc::contents::read(spec, contents),
    };
    values.map_err(|e| ApiError::bad(format!("data of input {}: {e}", describe(spec))))
}

fn outputs_of(signature: &Signature<'_>) -> String {
    let outputs = signature.outputs.iter();
    let described = outputs.map(|o| format!("{:?} {}", o.name, o.of));
    described.collect::<Vec<_>>().join(", ")
}

/// Which output the model has under this name; `taken` are those asked for already.
pub(crate) fn find_output(
    signature: &Signature<'_>,
    name: &str,
    mut taken: impl Iterator<Item = usize>,
) -> Result<usize, ApiError> {
    let found = signature.outputs.iter().position(|s| s.name == name);
    match found {
        Some(index) if !taken.any(|at| at == index) => Ok(index),
        Some(_) => Err(ApiError::bad(format!(
            "output {} is asked for twice",
            quoted(name)
        ))),
        None => Err(ApiError::bad(format!(
            "output {} is unknown; the model has {}",
            quoted(name),
            outputs_of(signature)
        ))),
    }
}
