//! A line of CSV (RFC 4180; a record may not span lines).

use super::{
    Input, Metadata, RecordError, Request, binary, cut, described, missing, of_inputs, shape,
    tensor, with_binary,
};
use serde_json::{Number, Value};

/// Most columns of a line.
const COLUMNS_MAX: usize = 1 << 20;

/// The names of columns, from a file's first line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header(Vec<String>);

/// Whether a first line is a header: if every input's name is a column; or, where the model takes
/// numbers, if no column is one. A line with some is a record, and if some are none a wrong one.
#[must_use]
pub fn header(line: &[u8], metadata: &Metadata) -> Option<Header> {
    let fields = fields(line).ok()?;
    let numbers = metadata
        .inputs
        .iter()
        .all(|input| input.datatype != "BYTES");
    let named = |input: &Input| fields.contains(&input.name);
    let all_named = !metadata.inputs.is_empty() && metadata.inputs.iter().all(named);
    let is_number = |field: &String| field.trim().parse::<f64>().is_ok();
    let no_number =
        numbers && !fields.iter().any(is_number) && fields.iter().any(|field| !is_missing(field));
    (all_named || no_number).then_some(Header(fields))
}

pub(super) fn request(
    line: &[u8],
    header: Option<&Header>,
    id: &str,
    metadata: &Metadata,
) -> Result<Request, RecordError> {
    let fields = fields(line)?;
    if let Some(Header(names)) = header
        && names.len() != fields.len()
    {
        return Err(RecordError::Payload {
            expected: format!("{} columns, as the header has", names.len()),
            got: fields.len().to_string(),
        });
    }
    let mut data = Vec::new();
    if let [input] = metadata.inputs.as_slice() {
        let tensor = columns(input, 0, &fields, &mut data)?;
        return Ok(whole(id, &[tensor], &data));
    }
    let scalar = |input: &Input| input.shape.iter().all(|size| matches!(size, 1 | -1));
    if !metadata.inputs.iter().all(scalar) {
        return Err(RecordError::Model {
            format: "csv",
            expected: "one input, or several of one element",
            got: described(metadata),
        });
    }
    if header.is_none() && fields.len() != metadata.inputs.len() {
        return Err(RecordError::Payload {
            expected: format!("{} columns, one an input", metadata.inputs.len()),
            got: fields.len().to_string(),
        });
    }
    let inputs = metadata.inputs.iter().enumerate().map(|(order, input)| {
        let at = match header {
            Some(Header(names)) => names.iter().position(|name| *name == input.name),
            None => Some(order),
        };
        let at = at.ok_or_else(|| missing(input))?;
        let field = fields.get(at..=at).ok_or_else(|| missing(input))?;
        columns(input, at, field, &mut data)
    });
    let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
    Ok(whole(id, &inputs, &data))
}

fn whole(id: &str, inputs: &[Value], data: &[u8]) -> Request {
    match data {
        [] => of_inputs(id, inputs),
        data => with_binary(id, inputs, data),
    }
}

/// The tensor of an input whose first column is `from`. JSON has neither NaN nor infinities: with one of
/// them all of the tensor goes behind it, into `data`.
fn columns(
    input: &Input,
    from: usize,
    fields: &[String],
    data: &mut Vec<u8>,
) -> Result<Value, RecordError> {
    let narrow = match input.datatype.as_str() {
        "FP32" => true,
        "FP64" => false,
        _ => return plain(input, from, fields),
    };
    if fields.iter().all(|field| not_finite(field).is_none()) {
        return plain(input, from, fields);
    }
    let before = data.len();
    for (at, field) in (from..).zip(fields) {
        let number = not_finite(field).or_else(|| number(field).and_then(|n| n.as_f64()));
        let number = number.ok_or_else(|| wrong(input, at, field))?;
        #[expect(clippy::cast_possible_truncation, reason = "that is what FP32 means")]
        let single = number as f32;
        match narrow {
            true if number.is_finite() && !single.is_finite() => {
                return Err(wrong(input, at, field));
            }
            true => data.extend(single.to_le_bytes()),
            false => data.extend(number.to_le_bytes()),
        }
    }
    let shape = shape(input, fields.len())?;
    Ok(binary(input, &shape, data.len() - before))
}

fn plain(input: &Input, from: usize, fields: &[String]) -> Result<Value, RecordError> {
    let values = (from..).zip(fields);
    let values = values.map(|(at, field)| value(input, at, field));
    tensor(input, Value::Array(values.collect::<Result<Vec<_>, _>>()?))
}

/// Whether it is how one of the common libraries writes that there is no number.
#[must_use]
pub fn is_missing(field: &str) -> bool {
    matches!(field, "" | "NA" | "N/A" | "null" | "None")
}

/// A missing number is NaN; digits that go beyond the largest number are none.
fn not_finite(field: &str) -> Option<f64> {
    if is_missing(field) {
        return Some(f64::NAN);
    }
    let number = field.parse::<f64>().ok()?;
    let written = !field.contains(|c: char| c.is_ascii_digit());
    (written && !number.is_finite()).then_some(number)
}

fn value(input: &Input, at: usize, field: &str) -> Result<Value, RecordError> {
    let value = match input.datatype.as_str() {
        "BYTES" => Some(Value::String(field.to_owned())),
        "BOOL" => match field {
            "true" | "True" | "TRUE" | "1" => Some(Value::Bool(true)),
            "false" | "False" | "FALSE" | "0" => Some(Value::Bool(false)),
            _ => None,
        },
        _ => number(field).map(Value::Number),
    };
    value.ok_or_else(|| wrong(input, at, field))
}

fn wrong(input: &Input, at: usize, field: &str) -> RecordError {
    RecordError::Input {
        input: input.name.clone(),
        expected: format!("{} in column {}", input.datatype, at + 1),
        got: format!("{:?}", cut(field)),
    }
}

/// Whole numbers stay whole, whatever their size; "1." and "+3" are no JSON, and meant all the same.
fn number(field: &str) -> Option<Number> {
    if let Ok(whole) = field.parse::<i64>() {
        return Some(whole.into());
    }
    if let Ok(whole) = field.parse::<u64>() {
        return Some(whole.into());
    }
    field.parse::<f64>().ok().and_then(Number::from_f64)
}

/// The fields of a line, quotes taken off.
///
/// # Errors
/// It is no line of CSV.
pub fn fields(line: &[u8]) -> Result<Vec<String>, RecordError> {
    let wrong = |got: &str| RecordError::Payload {
        expected: "a line of CSV".to_owned(),
        got: got.to_owned(),
    };
    let text = std::str::from_utf8(line).map_err(|e| wrong(&e.to_string()))?;
    let text = text
        .trim_start_matches('\u{feff}')
        .trim_end_matches(['\r', '\n']);
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        if fields.len() >= COLUMNS_MAX {
            return Err(wrong("too many columns"));
        }
        let trimmed = rest.trim_start_matches([' ', '\t']);
        let after = match trimmed.strip_prefix('"') {
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                fields.push(rest[..end].trim().to_owned());
                &rest[end..]
            }
            Some(quoted) => {
                let (field, after) =
                    unquoted(quoted).ok_or_else(|| wrong("a quote without an end"))?;
                fields.push(field);
                after.trim_start_matches([' ', '\t'])
            }
        };
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None if after.is_empty() => return Ok(fields),
            None => return Err(wrong("text after a closing quote")),
        }
    }
}

/// A field up to its closing quote, and what follows; two quotes are one.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let end = rest.find('"')?;
        field.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(next) => {
                field.push('"');
                rest = next;
            }
            None => return Some((field, rest)),
        }
    }
}
