//! Telemetry: from the broker into the store, acknowledged once it is on disk.

mod durable;
pub mod ingest;
pub mod retention;
