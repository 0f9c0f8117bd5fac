//! Detectors on what a served model answers.

use super::*;
use dunlin_agent::detect::watch::{Detection, Watch};

/// What was said of the detectors.
#[derive(Default)]
struct Said {
    detected: Vec<(Digest, Detection)>,
    state: Option<(Digest, Box<Watch>)>,
}

impl Said {
    fn take(&mut self, word: FromWorker) {
        match word {
            FromWorker::Detected {
                bundle, detection, ..
            } => self.detected.push((bundle, detection)),
            FromWorker::Detectors { bundle, state } => self.state = Some((bundle, state)),
            _ => {}
        }
    }

    /// Takes what there is, so that the worker is never held up.
    fn take_all(&mut self, worker: &mut Running) {
        while let Ok(word) = worker.hear.try_recv() {
            self.take(word);
        }
    }

    /// Waits a moment for a word: what is asked at full speed is over before the detectors' next turn.
    async fn take_one(&mut self, worker: &mut Running) {
        if let Ok(Some(word)) = timeout(Duration::from_millis(5), worker.hear.recv()).await {
            self.take(word);
        }
    }

    async fn take_last(&mut self, mut worker: Running) {
        worker.say.send(ToWorker::Drain).await.unwrap();
        while let Some(word) = timeout(PATIENCE, worker.hear.recv()).await.unwrap() {
            self.take(word);
        }
        worker.task.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_told_and_what_the_detectors_know_outlives_the_worker() {
    let slot = Slot::of(2);
    let mut worker = Running::start(60_000).await;
    worker.activate(&slot).await;
    let usual: Vec<Value> = (0..12)
        .map(|case| request(&pixels(&slot, case).0))
        .collect();
    let grey = request(&json!(vec![8.0; 64]));
    let mut said = Said::default();
    let mut asked = 0_u64;
    for at in 0..300 {
        let (status, answer) = worker.infer(&usual[at % usual.len()]).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        asked += 1;
        said.take_all(&mut worker);
    }
    assert_eq!(said.detected, [], "nothing has changed yet");
    while said.detected.is_empty() {
        assert!(asked < 3000, "a camera that sees grey was not noticed");
        let (status, answer) = worker.infer(&grey).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        asked += 1;
        said.take_one(&mut worker).await;
    }
    let (bundle, detection) = said.detected[0];
    assert_eq!(bundle, slot.bundle());
    assert!(detection.width > 0 && detection.estimate.is_finite());
    said.take_last(worker).await;
    let (bundle, state) = said.state.take().unwrap();
    assert_eq!((bundle, state.answers()), (slot.bundle(), asked));

    // Another worker goes on with it.
    let mut worker = Running::start(60_000).await;
    worker.activate(&slot).await;
    let resume = ToWorker::Resume { bundle, state };
    worker.say.send(resume).await.unwrap();
    // Commands are done in order: what was kept is taken up once this one is.
    worker.activate(&slot).await;
    worker.infer(&grey).await;
    said.take_last(worker).await;
    assert_eq!(said.state.unwrap().1.answers(), asked + 1);
}
