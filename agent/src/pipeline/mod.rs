//! Pipelines: records from a source go through a model to a sink, without an application.
//!
//! ```text
//! source ──▶ queue (bounded, with a policy) ──▶ record → request ──▶ inference API ──▶ sink
//!    ▲                                                                                  │
//!    └────────── settled: acknowledged, moved, counted, only after the sink has it ─────┘
//! ```
//!
//! They are clients of the inference API like any other, in a process of their own
//! (`dunlin-agent pipelines`): what they parse is foreign, so it is never done in the supervisor,
//! which holds the keys, nor in the worker, which has neither files nor a network. A record is
//! settled at its source only after the sink has its result: at least once, from end to end.
//!
//! [`queue`], [`record`] and [`place`] decide and touch nothing; the rest is their shell.

pub mod child;
pub mod client;
pub mod command;
pub mod feed;
mod folder;
pub mod place;
mod progress;
pub mod queue;
pub mod record;
pub mod run;
pub mod settings;
mod sink;
mod source;

pub use child::{ChildEvent, ChildSettings, Pipelines};
pub use progress::{Progress, Reason};
pub use settings::PipelineSettings;
