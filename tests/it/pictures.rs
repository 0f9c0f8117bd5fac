//! A folder of pictures and one of raw numbers: cameras and programs that only write files get
//! answers from models behind signed steps and from ones without.

#![allow(clippy::unwrap_used, clippy::panic)]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dunlin::api::CreateRollout;
use dunlin::pack::{PackRequest, pack};
use dunlin_agent::config::Settings;
use dunlin_protocol::command::Probation;
use dunlin_tests::fleet::{Fleet, FleetBuilder};
use dunlin_tests::operator::{all_at_once, eventually};
use serde_json::Value;
use std::path::{Path, PathBuf};

const PROGRAM: &str = env!("CARGO_BIN_EXE_dunlin-under-test");
/// 64 pixels of 0 to 16, then the label.
const FIELD: &[u8] = include_bytes!("../models/digits/field.bin");

fn models(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("models")
        .join(path)
}

async fn install(fleet: &mut Fleet, recipe: &str) {
    let out = fleet.dir.path().join(recipe.replace('/', "-"));
    let packed = pack(&PackRequest::new(models(recipe)), &out).unwrap().0;
    let manifest = packed.manifest.clone();
    fleet.operator.publish(&packed).await.unwrap();
    let request = CreateRollout {
        family: manifest.family,
        version: manifest.version,
        policy: Some(all_at_once(1)),
        selector: None,
        probation: Some(Probation {
            inferences: 0,
            time_ms: 0,
            ..Probation::default()
        }),
    };
    let client = fleet.operator.client();
    let id = client.create_rollout(&request).await.unwrap().id;
    fleet.operator.ended(&id).await.unwrap();
}

/// The golden cases: a picture as a file has it, and the digits that it may be, the likeliest first.
fn pictures() -> Vec<(Vec<u8>, Value)> {
    let text = std::fs::read_to_string(models("digits-png/golden.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    let case = |case: &Value| {
        let base64 = case["inputs"]["image"]["base64"][0].as_str().unwrap();
        let picture = STANDARD.decode(base64).unwrap();
        (picture, case["outputs"]["digit"].clone())
    };
    cases.iter().map(case).collect()
}

/// Waits for so many results, and gives them by the names of their files.
async fn results(path: &Path, wanted: usize) -> Vec<Value> {
    eventually("results", async || {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        // The last line may be half written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let lines: Vec<Value> = whole
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()?;
        Ok(if lines.len() >= wanted {
            Ok(lines)
        } else {
            Err(text)
        })
    })
    .await
    .unwrap()
}

fn output<'a>(result: &'a Value, name: &str) -> &'a Value {
    let outputs = result["outputs"].as_array().unwrap();
    let found = outputs.iter().find(|output| output["name"] == name);
    &found.unwrap_or_else(|| panic!("no {name}: {result}"))["data"]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pictures_and_raw_numbers_in_folders_are_answered() {
    let mut fleet = FleetBuilder::new(PROGRAM).boot().await.unwrap();
    install(&mut fleet, "digits-png/bundle.toml").await;
    install(&mut fleet, "digits/v1/bundle.toml").await;
    fleet.devices[0].stop().await.unwrap();
    let dir = fleet.dir.path().to_owned();
    let (camera, numbers) = (dir.join("camera"), dir.join("numbers"));
    let (seen, counted) = (dir.join("seen.jsonl"), dir.join("counted.jsonl"));
    for folder in [&camera, &numbers] {
        std::fs::create_dir_all(folder).unwrap();
    }
    let pictures = pictures();
    for (n, (picture, _)) in pictures.iter().enumerate() {
        let extension = if picture.starts_with(b"\x89PNG") {
            "png"
        } else {
            "jpg"
        };
        std::fs::write(camera.join(format!("{n:02}.{extension}")), picture).unwrap();
    }
    // Cut off in the middle, as by a camera that lost its power; and no picture at all.
    let cut = &pictures[1].0[..pictures[1].0.len() / 2];
    std::fs::write(camera.join("98-cut.png"), cut).unwrap();
    std::fs::write(camera.join("99-text.jpg"), b"not a picture").unwrap();
    let mut labels = Vec::new();
    for (n, row) in FIELD.chunks_exact(65).take(20).enumerate() {
        let raw: Vec<u8> = row[..64]
            .iter()
            .flat_map(|p| f32::from(*p).to_le_bytes())
            .collect();
        std::fs::write(numbers.join(format!("{n:02}.raw")), raw).unwrap();
        labels.push(row[64]);
    }
    std::fs::write(numbers.join("90-short.raw"), [0; 255]).unwrap();

    let text = std::fs::read_to_string(dir.join("dev-01/agent.toml")).unwrap()
        + &format!(
            "[[pipelines]]\nname = \"camera\"\nsource = \"folder:{}\"\nmodel = \"digits-png\"\nsink = \"file:{}\"\n\
             [[pipelines]]\nname = \"numbers\"\nsource = \"folder:{}\"\nmodel = \"digits\"\nsink = \"file:{}\"\n",
            camera.display(),
            seen.display(),
            numbers.display(),
            counted.display()
        );
    let settings = Settings::parse(&text, Path::new("agent.toml"));
    fleet.devices[0].settings = settings.unwrap_or_else(|e| panic!("{e}"));
    fleet.start_device(0).unwrap();

    let lines = results(&seen, pictures.len()).await;
    for (line, (n, (_, digits))) in lines.iter().zip(pictures.iter().enumerate()) {
        let id = line["id"].as_str().unwrap();
        assert!(id.starts_with(&format!("{n:02}.")), "{id}");
        assert_eq!(output(line, "digit"), digits, "{id}");
    }
    let lines = results(&counted, labels.len()).await;
    let right = lines.iter().zip(&labels).filter(|(line, label)| {
        let scores = output(line, "probabilities").as_array().unwrap();
        let score = |n: usize| scores[n].as_f64().unwrap();
        (0..10).all(|n| score(n) <= score(usize::from(**label)))
    });
    // It errs in a few of a hundred.
    let right = right.count();
    assert!(right >= 18, "{right} of 20");
    for bad in [
        camera.join("failed/98-cut.png"),
        camera.join("failed/99-text.jpg"),
        numbers.join("failed/90-short.raw"),
    ] {
        eventually("a bad file is put aside", async || {
            Ok(if bad.exists() {
                Ok(())
            } else {
                Err(bad.display().to_string())
            })
        })
        .await
        .unwrap();
    }
    assert_eq!(results(&seen, 0).await.len(), pictures.len());
    assert_eq!(results(&counted, 0).await.len(), labels.len());
    fleet.end().await.unwrap();
}
