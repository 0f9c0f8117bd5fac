//! What is fuzzed. The same functions run over the committed inputs in `cargo test`.

pub mod entries;
