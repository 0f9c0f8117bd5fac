//! Samples that do not fit, at a device's inference socket.

use super::{fleet, goes_on, nothing_is_lost};
use dunlin_server::store::WindowQuery;
use dunlin_tests::fleet::Fleet;
use dunlin_tests::golden::{Golden, infer_body};
use dunlin_tests::http::{over_unix, request};
use serde_json::{Value, json};
use std::path::Path;

const INFER: &str = "/v2/models/digits/infer";

fn with(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut body = infer_body(&json!(vec![0.0; 64]));
    change(&mut body["inputs"][0]);
    body.to_string().into_bytes()
}

/// Sends a body and expects an error of this status that has these words; then a good sample
/// must be answered.
async fn refused(
    socket: &Path,
    good: &Golden,
    path: &str,
    body: &[u8],
    status: u16,
    words: &[&str],
) {
    let headers = [("content-type", "application/json")];
    let bytes = request("POST", path, &headers, body);
    let answer = over_unix(socket, &bytes).await.unwrap();
    assert_eq!(answer.status, status, "{words:?}: {}", answer.text());
    let told = answer.json()["error"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    for word in words {
        assert!(told.contains(word), "{word:?} is not in {told:?}");
    }
    assert_eq!(good.ask(socket).await, Ok(Some(1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn samples_that_do_not_fit_are_refused_and_counted_nowhere() {
    let mut fleet = fleet(1).await;
    let socket = fleet.devices[0].settings.inference.socket.clone();
    let good = Golden::read(&fleet.dir.path().join("models"), &[1]).unwrap();
    let mut checks = 0;
    let mut check = async |path: &str, body: Vec<u8>, status: u16, words: &[&str]| {
        refused(&socket, &good, path, &body, status, words).await;
        checks += 1;
    };
    let shape = with(|input| input["shape"] = json!([1, 65]));
    check(INFER, shape, 400, &["pixels", "[1, 65]", "64"]).await;
    let short = with(|input| input["data"] = json!(vec![0.0; 63]));
    check(INFER, short, 400, &["pixels", "63", "64"]).await;
    let dtype = with(|input| input["datatype"] = json!("INT64"));
    check(INFER, dtype, 400, &["pixels", "FP32", "INT64"]).await;
    let words = with(|input| input["data"] = json!(vec!["a"; 64]));
    check(INFER, words, 400, &["pixels"]).await;
    let name = with(|input| input["name"] = json!("voxels"));
    check(INFER, name, 400, &["voxels", "pixels"]).await;
    let whole = with(|_| {});
    let half = whole[..whole.len() / 2].to_vec();
    check(INFER, half, 400, &["not an inference request", "EOF"]).await;
    let no_text = b"\xff\xfe".to_vec();
    check(INFER, no_text, 400, &["not an inference request"]).await;
    let unknown = "/v2/models/unknown/infer";
    check(unknown, whole.clone(), 404, &["unknown", "digits"]).await;
    let version = "/v2/models/digits/versions/9/infer";
    check(version, whole, 404, &["9"]).await;
    check(INFER, vec![b' '; 8 << 20], 413, &["bytes"]).await;

    let query = windows_of(&fleet);
    let windows = fleet.server().store.windows(&query).await.unwrap();
    let errors: u64 = windows.iter().map(|(_, w)| w.errors).sum();
    assert_eq!(errors, 0, "a client's mistake was taken for the model's");
    goes_on(&fleet).await;
    // Each check ended with one good sample, besides the device's own stream.
    nothing_is_lost(&mut fleet, checks).await;
    fleet.end().await.unwrap();
}

fn windows_of(fleet: &Fleet) -> WindowQuery {
    WindowQuery {
        family: fleet.operator.family.clone(),
        version: None,
        devices: None,
        since_ms: None,
        until_ms: None,
    }
}
