//! The all-in-one binary under test: agents' workers, and whole processes that tests kill.

use std::process::ExitCode;

fn main() -> ExitCode {
    // A second call in one process finds the provider installed, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    dunlin::run(std::env::args_os().collect())
}
