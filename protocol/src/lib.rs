//! What Dunlin's agent and fleet server say to each other.
//!
//! Everything here is pure: values in, values out. No file, socket, clock,
//! thread or random number is touched, so that both sides, the command line
//! and the tests share one definition of every message and every check.
//!
//! * [`id`]: the short registry of identifiers.
//! * [`topic`]: MQTT topics, both ways.
//! * [`repository`]: the names of a repository's files, on every way to a device.
//! * [`block`]: those files piece by piece over MQTT.
//! * [`archive`]: those files in one, for a USB stick.
//! * [`bundle`]: the signed manifest and what a device checks in it.
//! * [`trust`]: TUF metadata, the client workflow and signing.
//! * [`command`]: desired state and acknowledgements (server to device).
//! * [`report`]: presence and reported state (device to server).
//! * [`capture`]: inputs kept on a device, sealed to an operator's key.
//! * [`patch`]: a new model as its difference to an installed one.
//! * [`telemetry`]: records in numbered segments (device to server).
//! * [`sketch`]: frozen-bin histograms that merge exactly.
//! * [`distinct`]: how many different values there were, which merges exactly too.
//! * `schema` (feature `schema`): JSON Schemas of the messages and their AsyncAPI document.

pub mod archive;
pub mod block;
pub mod bundle;
pub mod calibration;
pub mod capture;
pub mod command;
pub mod distinct;
pub mod enroll;
pub mod id;
pub mod patch;
pub mod report;
pub mod repository;
#[cfg(feature = "schema")]
pub mod schema;
pub mod sketch;
pub mod telemetry;
pub mod topic;
pub mod trust;

/// Largest JSON control message (desired, command, ack, presence, reported) either side accepts, in bytes.
pub const CONTROL_MESSAGE_MAX_BYTES: usize = 64 * 1024;

/// Largest telemetry segment on the wire either side accepts, in bytes.
pub const SEGMENT_MAX_BYTES: usize = 1024 * 1024;
