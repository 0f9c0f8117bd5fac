//! The models of the demo and of the tests, as trained by `tests/models/train_digits.py`.

use anyhow::Context as _;
use std::path::{Path, PathBuf};

macro_rules! model_files {
    ($($version:literal),*) => {
        [$(
            ($version, [
                ("bundle.toml", include_bytes!(concat!("../../../tests/models/digits/", $version, "/bundle.toml")) as &[u8]),
                ("model.onnx", include_bytes!(concat!("../../../tests/models/digits/", $version, "/model.onnx"))),
                ("golden.json", include_bytes!(concat!("../../../tests/models/digits/", $version, "/golden.json"))),
                ("profile.json", include_bytes!(concat!("../../../tests/models/digits/", $version, "/profile.json"))),
                ("card.md", include_bytes!(concat!("../../../tests/models/digits/", $version, "/card.md"))),
            ]),
        )*]
    };
}
/// Name and content of a file.
type File = (&'static str, &'static [u8]);
const MODELS: [(&str, [File; 5]); 3] = model_files!("v1", "v2", "v3");

/// Writes one of the models (`v1`, `v2`, `v3`) as a folder that can be packed; its path.
///
/// # Errors
/// No such model, or the folder cannot be written.
pub fn write(model: &str, into: &Path) -> anyhow::Result<PathBuf> {
    let files = MODELS.iter().find(|(v, _)| *v == model).map(|(_, f)| f);
    let dir = into.join(model);
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    for (name, bytes) in files.with_context(|| format!("no model {model:?}"))? {
        std::fs::write(dir.join(name), bytes)?;
    }
    Ok(dir)
}
