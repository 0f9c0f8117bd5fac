#![allow(clippy::unwrap_used)]

use super::*;
use dunlin_protocol::bundle::{TensorSpec, TensorType, flow};

fn specs() -> (Vec<flow::Input>, Vec<Output>) {
    let input = TensorSpec {
        name: "x".to_owned(),
        dtype: DType::FP32,
        shape: vec![1, 2],
        layout: None,
    };
    let output = |name: &str, dtype, shape: &[usize]| Output {
        name: name.to_owned(),
        of: TensorType::fixed(dtype, shape),
        slot: 0,
    };
    (
        vec![input.into()],
        vec![
            output("y", DType::FP32, &[1, 2]),
            output("h", DType::FP16, &[1]),
        ],
    )
}

fn signature<'a>(specs: &'a (Vec<flow::Input>, Vec<Output>)) -> Signature<'a> {
    Signature {
        name: "digits",
        version: 3,
        inputs: &specs.0,
        outputs: &specs.1,
    }
}

fn tensor_message(name: &str, dtype: &str, shape: &[u64]) -> Message {
    let mut input = Message::default();
    input.text(1, name);
    input.text(2, dtype);
    input.numbers(3, shape.iter().copied());
    input
}

fn parse(request: Message) -> Result<InferRequest, ApiError> {
    InferRequest::parse(&request.into_bytes(), &signature(&specs()))
}

fn floats() -> [u8; 8] {
    [1.0_f32.to_le_bytes(), (-2.5_f32).to_le_bytes()]
        .concat()
        .try_into()
        .unwrap()
}

fn wants(name: &str) -> Message {
    let mut output = Message::default();
    output.text(1, name);
    output
}

#[test]
fn raw_and_typed_requests_read_the_same() {
    let mut raw = Message::default();
    raw.text(1, "digits");
    raw.text(3, "id");
    raw.message(5, &tensor_message("x", "FP32", &[1, 2]));
    raw.bytes(7, &floats());
    let raw = parse(raw).unwrap();
    let mut contents = Message::default();
    contents.bytes(6, &floats());
    let mut input = tensor_message("x", "FP32", &[1, 2]);
    input.message(5, &contents);
    let mut typed = Message::default();
    typed.message(5, &input);
    let typed = parse(typed).unwrap();
    assert_eq!(raw.inputs, [Values::FP32(vec![1.0, -2.5])]);
    assert_eq!(raw.inputs, typed.inputs);
    assert_eq!((raw.raw, typed.raw, &*raw.id), (true, false, "id"));
}

#[test]
fn an_answer_is_in_the_form_of_the_request_and_gives_its_parameters_back() {
    let mut entry = Message::default();
    entry.text(1, "k");
    entry.bytes(2, &[0x10, 7]);
    let request = |raw, output: &str| {
        let mut message = Message::default();
        message.message(4, &entry);
        let mut input = tensor_message("x", "FP32", &[1, 2]);
        if raw {
            message.bytes(7, &floats());
        } else {
            let mut contents = Message::default();
            contents.bytes(6, &floats());
            input.message(5, &contents);
        }
        message.message(5, &input);
        message.message(6, &wants(output));
        parse(message).unwrap()
    };
    let half = tract_onnx::prelude::f16::from_f32(1.0);
    let outputs = [
        Shaped::new(vec![1, 2], Values::FP32(vec![0.5, 0.25])),
        Shaped::new(vec![1], Values::FP16(vec![half])),
    ];
    for (raw, output, is_raw) in [(true, "y", true), (false, "y", false), (false, "h", true)] {
        let request = request(raw, output);
        let specs = specs();
        let bytes = answer(&signature(&specs), &request, &outputs).into_bytes();
        let fields: Vec<_> = Fields::of(&bytes).collect::<Result<_, _>>().unwrap();
        let of = |number| fields.iter().filter(move |f| f.number == number);
        assert_eq!(of(1).next().unwrap().text(), Ok("digits"));
        assert_eq!(
            parameter(of(4).next().unwrap().bytes().unwrap()),
            Ok(("k", Value::from(7)))
        );
        assert_eq!((of(5).count(), of(6).count()), (1, usize::from(is_raw)));
        let given = input(of(5).next().unwrap().bytes().unwrap()).unwrap();
        assert_eq!((given.name, given.contents.is_none()), (output, is_raw));
    }
}

#[test]
fn a_wrong_request_is_told_what_was_expected() {
    let with = |input: &Message, raws: &[&[u8]]| {
        let mut message = Message::default();
        message.message(5, input);
        raws.iter().for_each(|raw| message.bytes(7, raw));
        message
    };
    let good = tensor_message("x", "FP32", &[1, 2]);
    let mut both = tensor_message("x", "FP32", &[1, 2]);
    both.bytes(5, &[]);
    let mut shared = tensor_message("x", "FP32", &[1, 2]);
    let mut entry = Message::default();
    entry.text(1, "shared_memory_region");
    shared.message(4, &entry);
    let mut many = Message::default();
    (0..65).for_each(|_| many.message(5, &good));
    let mut long = Message::default();
    long.text(3, &"i".repeat(257));
    let mut parameters = Message::default();
    let mut entry = Message::default();
    entry.text(1, &"k".repeat(4096));
    parameters.message(4, &entry);
    let mut unknown = with(&good, &[&floats()]);
    unknown.message(6, &wants("q"));
    for (message, hint) in [
        (
            Message::default(),
            "an input is missing: expected \"x\" FP32 [1, 2]",
        ),
        (with(&good, &[]), "there is none"),
        (with(&good, &[&[1, 2]]), "expected 8 bytes, got 2"),
        (
            with(&good, &[&floats(), &floats()]),
            "one for each of 1 inputs, got 2",
        ),
        (
            with(&both, &[&floats()]),
            "both contents and raw_input_contents",
        ),
        (
            with(&tensor_message("x", "FP32", &[u64::MAX, 2]), &[&floats()]),
            "got FP32 [18446744073709551615, 2]",
        ),
        (
            with(&tensor_message("x", "FP32", &[1; 17]), &[&floats()]),
            "more than 16 dimensions",
        ),
        (
            with(&shared, &[&floats()]),
            "shared_memory_region: that extension",
        ),
        (many, "inputs: more than 64"),
        (long, "id: at most 256"),
        (parameters, "parameters: at most 4096"),
        (unknown, "output \"q\" is unknown"),
    ] {
        let error = parse(message).unwrap_err();
        assert!(error.message.contains(hint), "{hint}: {error}");
    }
    let error = InferRequest::parse(&[0x2a, 5, 1], &signature(&specs())).unwrap_err();
    assert!(error.message.contains("middle of a field"), "{error}");
}
