//! Several models in one worker, and versions that replace each other under load.

use super::*;
use dunlin_agent::inference::turns::Rules;
use dunlin_protocol::bundle::TensorSpec;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

fn letters() -> Slot {
    let letters = Slot::of(2);
    letters.sign(|manifest| manifest.family = "letters".parse().unwrap());
    letters
}

/// Divides a hundred by what is sent.
fn dividing() -> Slot {
    let slot = Slot::of(1);
    std::fs::remove_file(slot.path().join("profile.json")).unwrap();
    slot.write("model.onnx", &onnx::dividing());
    let spec = |name: &str| TensorSpec {
        name: name.to_owned(),
        dtype: DType::INT32,
        shape: vec![1],
        layout: None,
    };
    slot.sign(|manifest| {
        manifest.family = "divides".parse().unwrap();
        (manifest.inputs, manifest.outputs) = (vec![spec("by")], vec![spec("quotient")]);
        manifest.labels = Vec::new();
        manifest.steps = Steps::default();
    });
    slot
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_still_being_loaded_may_be_asked_again() {
    let (digits, letters) = (Slot::of(1), letters());
    let mut worker = Running::start(60_000).await;
    let families = ["digits", "letters"].map(|family| family.parse().unwrap());
    let expect = ToWorker::Expect {
        families: families.into(),
    };
    worker.say.send(expect).await.unwrap();
    worker.activate(&digits).await;
    let (data, _) = pixels(&digits, 0);
    let status = async |model: &str| worker.infer_with(model, &request(&data)).await.0;
    assert_eq!(status("digits").await, StatusCode::OK);
    assert_eq!(status("letters").await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(status("others").await, StatusCode::NOT_FOUND);
    let (ready, told) = worker.ask(Method::GET, "/v2/health/ready", "").await;
    assert_eq!(ready, StatusCode::SERVICE_UNAVAILABLE, "{told}");
    worker.activate(&letters).await;
    let (ready, told) = worker.ask(Method::GET, "/v2/health/ready", "").await;
    assert_eq!(ready, StatusCode::OK, "{told}");
    let answered = worker.infer_with("letters", &request(&data)).await;
    assert_eq!(answered.0, StatusCode::OK);
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn families_are_served_side_by_side_and_dropped_one_by_one() {
    let (digits, letters) = (Slot::of(1), letters());
    let mut worker = Running::start(60_000).await;
    worker.activate(&digits).await;
    worker.activate(&letters).await;
    let (_, index) = worker.ask(Method::POST, "/v2/repository/index", "{}").await;
    let names = index.as_array().unwrap().iter().map(|m| m["name"].clone());
    assert_eq!(names.collect::<Vec<_>>(), ["digits", "letters"]);
    let (data, _) = pixels(&digits, 0);
    for model in ["digits", "letters"] {
        let (status, answer) = worker.infer_with(model, &request(&data)).await;
        assert_eq!(
            (status, &answer["model_name"]),
            (StatusCode::OK, &json!(model))
        );
    }
    let family = "digits".parse().unwrap();
    let drop = ToWorker::Deactivate { family };
    worker.say.send(drop).await.unwrap();
    // Commands are carried out in order.
    worker.activate(&letters).await;
    let (status, answer) = worker.infer(&request(&data)).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(
        answer["error"],
        "model \"digits\" is not served here; served: letters"
    );
    let (status, _) = worker.infer_with("letters", &request(&data)).await;
    assert_eq!(status, StatusCode::OK);
    let (windows, progress) = worker.drain().await;
    let of = |slot: &Slot| {
        let windows = windows.iter().filter(|w| w.bundle == slot.bundle());
        windows.map(|w| w.inferences).sum::<u64>()
    };
    assert_eq!((of(&digits), of(&letters)), (1, 2));
    assert!(
        progress.contains(&(digits.bundle(), 1, 0)),
        "what is dropped says its last word"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_fails_leaves_the_others_serving() {
    let (digits, divides) = (Slot::of(1), dividing());
    let mut worker = Running::start(60_000).await;
    worker.activate(&digits).await;
    worker.activate(&divides).await;
    let (data, _) = pixels(&digits, 0);
    let by = |n: i32| json!({"inputs": [{"name": "by", "datatype": "INT32", "shape": [1], "data": [n]}]});
    for _ in 0..20 {
        let (status, answer) = worker.infer_with("divides", &by(4)).await;
        assert_eq!(
            (status, &answer["outputs"][0]["data"]),
            (StatusCode::OK, &json!([25]))
        );
        let (status, answer) = worker.infer_with("divides", &by(0)).await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR, "{answer}");
        let (status, _) = worker.infer(&request(&data)).await;
        assert_eq!(status, StatusCode::OK);
    }
    let (_, progress) = worker.drain().await;
    assert!(
        progress.contains(&(divides.bundle(), 20, 20)),
        "{progress:?}"
    );
    assert!(progress.contains(&(digits.bundle(), 20, 0)), "{progress:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_and_says_which() {
    let rules = Rules {
        queue: 0,
        concurrency: Some(1),
        ..Rules::default()
    };
    let rules = [("digits".to_owned(), rules)].into();
    let (slot, letters) = (Slot::of(1), letters());
    let mut worker = Running::start_with(60_000, |args| {
        args.rules = Some(inference::ModelRules(rules))
    })
    .await;
    worker.activate(&slot).await;
    worker.activate(&letters).await;
    let (data, _) = pixels(&slot, 0);
    let body = request(&data).to_string();
    let (refused, answered) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..12 {
        let (socket, body) = (worker.socket.clone(), body.clone());
        let (refused, answered) = (Arc::clone(&refused), Arc::clone(&answered));
        clients.spawn(async move {
            let model = if client % 4 == 0 { "letters" } else { "digits" };
            // Until it is seen, and for as long as that takes.
            while refused.load(Ordering::SeqCst) == 0 || answered.load(Ordering::SeqCst) == 0 {
                let path = format!("/v2/models/{model}/infer");
                let (status, answer) = ask(&socket, Method::POST, &path, body.clone()).await;
                if status == StatusCode::SERVICE_UNAVAILABLE {
                    let expected = "model digits: 0 requests wait for it already (inference.models, queue); try again later";
                    assert_eq!(answer["error"], expected);
                    refused.fetch_add(1, Ordering::SeqCst);
                } else {
                    assert_eq!(status, StatusCode::OK, "{answer}");
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
    }
    timeout(PATIENCE, async {
        while let Some(done) = clients.join_next().await {
            done.unwrap()
        }
    })
    .await
    .unwrap();
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_hot_swaps_under_load_lose_no_request_and_no_count() {
    const CLIENTS: usize = 8;
    const SWAPS: usize = 100;
    let slots = [Slot::of(1), Slot::of(2)];
    let mut worker = Running::start(50).await;
    worker.activate(&slots[0]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let (data, _) = pixels(&slots[0], client);
        let (socket, body) = (worker.socket.clone(), request(&data).to_string());
        let stop = Arc::clone(&stop);
        clients.spawn(async move {
            let mut versions = [0_u64; 2];
            while !stop.load(Ordering::SeqCst) {
                let path = "/v2/models/digits/infer";
                let (status, answer) = ask(&socket, Method::POST, path, body.clone()).await;
                assert_eq!(status, StatusCode::OK, "{answer}");
                match answer["model_version"].as_str() {
                    Some("1") => versions[0] += 1,
                    Some("2") => versions[1] += 1,
                    other => panic!("{other:?}"),
                }
            }
            versions
        });
    }
    for swap in 1..=SWAPS {
        worker.activate(&slots[swap % 2]).await;
        worker.say.send(ToWorker::Flush).await.unwrap();
    }
    stop.store(true, Ordering::SeqCst);
    let mut answered = [0_u64; 2];
    while let Some(versions) = clients.join_next().await {
        let versions = versions.unwrap();
        answered = [answered[0] + versions[0], answered[1] + versions[1]];
    }
    let (windows, _) = worker.drain().await;
    let counted = slots.each_ref().map(|slot| {
        let of_bundle = windows.iter().filter(|w| w.bundle == slot.bundle());
        of_bundle.map(|w| w.inferences).sum::<u64>()
    });
    assert_eq!(counted, answered);
    assert!(answered.iter().all(|&n| n > 0), "{answered:?}");
    assert!(windows.iter().all(|w| w.inferences == w.latency.total()));
    assert!(
        windows
            .iter()
            .all(|w| w.outputs.iter().sum::<u64>() == w.inferences)
    );
}
