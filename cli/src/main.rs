//! `dunlin`: the operator's tool and the all-in-one binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    dunlin::run(std::env::args_os().collect())
}
