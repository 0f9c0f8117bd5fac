//! Dunlin's fleet server.
pub mod acl;
pub mod api;
pub mod blobs;
pub mod broker;
pub mod clock;
pub mod command;
pub mod config;
pub mod drift;
pub mod enroll;
mod files;
pub mod mqtt;
pub mod pki;
pub mod repository;
pub mod rollout;
pub mod store;
pub mod telemetry;
