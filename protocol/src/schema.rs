//! JSON Schemas (draft 7) of the messages and their AsyncAPI 3 document, from the very types that
//! read and write them. Behind the feature `schema`: devices are built without it.
//!
//! A schema says what this release reads, and so what every release before has written. Fields that
//! it does not name are allowed: messages only ever gain optional ones.

use crate::SEGMENT_MAX_BYTES;
use crate::block::{ANSWER_CONTENT_TYPE, Request};
use crate::command::{Ack, Command, Desired};
use crate::id::BootId;
use crate::report::{Presence, Reported};
use crate::telemetry::{Class, Scalar, Segment};
use crate::topic::Channel;
use schemars::generate::SchemaSettings;
use schemars::transform::{Transform, transform_subschemas};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Every message of the channel `metrics`: one record, scalars only, so that an ordinary consumer
/// reads it unprepared. Besides the fields named here, each field is a value by its name.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Metrics")]
struct Flat {
    /// Life of the device's telemetry store.
    boot: BootId,
    /// Number within the boot; rises with the order in which records were taken in, and is never
    /// used twice.
    segment: u64,
    /// When, by the device's clock, in milliseconds since 1970.
    time_ms: i64,
    /// Sent well after it happened, as after a time without a connection.
    #[serde(default)]
    backfilled: bool,
    #[serde(flatten)]
    values: BTreeMap<String, Scalar>,
}

/// A text of a fixed alphabet.
pub(crate) fn text(pattern: &str) -> Schema {
    json_schema!({"type": "string", "pattern": pattern})
}

/// Descriptions are Rust's documentation; elsewhere its links mean nothing.
#[derive(Debug, Clone)]
struct PlainDescriptions;

impl Transform for PlainDescriptions {
    fn transform(&mut self, schema: &mut Schema) {
        if let Some(Value::String(text)) = schema.get_mut("description") {
            let paragraphs = text.split("\n\n").map(|p| p.replace('\n', " "));
            let paragraphs: Vec<String> = paragraphs.collect();
            *text = paragraphs
                .join("\n\n")
                .replace("[`", "`")
                .replace("`]", "`");
        }
        transform_subschemas(self, schema);
    }
}

fn generator(definitions: &str) -> SchemaGenerator {
    SchemaSettings::draft07()
        .for_deserialize()
        .with(|settings| settings.definitions_path = definitions.to_owned().into())
        .with_transform(PlainDescriptions)
        .into_generator()
}

/// What the records of a class may be: the values of their `type`.
fn record_types(class: Class) -> &'static [&'static str] {
    match class {
        Class::Event => &["event", "gap"],
        Class::Sketch => &["window"],
        Class::Log => &["log"],
        Class::Metrics => &["metrics"],
    }
}

/// The schema of a channel's messages as `generator` refers to it; `None` for the binary ones.
fn of(channel: Channel, generator: &mut SchemaGenerator) -> Option<Schema> {
    let schema = match channel {
        Channel::Desired => generator.subschema_for::<Desired>(),
        Channel::Command => generator.subschema_for::<Command>(),
        Channel::Ack => generator.subschema_for::<Ack>(),
        Channel::Block => return None,
        Channel::Presence => generator.subschema_for::<Presence>(),
        Channel::Reported => generator.subschema_for::<Reported>(),
        Channel::Metrics => generator.subschema_for::<Flat>(),
        Channel::Fetch => generator.subschema_for::<Request>(),
        Channel::Sketch | Channel::Event | Channel::Log => {
            let segment = generator.subschema_for::<Segment>();
            let types = Class::of_channel(channel).map_or(&[][..], record_types);
            json_schema!({
                "allOf": [segment, {"properties": {"records": {"items": {
                    "properties": {"type": {"enum": types}},
                }}}}],
            })
        }
    };
    Some(schema)
}

/// The schema of a channel's messages, whole in itself; `None` for the channel `block`, whose
/// messages are binary.
#[must_use]
pub fn channel(channel: Channel) -> Option<Value> {
    let mut generator = generator("/definitions");
    let schema = of(channel, &mut generator)?.to_value();
    let mut whole = json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$id": format!("urn:dunlin:v1:{}", channel.as_str()),
        "title": format!("Dunlin v1, channel {}", channel.as_str()),
        "definitions": generator.take_definitions(true),
    });
    // Beside a `$ref` of its own, draft 7 reads nothing.
    whole["allOf"] = json!([schema]);
    Some(whole)
}

/// Largest message of a channel, in bytes.
fn max_bytes(channel: Channel) -> usize {
    match Class::of_channel(channel) {
        Some(_) => SEGMENT_MAX_BYTES,
        None if channel == Channel::Fetch => crate::block::REQUEST_MAX_BYTES,
        None if channel == Channel::Block => crate::block::ANSWER_MAX_BYTES,
        None => crate::CONTROL_MESSAGE_MAX_BYTES,
    }
}

fn says(channel: Channel) -> &'static str {
    match channel {
        Channel::Desired => "The state the device should reach; sent again at every connect.",
        Channel::Command => "Something to do once.",
        Channel::Ack => "Segments that the server has stored: exactly these the device deletes.",
        Channel::Block => "A piece of a file that the device fetches over MQTT.",
        Channel::Presence => "Connected or not: retained, and the device's last will.",
        Channel::Reported => "How far the device is, at connect and at every change.",
        Channel::Metrics => "One record a message, flat scalars, for ordinary consumers.",
        Channel::Sketch => "Drift windows: counts over bins that are frozen in the signed bundle.",
        Channel::Event => "Things that happened, and gaps.",
        Channel::Log => "Log lines.",
        Channel::Fetch => "Asks for a piece of a file.",
    }
}

fn message(channel: Channel, payload: Option<Schema>) -> Value {
    let content_type = match channel {
        Channel::Block => ANSWER_CONTENT_TYPE,
        _ => "application/json",
    };
    let binary = || json_schema!({"type": "string", "format": "binary"});
    json!({
        "name": channel.as_str(),
        "summary": says(channel),
        "contentType": content_type,
        "payload": payload.unwrap_or_else(binary),
    })
}

fn operation(channel: Channel) -> Value {
    let name = channel.as_str();
    let qos = if channel == Channel::Fetch { 0 } else { 1 };
    json!({
        "action": if channel.is_down() { "receive" } else { "send" },
        "channel": {"$ref": format!("#/channels/{name}")},
        "messages": [{"$ref": format!("#/channels/{name}/messages/{name}")}],
        "bindings": {"mqtt": {
            "qos": qos, "retain": channel == Channel::Presence, "bindingVersion": "0.2.0",
        }},
    })
}

/// The AsyncAPI 3 document: what a device sends and receives. A consumer receives what devices send.
#[must_use]
pub fn asyncapi() -> Value {
    let mut generator = generator("/components/schemas");
    let (mut channels, mut operations, mut messages) = (Map::new(), Map::new(), Map::new());
    for channel in Channel::ALL {
        let name = channel.as_str();
        let payload = of(channel, &mut generator);
        messages.insert(name.to_owned(), message(channel, payload));
        operations.insert(name.to_owned(), operation(channel));
        let described = json!({
            "address": format!("dunlin/v1/{{fleet}}/{{device}}/{name}"),
            "description": format!("{} At most {} bytes.", says(channel), max_bytes(channel)),
            "parameters": {
                "fleet": {"description": "The fleet's name."},
                "device": {"description": "The device, sender of what goes up and receiver of what goes down."},
            },
            "messages": {name: {"$ref": format!("#/components/messages/{name}")}},
        });
        channels.insert(name.to_owned(), described);
    }
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Dunlin device",
            "version": "1",
            "description": "What a device of a Dunlin fleet says and hears over MQTT; docs/telemetry.md explains it. Messages only ever gain optional fields.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {"broker": {
            "host": "{host}:{port}",
            "protocol": "secure-mqtt",
            "protocolVersion": "5",
            "description": "The fleet server's own broker, or mosquitto.",
            "variables": {
                "host": {"default": "fleet.example"},
                "port": {"default": "8883"},
            },
            "security": [{"$ref": "#/components/securitySchemes/certificate"}],
        }},
        "channels": channels,
        "operations": operations,
        "components": {
            "messages": messages,
            "schemas": generator.take_definitions(true),
            "securitySchemes": {"certificate": {
                "type": "X509",
                "description": "A client certificate of the fleet's CA; its common name is the client id.",
            }},
        },
    })
}
