//! The fleet server's program; see [`dunlin_server::main_with`].

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    dunlin_server::main_with(std::env::args_os()).await
}
