//! The processing steps against what Pillow, NumPy, scikit-learn and torchvision's rules gave, from the
//! committed cases (`tests/peers/steps/make_fixtures.py`).

use crate::cases::Case;
use std::path::{Path, PathBuf};

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/inference/steps");
    let entries = std::fs::read_dir(folder).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn every_committed_case_is_met() {
    let mut count = 0;
    let mut failed = Vec::new();
    for file in files() {
        let text = std::fs::read(&file).unwrap();
        let cases: Vec<Case> = serde_json::from_slice(&text).unwrap();
        assert!(!cases.is_empty(), "{}", file.display());
        count += cases.len();
        for case in &cases {
            if let Err(problem) = case.run() {
                failed.push(format!("{} {}: {problem}", file.display(), case.name));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(count >= 100, "only {count} cases");
}
