#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;
use std::io::Cursor;

fn rebuild(base: &[u8], patch: &[u8], max: u64) -> Result<Vec<u8>, PatchError> {
    let mut out = Vec::new();
    let limits = Limits {
        target_max_bytes: max,
    };
    apply(&mut Cursor::new(base), &mut &patch[..], &mut out, &limits)?;
    Ok(out)
}

fn digits(version: u8) -> Vec<u8> {
    let path = format!(
        "{}/../tests/models/digits/v{version}/model.onnx",
        env!("CARGO_MANIFEST_DIR")
    );
    std::fs::read(path).unwrap()
}

#[test]
fn real_models_come_back() {
    for (from, to) in [(1, 2), (2, 3), (3, 2), (2, 2), (3, 1)] {
        let (base, target) = (digits(from), digits(to));
        let made = make(&base, &target, &Options::default()).unwrap();
        println!(
            "v{from} to v{to}: {} bytes, {:?}",
            made.patch.len(),
            made.shares
        );
        assert_eq!(rebuild(&base, &made.patch, 1 << 20).unwrap(), target);
    }
}
