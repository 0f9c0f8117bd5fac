//! A version in the shadow of the one that serves.

use super::*;
use dunlin_protocol::command::Shadow;
use dunlin_protocol::report::ShadowReport;

async fn shadow(worker: &Running, slot: &Slot, rules: Shadow) {
    let order = ToWorker::Shadow {
        slot: slot.path().to_owned(),
        bundle: slot.bundle(),
        rules,
    };
    worker.say.send(order).await.unwrap();
}

/// What is said of a bundle in the shadow once `enough` says so, while `ask` is asked.
async fn so_far(
    worker: &mut Running,
    slot: &Slot,
    enough: impl Fn(&ShadowReport) -> bool,
    bodies: &[Value],
) -> (ShadowReport, u64) {
    let mut asked = 0;
    let waits = async {
        for body in bodies.iter().cycle() {
            let (status, answer) = worker.infer(body).await;
            assert_eq!(status, StatusCode::OK, "{answer}");
            asked += 1;
            while let Ok(word) = worker.hear.try_recv() {
                if let FromWorker::Shadowed { bundle, so_far } = word
                    && bundle == slot.bundle()
                    && enough(&so_far)
                {
                    return so_far;
                }
            }
        }
        unreachable!("there are bodies");
    };
    let said = timeout(PATIENCE, waits).await.unwrap();
    (said, asked)
}

/// A request for each golden case, with the right answer as its label.
fn labelled(slot: &Slot) -> Vec<Value> {
    let golden = slot.json("golden.json");
    let cases = golden["cases"].as_array().unwrap().len();
    let labels: Vec<String> = toml::from_str::<toml::Table>(
        &std::fs::read_to_string(slot.path().join("bundle.toml")).unwrap(),
    )
    .unwrap()["labels"]
        .clone()
        .try_into()
        .unwrap();
    let case = |at: usize| {
        let (data, wanted) = pixels(slot, at);
        let best = (0..wanted.len()).max_by(|a, b| wanted[*a].total_cmp(&wanted[*b]));
        let mut body = request(&data);
        body["parameters"] = json!({"label": labels[best.unwrap()]});
        body
    };
    (0..cases).map(case).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_challenger_is_compared_off_the_way_and_answers_nobody() {
    // Version 3 is the one that does worse.
    let (serving, challenger) = (Slot::of(1), Slot::of(3));
    let mut worker = Running::start(60_000).await;
    worker.activate(&serving).await;
    let rules = Shadow {
        sample_permille: 1000,
        cpu_permille: 1000,
        ..Shadow::default()
    };
    shadow(&worker, &challenger, rules).await;
    let bodies = labelled(&serving);
    let (said, asked) = so_far(&mut worker, &challenger, |s| s.compared >= 100, &bodies).await;
    assert!(
        said.compared + said.passed_over <= asked,
        "{said:?} of {asked}"
    );
    assert!(said.agreed <= said.compared && said.failed == 0, "{said:?}");
    // The labels are what the serving version says: it never loses.
    assert_eq!(
        (said.won, said.lost),
        (0, said.compared - said.agreed),
        "{said:?}"
    );
    assert!(
        said.latency_us > 0 && said.serving_latency_us > 0,
        "{said:?}"
    );
    // The serving version in its own shadow, so to speak.
    let twin = Slot::of(1);
    twin.sign(|manifest| manifest.version = 9);
    shadow(&worker, &twin, rules).await;
    let (said, _) = so_far(&mut worker, &twin, |s| s.compared >= 50, &bodies).await;
    assert_eq!((said.agreed, said.lost), (said.compared, 0), "{said:?}");
    let family = "digits".parse().unwrap();
    worker
        .say
        .send(ToWorker::EndShadow { family })
        .await
        .unwrap();
    let (_, metadata) = worker.ask(Method::GET, "/v2/models/digits", "").await;
    assert_eq!(metadata["versions"], json!(["1"]));
    let (windows, _) = worker.drain().await;
    assert!(windows.iter().all(|w| w.bundle == serving.bundle()));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_sample_is_compared_and_only_within_its_computing_time() {
    let (serving, challenger) = (Slot::of(1), Slot::of(2));
    let mut worker = Running::start(60_000).await;
    worker.activate(&serving).await;
    let bodies = labelled(&serving);
    let sampled = Shadow {
        sample_permille: 100,
        cpu_permille: 1000,
        ..Shadow::default()
    };
    shadow(&worker, &challenger, sampled).await;
    let (said, asked) = so_far(&mut worker, &challenger, |s| s.compared >= 20, &bodies).await;
    let offered = said.compared + said.passed_over;
    assert!(offered <= asked / 10 + 1, "{said:?} of {asked}");
    // Without any computing time all is passed over.
    let starved = Slot::of(3);
    let none = Shadow {
        sample_permille: 1000,
        cpu_permille: 0,
        ..Shadow::default()
    };
    shadow(&worker, &starved, none).await;
    let (said, _) = so_far(&mut worker, &starved, |s| s.passed_over >= 20, &bodies).await;
    assert_eq!(said.compared, 0, "{said:?}");
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_challenger_that_cannot_be_loaded_says_why() {
    let (serving, bad) = (Slot::of(1), Slot::of(2));
    bad.write("model.onnx", b"nonsense");
    bad.sign(|_| ());
    let mut worker = Running::start(60_000).await;
    worker.activate(&serving).await;
    shadow(&worker, &bad, Shadow::default()).await;
    match worker.word().await {
        FromWorker::ActivateFailed { bundle, detail, .. } => {
            assert_eq!(bundle, bad.bundle());
            assert!(detail.contains("model.onnx"), "{detail}");
        }
        word => panic!("{word:?}"),
    }
    worker.drain().await;
}
