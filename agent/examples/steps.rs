//! `steps FILE`: runs cases of processing steps and prints for each its name and the largest difference
//! from its reference, as a JSON line. Exit status 1 if one is not met. For `tests/peers/steps`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../tests/inference/cases.rs"]
mod cases;

use std::process::ExitCode;

fn main() -> ExitCode {
    let file = std::env::args_os().nth(1).expect("usage: steps FILE");
    let cases: Vec<cases::Case> = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let mut status = ExitCode::SUCCESS;
    for case in &cases {
        let line = match case.run() {
            Ok(difference) => serde_json::json!({"name": case.name, "difference": difference}),
            Err(problem) => {
                status = ExitCode::FAILURE;
                serde_json::json!({"name": case.name, "problem": problem})
            }
        };
        println!("{line}");
    }
    status
}
