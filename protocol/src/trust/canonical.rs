//! JSON the way signatures need it: read without ambiguity, written in one form only.
//!
//! Reading refuses what two parsers may understand differently: an object with a key twice, a
//! number that is not an integer of at most 64 bits. Writing follows OLPC canonical JSON as
//! `securesystemslib` (the library under python-tuf) does it: keys sorted by Unicode code point,
//! no white space, only `"` and `\` escaped.

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;

use super::TrustError;

/// Reads one JSON document of unambiguous meaning.
///
/// # Errors
/// [`TrustError::NotJson`] with line and column: malformed JSON, a duplicate key, a number that is
/// not a 64-bit integer, nesting deeper than 127, or anything after the document.
pub fn parse(bytes: &[u8]) -> Result<Value, TrustError> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Unambiguous.deserialize(&mut reader).and_then(|value| {
        reader.end()?;
        Ok(value)
    });
    value.map_err(|e| TrustError::NotJson {
        reason: e.to_string(),
    })
}

/// The canonical form of `value`: the bytes that get signed and hashed.
///
/// # Errors
/// [`TrustError::NotCanonical`] if a number in it is not a 64-bit integer.
pub fn canonical(value: &Value) -> Result<Vec<u8>, TrustError> {
    let mut out = Vec::with_capacity(256);
    write_value(value, &mut out)?;
    Ok(out)
}

fn write_value(value: &Value, out: &mut Vec<u8>) -> Result<(), TrustError> {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(n) if n.is_i64() || n.is_u64() => {
            out.extend_from_slice(n.to_string().as_bytes());
        }
        Value::Number(n) => {
            return Err(TrustError::NotCanonical {
                number: n.to_string(),
            });
        }
        Value::String(text) => write_string(text, out),
        Value::Array(items) => {
            out.push(b'[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                write_value(item, out)?;
            }
            out.push(b']');
        }
        Value::Object(map) => {
            // Sorted here, because `serde_json::Map` keeps insertion order when any crate of the
            // build turns `preserve_order` on. Byte order of UTF-8 is code point order.
            let mut entries: Vec<(&String, &Value)> = map.iter().collect();
            entries.sort_unstable_by_key(|&(key, _)| key);
            out.push(b'{');
            for (at, (key, item)) in entries.into_iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                write_string(key, out);
                out.push(b':');
                write_value(item, out)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}

fn write_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for &byte in text.as_bytes() {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

struct Unambiguous;

impl<'de> DeserializeSeed<'de> for Unambiguous {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unambiguous {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON with unique keys and integers only")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::from(v))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::from(v))
    }
    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Value, E> {
        Err(E::custom(format_args!(
            "number {v} is not a 64-bit integer; signed metadata may hold no other numbers"
        )))
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::String(v.to_owned()))
    }
    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(Unambiguous)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                let shown: String = key.chars().take(80).collect();
                return Err(A::Error::custom(format_args!(
                    "key {shown:?} appears twice"
                )));
            }
            let item = entries.next_value_seed(Unambiguous)?;
            map.insert(key, item);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(json: &str) -> String {
        String::from_utf8(canonical(&parse(json.as_bytes()).unwrap()).unwrap()).unwrap()
    }

    #[test]
    fn writes_as_securesystemslib_does() {
        assert_eq!(
            text(r#" { "y" : 2, "x" : [ 3 , -1 ] } "#),
            r#"{"x":[3,-1],"y":2}"#
        );
        assert_eq!(
            text(r#"{"a":null,"B":true,"é":false,"z":{}}"#),
            r#"{"B":true,"a":null,"z":{},"é":false}"#
        );
        assert_eq!(
            text(r#""q\"b\\n\nu\u00e9\u0001\/""#),
            "\"q\\\"b\\\\n\nué\u{1}/\""
        );
        assert_eq!(text("18446744073709551615"), "18446744073709551615");
        assert_eq!(text("-9223372036854775808"), "-9223372036854775808");
    }

    #[test]
    fn keys_sort_by_code_point_not_by_utf16_unit() {
        // U+FF5E sorts after U+1F600 in UTF-16 but before it by code point.
        assert_eq!(text(r#"{"😀":1,"～":2}"#), r#"{"～":2,"😀":1}"#);
    }

    #[test]
    fn refuses_what_two_parsers_may_read_differently() {
        for (bad, why) in [
            (r#"{"a":1,"a":1}"#, "appears twice"),
            (r#"{"o":{"a":1,"b":2,"\u0061":3}}"#, "appears twice"),
            ("1.5", "not a 64-bit integer"),
            ("1.0", "not a 64-bit integer"),
            ("1e2", "not a 64-bit integer"),
            ("-0", "not a 64-bit integer"),
            ("18446744073709551616", "not a 64-bit integer"),
            ("{} {}", "trailing characters"),
            ("{\"a\":", "EOF"),
            ("\"\\ud800\"", "hex escape"),
            ("", "EOF"),
        ] {
            let message = parse(bad.as_bytes()).unwrap_err().to_string();
            assert!(message.contains(why), "{bad}: {message}");
        }
        assert!(parse(b"\"\xff\"").is_err());
        assert!(parse("[".repeat(100_000).as_bytes()).is_err());
        assert!(canonical(&serde_json::json!({"a": [1.5]})).is_err());
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((any::<String>(), inner), 0..6)
                    .prop_map(|entries| Value::Object(entries.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_spelling_of_a_value_has_one_canonical_form(value in any_value()) {
            let form = canonical(&value).unwrap();
            for spelling in [serde_json::to_vec(&value).unwrap(), serde_json::to_vec_pretty(&value).unwrap()] {
                let read = parse(&spelling).unwrap();
                prop_assert_eq!(&read, &value);
                prop_assert_eq!(canonical(&read).unwrap(), form.clone());
            }
        }

        #[test]
        fn different_values_have_different_forms(a in any_value(), b in any_value()) {
            prop_assert_eq!(a == b, canonical(&a).unwrap() == canonical(&b).unwrap());
        }

        #[test]
        fn no_input_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
