//! Desired state on its way to devices. It is kept in the database (`store::Store::set_desired`,
//! `apply_plan`), never in broker queues; what is here only sends it, again and again until the
//! device says that it has it. On networks with MQTT alone, [`blocks`] gives devices the files of
//! the repository too.

pub mod blocks;
pub(crate) mod capture;
pub mod deliver;
