//! The schemas that are checked in are those of the types.
//!
//! `tests/peers/wire/run` runs this, for nothing of the workspace enables the feature. To write them
//! anew:
//! ```text
//! DUNLIN_WRITE_SCHEMAS=1 cargo test --target-dir target/schemas -p dunlin-protocol --features schema --test schemas
//! ```

#![allow(clippy::unwrap_used, clippy::panic)]

use dunlin_protocol::schema;
use dunlin_protocol::telemetry::Class;
use dunlin_protocol::topic::Channel;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

fn folder() -> PathBuf {
    // Where it runs: what is kept between builds may have been built elsewhere.
    let package = std::env::var_os("CARGO_MANIFEST_DIR");
    package
        .map_or_else(|| PathBuf::from("."), PathBuf::from)
        .join("schemas")
}

/// File name and text of every document.
fn documents() -> BTreeMap<String, String> {
    let schemas = Channel::ALL.into_iter().filter_map(|channel| {
        let schema = schema::channel(channel)?;
        Some((format!("{}.schema.json", channel.as_str()), schema))
    });
    let asyncapi = ("asyncapi.json".to_owned(), schema::asyncapi());
    let text = |value: &Value| format!("{}\n", serde_json::to_string_pretty(value).unwrap());
    schemas
        .chain([asyncapi])
        .map(|(name, value)| (name, text(&value)))
        .collect()
}

#[test]
fn what_is_checked_in_is_current() {
    let documents = documents();
    if std::env::var_os("DUNLIN_WRITE_SCHEMAS").is_some() {
        std::fs::create_dir_all(folder()).unwrap();
        for (name, text) in &documents {
            std::fs::write(folder().join(name), text).unwrap();
        }
    }
    let entries = std::fs::read_dir(folder()).unwrap();
    let there: BTreeSet<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(there, documents.keys().cloned().collect());
    for (name, text) in &documents {
        let committed = std::fs::read_to_string(folder().join(name)).unwrap();
        assert!(
            committed == *text,
            "{name} is not that of the types: if the change is meant, and one that docs/telemetry.md \
             allows, write it anew (see the head of this file)"
        );
    }
}

/// Every `$ref` of a document.
fn references(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(target)) = fields.get("$ref") {
                into.insert(target.clone());
            }
            fields.values().for_each(|field| references(field, into));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, into)),
        _ => {}
    }
}

#[test]
fn every_reference_leads_to_something() {
    for (name, text) in documents() {
        let document: Value = serde_json::from_str(&text).unwrap();
        let mut all = BTreeSet::new();
        references(&document, &mut all);
        assert!(!all.is_empty(), "{name}");
        for target in all {
            let pointer = target.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{name}: {target}");
        }
    }
}

#[test]
fn the_schema_of_metrics_names_what_the_message_keeps_for_itself() {
    let schema = schema::channel(Channel::Metrics).unwrap();
    let flat = &schema["definitions"]["Metrics"];
    let named: Vec<&String> = flat["properties"].as_object().unwrap().keys().collect();
    assert_eq!(named, dunlin_protocol::telemetry::FLAT_HEAD);
    assert_eq!(
        flat["required"],
        serde_json::json!(["boot", "segment", "time_ms"])
    );
    assert!(
        Class::ALL
            .iter()
            .all(|c| schema::channel(c.channel()).is_some())
    );
}
