#![allow(clippy::unwrap_used)]
use super::*;
use crate::args::{Cli, Command};
use clap::Parser;

fn create(line: &str) -> Result<CreateRollout, Failure> {
    let line = format!("dunlin rollout create {line}");
    let Command::Rollout(args) = Cli::try_parse_from(line.split_whitespace())
        .unwrap()
        .command
    else {
        unreachable!("a rollout line");
    };
    match &args.action {
        RolloutAction::Create(create) => request(create),
        other => unreachable!("{other:?}"),
    }
}

#[test]
fn stages_are_read_as_counts_shares_and_rest() {
    let wanted = create("digits 2 --stage 3 --stage 50% --stage rest --soak 60s --seed 7").unwrap();
    let policy = wanted.policy.unwrap();
    let names: Vec<&str> = policy.stages.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["canary", "50%", "rest"]);
    assert_eq!(policy.stages[0].size, StageSize::Count(3));
    assert!(policy.stages.iter().all(|s| s.soak_ms == 60_000));
    assert_eq!(policy.seed, 7);
    assert!(policy.gate.is_some());
    assert_eq!(wanted.probation, None);
}

#[test]
fn a_first_version_goes_to_all_without_a_gate() {
    let wanted =
        create("digits 1 --stage rest --no-gate --soak 0s --probation-inferences 5").unwrap();
    let policy = wanted.policy.unwrap();
    assert_eq!(policy.stages.len(), 1);
    assert_eq!(policy.gate, None);
    assert_eq!(wanted.probation.unwrap().inferences, 5);
}

#[test]
fn a_policy_that_cannot_work_is_refused_here_already() {
    for (line, word) in [
        ("digits 2 --stage many", "expected a number"),
        ("digits 2 --stage 50% --stage 20%", "adds no device"),
        ("digits 2 --stage 2", "min_canaries"),
        ("no/name 2", "not allowed"),
    ] {
        let failure = create(line).unwrap_err();
        assert!(failure.message.contains(word), "{line}: {failure}");
        assert_eq!(failure.exit, Exit::Usage);
    }
}

#[test]
fn options_change_what_a_policy_file_says() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policy.json");
    std::fs::write(&file, r#"{"seed":9,"silence_ms":5000}"#).unwrap();
    let line = format!("digits 2 --policy {} --no-gate", file.display());
    let policy = create(&line).unwrap().policy.unwrap();
    assert_eq!(
        (policy.seed, policy.silence_ms, policy.gate),
        (9, 5000, None)
    );
    std::fs::write(&file, r#"{"stags":[]}"#).unwrap();
    assert!(create(&line).unwrap_err().message.contains("stags"));
}

#[test]
fn each_end_has_its_exit_status() {
    let state = |json: Value| serde_json::from_value::<RolloutState>(json).unwrap();
    let status = |json| outcome(&state(json)).map(Exit::status);
    assert_eq!(status(json!({"state": "running", "stage": 0})), None);
    assert_eq!(status(json!({"state": "finished"})), Some(0));
    assert_eq!(status(json!({"state": "aborted", "why": "x"})), Some(4));
    let why = json!({"code": "operator", "why": "x"});
    assert_eq!(
        status(json!({"state": "paused", "stage": 0, "why": why})),
        Some(3)
    );
    let why = json!({"code": "errors", "stage_name": "canary", "errors": 2, "total": 3, "threshold": "1/10"});
    assert_eq!(
        status(json!({"state": "stopped", "stage": 0, "why": why})),
        Some(2)
    );
}

#[test]
fn a_rollout_is_shown_with_counts_reasons_and_verdict_numbers() {
    let counts = json!({"waiting": 0, "assigned": 0, "working": 1, "probation": 0, "succeeded": 2, "failed": 0,
        "rejected": 0, "rolled_back": 0, "timed_out": 0, "not_started": 0, "cancelled": 0});
    let verdict = json!({"decision": "pass", "reason": "nothing fell behind", "canaries": ["a"], "controls": ["b"],
        "shortages": [], "input_sha256": "00", "metrics": [{"name": "confidence", "canary_mean": 0.01, "control_mean": 0.012,
        "effect": -0.002, "margin": 0.05, "p_value": 0.4, "p": {"num": 2, "den": 5}, "alpha": "1/100", "exact": true,
        "is_significant": false, "is_beyond_margin": false}]});
    let rollout = json!({"id": "r-1", "family": "digits", "version": 2, "state": {"state": "running", "stage": 0},
        "report": {"state": {"state": "running", "stage": 0}, "stages": [{"name": "canary", "total": 3, "counts": counts}],
            "reasons": [{"code": "waiting_for_devices", "sentence": "1 device of canary has not reported its end"}],
            "gate_request": null, "verdict": null},
        "devices": []});
    let mut rollout: RolloutView = serde_json::from_value(rollout).unwrap();
    let text = show(&rollout);
    assert!(
        text.contains("running stage 0") && text.contains("has not reported"),
        "{text}"
    );
    assert!(verdicts(&rollout).is_empty());
    let kept = json!([{"at_ms": 5, "judged": {"stage": 0, "policy": {}, "verdict": verdict}}]);
    rollout.other.insert("verdicts".to_owned(), kept);
    let text = show(&rollout);
    assert!(text.contains("gate after canary: pass"), "{text}");
    assert!(text.contains("-0.0020"), "{text}");
}

#[test]
fn an_early_look_is_shown_while_it_goes_on_and_when_it_stops() {
    let state = json!({"state": "running", "stage": 0});
    let early = json!({"decision": "insufficient", "reason": "too few devices for an early look: 12 of 20 pairs", "pairs": 12,
        "pairs_min": 20, "canaries": 14, "controls": 12, "evidence": null, "input_sha256": "00"});
    let counts = json!({"waiting": 0, "assigned": 0, "working": 0, "probation": 0, "succeeded": 25, "failed": 0,
        "rejected": 0, "rolled_back": 0, "timed_out": 0, "not_started": 0, "cancelled": 0});
    let rollout = json!({"id": "r-1", "family": "digits", "version": 2, "state": state,
        "report": {"state": state, "stages": [{"name": "canary", "total": 25, "counts": counts}], "reasons": [],
            "gate_request": null, "verdict": null, "early": early},
        "devices": []});
    let mut rollout: RolloutView = serde_json::from_value(rollout).unwrap();
    let text = show(&rollout);
    assert!(
        text.contains("- too few devices for an early look: 12 of 20"),
        "{text}"
    );
    let mut stopped = early;
    stopped["decision"] = "stop".into();
    stopped["reason"] = "22 pairs: p 0.0001 <= 1/200".into();
    rollout.report.as_mut().unwrap().early = None;
    let kept = json!([{"at_ms": 5, "judged": {"stage": 0, "policy": {}, "verdict": stopped}}]);
    rollout.other.insert("verdicts".to_owned(), kept);
    let text = show(&rollout);
    assert!(
        text.contains("early look at canary: STOP: 22 pairs"),
        "{text}"
    );
    assert!(verdicts(&rollout).is_empty(), "no gate has judged");
}

#[test]
fn the_early_look_is_on_unless_it_is_switched_off() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policy.json");
    std::fs::write(&file, r#"{"seed":9,"gate":{"alpha":"1/25"}}"#).unwrap();
    let of_file = format!("digits 2 --policy {}", file.display());
    for (line, alpha) in [("digits 2", "1/200"), (of_file.as_str(), "1/100")] {
        let early = |line: &str| {
            let policy = create(line).unwrap().policy.unwrap();
            policy.gate.unwrap().early
        };
        assert_eq!(early(line).unwrap().alpha.to_string(), alpha);
        assert_eq!(early(&format!("{line} --no-early")), None);
    }
}

#[test]
fn a_shadow_is_shown_with_its_evidence() {
    let shadowed = |won, lost, differ_e, inferior_e| Shadowed {
        devices: 3,
        compared: 900,
        agreed: 850,
        won,
        lost,
        failed: 1,
        passed_over: 2,
        differ_e,
        inferior_e,
        latency_us: 90,
        serving_latency_us: 70,
    };
    let text = shadow_text(&shadowed(20, 5, 24.3, 0.1));
    assert!(
        text.contains("850 of 900 answers agree on 3 devices"),
        "{text}"
    );
    assert!(text.contains("it is better"), "{text}");
    let text = shadow_text(&shadowed(5, 20, 24.3, 40.0));
    assert!(text.contains("it is worse"), "{text}");
    let text = shadow_text(&shadowed(5, 6, 0.3, 1.2));
    assert!(text.contains("not enough to say"), "{text}");
    assert!(!shadow_text(&shadowed(0, 0, 1.0, 1.0)).contains("labelled"));
}
