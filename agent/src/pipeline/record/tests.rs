#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

fn model(inputs: &[(&str, &str, &[i64])]) -> Metadata {
    let inputs = inputs.iter().map(|(name, datatype, shape)| Input {
        name: (*name).to_owned(),
        datatype: (*datatype).to_owned(),
        shape: shape.to_vec(),
    });
    Metadata {
        inputs: inputs.collect(),
    }
}

fn pixels() -> Metadata {
    model(&[("pixels", "FP32", &[1, 4])])
}

fn read(format: Format, payload: &[u8], metadata: &Metadata) -> Result<Value, RecordError> {
    let made = request(format, payload, None, "t/1", metadata)?;
    assert_eq!(made.json_bytes, None);
    Ok(serde_json::from_slice(&made.body).unwrap())
}

fn told(format: Format, payload: &[u8], metadata: &Metadata) -> String {
    read(format, payload, metadata).unwrap_err().to_string()
}

#[test]
fn json_is_a_request_inputs_by_name_or_a_bare_array() {
    let expected = json!({"id": "t/1", "inputs": [
        {"name": "pixels", "datatype": "FP32", "shape": [1, 4], "data": [1, 2.5, 3, 4]}
    ]});
    for payload in [
        "[1, 2.5, 3, 4]",
        "[[1, 2.5], [3, 4]]",
        "{\"pixels\": [[1, 2.5, 3, 4]]}",
    ] {
        assert_eq!(
            read(Format::Json, payload.as_bytes(), &pixels()).unwrap(),
            expected
        );
    }
    let mut whole = expected.clone();
    assert_eq!(
        read(Format::Json, whole.to_string().as_bytes(), &pixels()).unwrap(),
        expected
    );
    // What the pipeline does not know is the API's to judge; only an id is added.
    whole.as_object_mut().unwrap().remove("id");
    whole["parameters"] = json!({"line": 3});
    let made = read(Format::Json, whole.to_string().as_bytes(), &pixels()).unwrap();
    assert_eq!(
        (&made["id"], &made["parameters"]),
        (&json!("t/1"), &json!({"line": 3}))
    );
    let one = model(&[("x", "INT64", &[1])]);
    assert_eq!(
        read(Format::Json, b"9007199254740993", &one).unwrap()["inputs"][0]["data"],
        json!([9_007_199_254_740_993_i64])
    );
}

#[test]
fn what_does_not_fit_is_named() {
    let two = model(&[("a", "FP32", &[1]), ("b", "FP32", &[2])]);
    for (told, words) in [
        (
            told(Format::Json, b"[1,2", &pixels()),
            &["expected JSON", "4 bytes"][..],
        ),
        (
            told(Format::Json, b"[1,2,3]", &pixels()),
            &["\"pixels\"", "FP32 [1, 4]", "3 elements"],
        ),
        (
            told(Format::Json, b"{\"pixel\":[1,2,3,4]}", &pixels()),
            &["\"pixels\"", "nothing"],
        ),
        (
            told(Format::Json, b"{\"a\":1,\"b\":[1,2],\"c\":0}", &two),
            &["\"a\", \"b\"", "\"c\" too"],
        ),
        (
            told(Format::Json, b"[1,2,3]", &two),
            &["one input", "\"b\" FP32 [2]"],
        ),
        (
            told(Format::Csv, b"1,2,-,4", &pixels()),
            &["FP32 in column 3", "\"-\""],
        ),
        (told(Format::Csv, b"1,2,\"3", &pixels()), &["quote"]),
        (told(Format::Csv, b"\xff", &pixels()), &["CSV"]),
        (
            told(Format::Raw, &[0; 15], &pixels()),
            &["16 bytes", "15 bytes"],
        ),
        (
            told(Format::Raw, &[0; 17], &pixels()),
            &["16 bytes", "17 bytes"],
        ),
        (told(Format::Bytes, b"x", &pixels()), &["BYTES", "FP32"]),
    ] {
        for word in words {
            assert!(told.contains(word), "{word:?} is not in {told:?}");
        }
    }
}

#[test]
fn a_header_is_recognised_and_orders_columns_of_several_inputs() {
    let one = pixels();
    assert_eq!(header(b"1,2.5,-3e2,", &one), None);
    // Wrong records, and no headers.
    assert_eq!(header(b"5.x,0,0,1", &one), None);
    assert_eq!(header(b"nan,0,0,1", &one), None);
    assert_eq!(header(b"nan,inf,nan,nan", &one), None);
    let named = header(b"p0,p1,p2,p3\r\n", &one).unwrap();
    let made = request(Format::Csv, b"1,2,+3,4.\r\n", Some(&named), "f#2", &one).unwrap();
    let made: Value = serde_json::from_slice(&made.body).unwrap();
    assert_eq!(made["inputs"][0]["data"], json!([1, 2, 3, 4.0]));
    let short = request(Format::Csv, b"1,2", Some(&named), "f#3", &one).unwrap_err();
    assert!(short.to_string().contains("4 columns"), "{short}");

    let several = model(&[("age", "INT64", &[1, 1]), ("city", "BYTES", &[1, 1])]);
    let named = header(b"\"city\",note,age", &several).unwrap();
    let made = request(
        Format::Csv,
        b"\"Halle, \"\"Saale\"\"\",x,44",
        Some(&named),
        "f#2",
        &several,
    )
    .unwrap();
    let made: Value = serde_json::from_slice(&made.body).unwrap();
    assert_eq!(made["inputs"][0]["data"], json!([44]));
    assert_eq!(made["inputs"][1]["data"], json!(["Halle, \"Saale\""]));
}

#[test]
fn raw_and_bytes_travel_as_binary_data() {
    let payload: Vec<u8> = [1_f32, 2.0, 3.0, 4.0]
        .iter()
        .flat_map(|f| f.to_le_bytes())
        .collect();
    let made = request(Format::Raw, &payload, None, "r", &pixels()).unwrap();
    let (head, data) = made.body.split_at(made.json_bytes.unwrap());
    let head: Value = serde_json::from_slice(head).unwrap();
    assert_eq!(head["inputs"][0]["parameters"]["binary_data_size"], 16);
    assert_eq!(data, payload);

    let image = model(&[("image", "BYTES", &[-1])]);
    let made = request(Format::Bytes, b"\xff\xd8jpeg", None, "a.jpg", &image).unwrap();
    let (head, data) = made.body.split_at(made.json_bytes.unwrap());
    let head: Value = serde_json::from_slice(head).unwrap();
    assert_eq!(head["inputs"][0]["shape"], json!([1]));
    assert_eq!(head["inputs"][0]["parameters"]["binary_data_size"], 10);
    assert_eq!(data, b"\x06\0\0\0\xff\xd8jpeg");

    let open = model(&[("gain", "FP32", &[1]), ("audio", "INT16", &[1, -1])]);
    let made = request(Format::Raw, &[0; 10], None, "r", &open).unwrap();
    let head: Value = serde_json::from_slice(&made.body[..made.json_bytes.unwrap()]).unwrap();
    assert_eq!(head["inputs"][1]["shape"], json!([1, 3]));
}

#[test]
fn a_result_is_one_line_and_not_written_anew() {
    let answer = br#"{"id":"1","outputs":[{"data":[0.10000000149011612]}]}"#;
    assert_eq!(result(answer).unwrap(), answer);
    let spread = b"{\n\"outputs\": []\r\n}";
    assert_eq!(result(spread).unwrap(), br#"{"outputs":[]}"#);
    assert!(result(b"{}").is_err() && result(b"<html>").is_err());
}

#[test]
fn a_long_id_keeps_its_end() {
    let id = format!("{}é#7", "x".repeat(400));
    let made = read_id(&id);
    assert!(
        made.len() <= ID_MAX_BYTES && made.ends_with("é#7"),
        "{made}"
    );
}

fn read_id(id: &str) -> String {
    let made = request(Format::Json, b"[1,2,3,4]", None, id, &pixels()).unwrap();
    let made: Value = serde_json::from_slice(&made.body).unwrap();
    made["id"].as_str().unwrap().to_owned()
}

proptest! {
    /// Whatever comes makes a request that is JSON, or an error; never a panic.
    #[test]
    fn any_payload_is_a_request_or_an_error(
        payload in proptest::collection::vec(any::<u8>(), 0..200),
        sizes in proptest::collection::vec(-1_i64..5, 0..4),
        datatype in prop_oneof![Just("FP32"), Just("BYTES"), Just("INT64"), Just("BOOL")],
    ) {
        let metadata = model(&[("x", datatype, &sizes)]);
        for format in [Format::Json, Format::Csv, Format::Raw, Format::Bytes] {
            if let Ok(made) = request(format, &payload, None, "i", &metadata) {
                let head = &made.body[..made.json_bytes.unwrap_or(made.body.len())];
                prop_assert!(serde_json::from_slice::<Value>(head).is_ok());
            }
        }
        let _ = header(&payload, &metadata);
        let _ = result(&payload);
    }

    /// Fields written with quotes are read back as they were.
    #[test]
    fn quoted_fields_are_read_back(fields in proptest::collection::vec("[^\r\n\0\u{feff}]{0,12}", 1..6)) {
        let metadata = model(&[("x", "BYTES", &[-1])]);
        let line: Vec<String> = fields.iter().map(|f| format!("\"{}\"", f.replace('"', "\"\""))).collect();
        let made = read(Format::Csv, line.join(",").as_bytes(), &metadata).unwrap();
        prop_assert_eq!(&made["inputs"][0]["data"], &json!(fields));
    }
}

#[test]
fn parameters_are_added_where_a_record_does_not_say_otherwise() {
    let all = BTreeMap::from([
        ("camera".to_owned(), "north".to_owned()),
        ("shift".to_owned(), "early".to_owned()),
    ]);
    let binary = Request {
        body: b"{\"id\":\"a\",\"parameters\":{\"shift\":2}}\x00\xff".to_vec(),
        json_bytes: Some(35),
    };
    let with = binary.clone().with_parameters(&all);
    let end = with.json_bytes.unwrap();
    let head: Value = serde_json::from_slice(&with.body[..end]).unwrap();
    assert_eq!(
        head["parameters"],
        serde_json::json!({"camera": "north", "shift": 2})
    );
    assert_eq!(with.body[end..], [0, 0xff]);
    assert_eq!(binary.clone().with_parameters(&BTreeMap::new()), binary);
    let plain = Request {
        body: b"{}".to_vec(),
        json_bytes: None,
    };
    let with = plain.with_parameters(&all);
    let whole: Value = serde_json::from_slice(&with.body).unwrap();
    assert_eq!(
        (&whole["parameters"]["shift"], with.json_bytes),
        (&"early".into(), None)
    );
}

#[test]
fn a_missing_value_of_csv_is_nan_and_goes_behind_the_json() {
    let csv = |line: &[u8], metadata: &Metadata| request(Format::Csv, line, None, "f#1", metadata);
    let behind = |made: &Request| {
        let (head, data) = made.body.split_at(made.json_bytes.unwrap());
        let head: Value = serde_json::from_slice(head).unwrap();
        (head["inputs"].clone(), data.to_vec())
    };
    let (head, data) = behind(&csv(b"1.5,,-INF,NA", &pixels()).unwrap());
    assert_eq!(
        head,
        json!([{"name": "pixels", "datatype": "FP32", "shape": [1, 4],
                "parameters": {"binary_data_size": 16}}])
    );
    let values = data.chunks_exact(4);
    let values: Vec<f32> = values
        .map(|some| f32::from_le_bytes(some.try_into().unwrap()))
        .collect();
    assert!(values[1].is_nan() && values[3].is_nan(), "{values:?}");
    assert_eq!((values[0], values[2]), (1.5, f32::NEG_INFINITY));

    // Only the tensor that misses something goes there.
    let several = model(&[
        ("age", "FP64", &[1, 1]),
        ("n", "INT64", &[1]),
        ("s", "BYTES", &[1]),
    ]);
    let (head, data) = behind(&csv(b",7,", &several).unwrap());
    assert_eq!(head[0]["parameters"], json!({"binary_data_size": 8}));
    assert_eq!(
        (&head[1]["data"], &head[2]["data"]),
        (&json!([7]), &json!([""]))
    );
    assert!(f64::from_le_bytes(data.try_into().unwrap()).is_nan());

    // Whole numbers and flags cannot be missing; too large a number is not infinite.
    for line in [&b"1,,x"[..], b"1e999,7,x", b"x,7,x"] {
        let problem = csv(line, &several).unwrap_err().to_string();
        assert!(problem.contains("in column"), "{problem}");
    }
    let problem = csv(b"1e99,,0,0", &pixels()).unwrap_err().to_string();
    assert!(problem.contains("FP32 in column 1"), "{problem}");
}
