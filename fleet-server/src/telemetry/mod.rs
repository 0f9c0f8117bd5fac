//! Telemetry: from the broker into the store.

pub mod ingest;
