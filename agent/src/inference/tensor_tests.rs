#![allow(clippy::unwrap_used)]

use super::*;

fn spec(dtype: DType, shape: &[usize]) -> TensorSpec {
    TensorSpec {
        name: "x".to_owned(),
        dtype,
        shape: shape.to_vec(),
        layout: None,
    }
}

#[test]
fn flat_and_nested_data_read_the_same() {
    let s = spec(DType::FP32, &[2, 3]);
    let want = Values::FP32(vec![1.0, 2.0, 3.0, 4.5, 5.0, -6.0]);
    for json in ["[1,2,3,4.5,5,-6]", "[[1,2,3],[4.5,5,-6.0]]"] {
        assert_eq!(Values::from_json(&s, json).unwrap(), want);
    }
    let scalar = spec(DType::INT64, &[]);
    assert_eq!(
        Values::from_json(&scalar, "[7]").unwrap(),
        Values::INT64(vec![7])
    );
}

#[test]
fn bad_data_says_what_was_expected() {
    let s = spec(DType::FP32, &[2, 3]);
    for (json, hint) in [
        ("[1,2,3]", "expected 6 values, got 3"),
        ("[1,2,3,4,5,6,7]", "expected 6 values, got more"),
        ("[[1,2],[3,4],[5,6]]", "expected shape [2, 3]"),
        ("[[1,2,3],4,5,6]", "nested"),
        ("[[[1,2,3],[4,5,6]]]", "nested 3 deep"),
        ("5", "nested 0 deep"),
        ("{}", "expected an array"),
        ("[\"a\"]", "FP32"),
        ("[null,1,2,3,4,5]", "null"),
        ("[true,1,2,3,4,5]", "true does not fit FP32"),
        ("[1e300,1,2,3,4,5]", "does not fit FP32"),
        ("[]", "expected"),
        ("[[],[]]", "expected"),
    ] {
        let error = Values::from_json(&s, json).unwrap_err();
        assert!(error.contains(hint), "{json}: {error}");
    }
}

#[test]
fn every_element_type_keeps_its_range() {
    let read = |dtype, json: &str| Values::from_json(&spec(dtype, &[1]), json);
    assert_eq!(
        read(DType::UINT8, "[255]").unwrap(),
        Values::UINT8(vec![255])
    );
    assert_eq!(read(DType::UINT8, "[3.0]").unwrap(), Values::UINT8(vec![3]));
    assert!(read(DType::UINT8, "[256]").is_err());
    assert!(read(DType::UINT8, "[3.5]").is_err());
    assert!(read(DType::INT8, "[-129]").is_err());
    assert_eq!(
        read(DType::INT64, "[-9223372036854775808]").unwrap(),
        Values::INT64(vec![i64::MIN])
    );
    assert_eq!(
        read(DType::UINT64, "[18446744073709551615]").unwrap(),
        Values::UINT64(vec![u64::MAX])
    );
    assert_eq!(
        read(DType::BOOL, "[true]").unwrap(),
        Values::BOOL(vec![true])
    );
    assert!(read(DType::BOOL, "[2]").is_err());
    assert!(read(DType::FP16, "[65520]").is_err());
    assert!(read(DType::FP64, "[1e300]").is_ok());
}

#[test]
fn values_survive_the_engine_s_tensors() {
    for dtype in [
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
    ] {
        let s = spec(dtype, &[2, 1]);
        let values = Values::from_f64(dtype, &[0.0, 1.0]).unwrap();
        let tensor = values.to_tensor(&s.shape).unwrap();
        assert_eq!(Values::from_tensor(&s, &tensor).unwrap(), values);
        assert_eq!(values.iter_f64().collect::<Vec<_>>(), [0.0, 1.0]);
        assert!(Values::from_tensor(&spec(dtype, &[2]), &tensor).is_err());
    }
}

#[test]
fn what_json_cannot_hold_is_null() {
    let values = Values::FP32(vec![0.1, f32::NAN, f32::INFINITY]);
    assert_eq!(serde_json::to_string(&values).unwrap(), "[0.1,null,null]");
}

#[test]
fn byte_strings_are_texts_or_base64() {
    let s = spec(DType::BYTES, &[2, 1]);
    let want = Values::BYTES(vec![b"red".to_vec(), "gr\u{fc}n".as_bytes().to_vec()]);
    for json in [r#"["red","gr\u00fcn"]"#, r#"[["red"],["gr\u00fcn"]]"#] {
        assert_eq!(Values::from_json(&s, json).unwrap(), want);
    }
    assert_eq!(
        serde_json::to_string(&want).unwrap(),
        "[\"red\",\"gr\u{fc}n\"]"
    );
    let image = Values::from_base64_json(&s, r#"["/9j/", ""]"#).unwrap();
    assert_eq!(image, Values::BYTES(vec![vec![0xff, 0xd8, 0xff], vec![]]));
    for (json, hint) in [
        ("[1,2]", "1 does not fit BYTES"),
        (r#"["a"]"#, "expected 2 values, got 1"),
        (r#"["a","b","c"]"#, "got more"),
    ] {
        let error = Values::from_json(&s, json).unwrap_err();
        assert!(error.contains(hint), "{json}: {error}");
    }
    let error = Values::from_base64_json(&s, r#"["a?","b"]"#).unwrap_err();
    assert!(error.contains("expected base64"), "{error}");
}
