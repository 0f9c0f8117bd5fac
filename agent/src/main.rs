//! The device agent's binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    dunlin_agent::cli::main_with(&[], std::env::args_os())
}
