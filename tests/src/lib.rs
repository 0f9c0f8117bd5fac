//! The harness of Dunlin's whole-system tests.
//!
//! [`fleet::Fleet`] boots broker, server and agents in one process (each agent's worker is a
//! process of its own, as always), waits for conditions and never for a time.

pub mod chaos;
pub mod fleet;
pub mod golden;
pub mod http;
pub mod local_broker;
pub mod mosquitto;
pub mod mqtt;
pub mod operator;
pub mod process;
pub mod random;
pub mod worker;
