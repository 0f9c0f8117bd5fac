#![allow(clippy::unwrap_used)]
use super::*;

fn model(version: u64) -> PathBuf {
    let folder = format!("../tests/models/digits/v{version}");
    Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)
}

/// A copy of version 1 that a test may spoil.
fn copy_of_v1() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in files::names_in(&model(1)).unwrap() {
        fs::copy(model(1).join(&name), folder.path().join(&name)).unwrap();
    }
    folder
}

fn refusal(folder: &Path) -> String {
    let out = folder.join("out");
    let error = pack(&PackRequest::new(folder), &out).unwrap_err();
    assert!(!out.exists(), "nothing is left behind");
    error.to_string()
}

fn edit(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{from}");
    fs::write(file, text.replacen(from, to, 1)).unwrap();
}

#[test]
fn the_committed_models_pack_and_open_again() {
    let out = tempfile::tempdir().unwrap();
    for version in 1..=3 {
        let dir = out.path().join(version.to_string());
        let (packed, examined) = pack(&PackRequest::new(model(version)), &dir).unwrap();
        assert!(
            matches!(examined.report, TrialReport::Passed { cases: 12, .. }),
            "{examined:?}"
        );
        let opened = PackedBundle::open(&dir).unwrap();
        assert_eq!(opened.manifest, packed.manifest);
        assert_eq!(opened.target, packed.target);
        assert_eq!(opened.manifest.version, version);
        assert_eq!(
            opened.target.path,
            format!("digits/{version}/manifest.json")
        );
        assert_eq!(opened.digest(), Digest::of(&opened.manifest_bytes));
        let model = &opened.manifest.files.model;
        let unpacked = {
            let (digest, _) = model.transport();
            let travels = fs::read(dir.join("blobs").join(digest.to_string())).unwrap();
            match model.packed {
                Some(_) => zstd::decode_all(&travels[..]).unwrap(),
                None => travels,
            }
        };
        assert_eq!(Digest::of(&unpacked), model.sha256);
    }
}

#[test]
fn a_model_behind_steps_packs_and_a_step_that_does_not_fit_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/models");
    for name in ["bundle.toml", "golden.json"] {
        fs::copy(
            models.join("digits-png").join(name),
            folder.path().join(name),
        )
        .unwrap();
    }
    fs::copy(
        models.join("digits/v2/model.onnx"),
        folder.path().join("model.onnx"),
    )
    .unwrap();
    let spec = folder.path().join("bundle.toml");
    edit(&spec, "../digits/v2/model.onnx", "model.onnx");
    let (packed, examined) =
        pack(&PackRequest::new(folder.path()), &folder.path().join("b")).unwrap();
    assert!(
        matches!(examined.report, TrialReport::Passed { cases: 6, .. }),
        "{examined:?}"
    );
    assert_eq!(packed.manifest.steps.pre.len(), 4);
    edit(&spec, "height = 8, width = 8", "height = 8, width = 9");
    let problem = refusal(folder.path());
    assert!(
        problem.contains(
            "steps.pre[3] reshape: expected as many elements as [1, 64], got FP32 [8, 9, 1]"
        ),
        "{problem}"
    );
}

#[test]
fn packing_twice_gives_the_same_bundle() {
    let out = tempfile::tempdir().unwrap();
    let request = PackRequest::new(model(2).join("bundle.toml"));
    let (one, _) = pack(&request, &out.path().join("one")).unwrap();
    let (two, _) = pack(&request, &out.path().join("two")).unwrap();
    assert_eq!(one.target, two.target);
    let again = pack(&request, &out.path().join("one")).unwrap_err();
    assert!(matches!(again, PackError::OutExists(_)), "{again}");
}

#[test]
fn golden_outputs_that_the_engine_does_not_meet_are_refused_by_case() {
    let folder = copy_of_v1();
    edit(
        &folder.path().join("golden.json"),
        "0.9472418470926067",
        "0.85",
    );
    let problem = refusal(folder.path());
    assert!(
        problem.contains("(golden)") && problem.contains("validation row 0"),
        "{problem}"
    );
}

#[test]
fn what_is_no_onnx_is_refused() {
    let folder = copy_of_v1();
    fs::write(
        folder.path().join("model.onnx"),
        b"GIF89a, surely not a graph",
    )
    .unwrap();
    let problem = refusal(folder.path());
    assert!(
        problem.contains("model.onnx") && problem.contains("(load)"),
        "{problem}"
    );
}

#[test]
fn documents_must_fit_the_manifest() {
    let folder = copy_of_v1();
    edit(
        &folder.path().join("bundle.toml"),
        "shape = [1, 64]",
        "shape = [1, 63]",
    );
    let problem = refusal(folder.path());
    assert!(problem.contains("expected 63 values, got 64"), "{problem}");

    let folder = copy_of_v1();
    edit(
        &folder.path().join("profile.json"),
        "\"index\":0",
        "\"index\":64",
    );
    let problem = refusal(folder.path());
    assert!(problem.contains("has no element 64"), "{problem}");
}

#[test]
fn a_spec_says_where_it_is_wrong() {
    for (from, to, says) in [
        ("family = \"digits\"", "famly = \"digits\"", "famly"),
        ("family = \"digits\"", "family = \"a/b\"", "not allowed"),
        ("version = 1", "version = 0", "version"),
        (
            "rollback_floor = 1",
            "rollback_floor = 2",
            "above version 1",
        ),
        ("hardware = [\"any\"]", "hardware = []", "hardware is empty"),
        (
            "model = \"model.onnx\"",
            "model = \"none.onnx\"",
            "none.onnx",
        ),
        (
            "tolerance_abs = 0.0001",
            "tolerance_abs = nan",
            "tolerance_abs",
        ),
    ] {
        let folder = copy_of_v1();
        edit(&folder.path().join("bundle.toml"), from, to);
        let problem = refusal(folder.path());
        assert!(problem.contains(says), "{to}: {problem}");
    }
}

#[test]
fn a_bundle_changed_after_packing_is_noticed() {
    let out = tempfile::tempdir().unwrap();
    let dir = out.path().join("b");
    let (packed, _) = pack(&PackRequest::new(model(1)), &dir).unwrap();
    let (_, _, blob) = packed.blobs().remove(0);
    let mut bytes = fs::read(&blob).unwrap();
    bytes[7] ^= 1;
    fs::write(&blob, &bytes).unwrap();
    let problem = PackedBundle::open(&dir).unwrap_err().to_string();
    assert!(
        problem.contains("expected") && problem.contains("pack it again"),
        "{problem}"
    );
    bytes.extend([0; 9]);
    fs::write(&blob, &bytes).unwrap();
    assert!(PackedBundle::open(&dir).is_err());
}
