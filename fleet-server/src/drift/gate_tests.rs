#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;
use proptest::prelude::*;

fn period(inferences: u64, confidence: f64, mix: &[u64]) -> Period {
    let total: u64 = mix.iter().sum();
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss
    )]
    let confidence_sum_micro = (inferences as f64 * confidence * 1e6) as u64;
    let outputs = mix
        .iter()
        .map(|weight| inferences * weight / total)
        .collect();
    Period {
        inferences,
        confidence_sum_micro,
        outputs,
    }
}

fn sample(name: &str, before: Period, after: Period) -> DeviceSample {
    DeviceSample {
        device: name.to_owned(),
        before,
        after,
    }
}

/// Three canaries and nine controls which all stay as they were, each a little different.
fn quiet() -> GateInput {
    let device = |index: u64| {
        #[allow(clippy::cast_precision_loss)]
        let confidence = 0.85 + 0.01 * index as f64;
        let mix = [4, 3 + index, 3];
        let after = period(210 + index, confidence - 0.001, &mix);
        sample(
            &format!("edge-{index:02}"),
            period(400, confidence, &mix),
            after,
        )
    };
    GateInput {
        canaries: (0..3).map(device).collect(),
        controls: (3..12).map(device).collect(),
    }
}

fn regress(input: &mut GateInput) {
    for canary in &mut input.canaries {
        canary.after = period(200, 0.35, &[1, 1, 18]);
    }
}

#[test]
fn a_version_that_changes_nothing_passes() {
    let verdict = judge(&GatePolicy::default(), &quiet());
    assert_eq!(verdict.decision, Decision::Pass, "{}", verdict.reason);
    assert_eq!(verdict.metrics.len(), 2);
    assert!(verdict.metrics.iter().all(|m| m.exact && m.p.den == 220));
}

#[test]
fn a_regression_is_stopped_by_both_metrics() {
    let mut input = quiet();
    regress(&mut input);
    let verdict = judge(&GatePolicy::default(), &input);
    assert_eq!(verdict.decision, Decision::Stop);
    for metric in &verdict.metrics {
        assert_eq!(metric.p, PValue { num: 1, den: 220 });
        assert!(
            metric.is_significant && metric.is_beyond_margin,
            "{metric:?}"
        );
        assert_eq!(metric.alpha, Ratio::percent(1));
    }
    assert!(
        verdict
            .reason
            .starts_with("3 canaries against 9 controls: confidence -0."),
        "{}",
        verdict.reason
    );
}

#[test]
fn what_happens_to_everybody_is_not_held_against_the_canaries() {
    let mut input = quiet();
    regress(&mut input);
    for control in &mut input.controls {
        control.after = period(200, 0.35, &[1, 1, 18]);
    }
    assert_eq!(
        judge(&GatePolicy::default(), &input).decision,
        Decision::Pass
    );
}

#[test]
fn a_significant_change_within_the_margin_passes() {
    let mut input = quiet();
    for canary in &mut input.canaries {
        canary.after.confidence_sum_micro = canary.after.confidence_sum_micro / 100 * 97;
    }
    let verdict = judge(&GatePolicy::default(), &input);
    assert!(verdict.metrics[0].is_significant, "{}", verdict.reason);
    assert_eq!(verdict.decision, Decision::Pass);
}

#[test]
fn a_canary_without_enough_data_holds_and_is_named() {
    let mut input = quiet();
    regress(&mut input);
    input.canaries[1].after = period(43, 0.3, &[1]);
    let verdict = judge(&GatePolicy::default(), &input);
    assert_eq!(verdict.decision, Decision::Hold);
    assert_eq!(verdict.reason, "canary edge-01 has 43 of 100 inferences");
    assert_eq!(verdict.metrics, []);
    input.canaries[1].before = Period::default();
    let verdict = judge(&GatePolicy::default(), &input);
    assert_eq!(
        verdict.reason,
        "canary edge-01 has no inferences on the version before"
    );
}

#[test]
fn a_control_without_enough_data_is_left_out_and_named() {
    let mut input = quiet();
    input.controls[0].before = Period::default();
    let verdict = judge(&GatePolicy::default(), &input);
    assert_eq!(verdict.decision, Decision::Pass);
    assert_eq!(verdict.shortages.len(), 1);
    assert_eq!(
        (verdict.shortages[0].device.as_str(), verdict.controls.len()),
        ("edge-03", 8)
    );
    for control in &mut input.controls {
        control.after = Period::default();
    }
    let verdict = judge(&GatePolicy::default(), &input);
    assert_eq!(verdict.decision, Decision::Hold);
    assert!(
        verdict.reason.contains("0 controls reach no p below 1/1"),
        "{}",
        verdict.reason
    );
    assert!(verdict.reason.contains("and 4 more"), "{}", verdict.reason);
}

#[test]
fn too_few_devices_hold() {
    let mut input = quiet();
    input.canaries.pop();
    let verdict = judge(&GatePolicy::default(), &input);
    assert_eq!(verdict.reason, "2 canaries, the policy needs 3");
    let mut input = quiet();
    input.controls.truncate(4);
    let verdict = judge(&GatePolicy::default(), &input);
    let expected = "3 canaries against 4 controls reach no p below 1/35, 1/100 is needed; more devices are needed";
    assert_eq!(
        (verdict.decision, verdict.reason.as_str()),
        (Decision::Hold, expected)
    );
}

#[test]
fn a_device_on_both_sides_holds() {
    let mut input = quiet();
    input.controls[0].device = "edge-00".to_owned();
    let verdict = judge(&GatePolicy::default(), &input);
    assert_eq!(verdict.decision, Decision::Hold);
    assert_eq!(
        verdict.reason,
        "edge-00 is in the comparison 2 times, expected once"
    );
}

#[test]
fn an_improvement_passes() {
    let mut input = quiet();
    for canary in &mut input.canaries {
        canary.after.confidence_sum_micro = canary.after.inferences * 999_000;
    }
    assert_eq!(
        judge(&GatePolicy::default(), &input).decision,
        Decision::Pass
    );
}

#[test]
fn the_distance_of_mixes_is_less_its_own_noise() {
    // Equal mixes: the distance is 0, the expected noise of 100 against 100 at p = 1/2 is
    // √(2/π · 1/4 · 2/100) = .0564 for each of two classes, half of whose sum is taken.
    assert_eq!(mix_distance_nano(&[50, 50], &[50, 50]), -56_418_958);
    // Disjoint mixes: distance 1, pooled p = 1/2 in both classes.
    assert_eq!(
        mix_distance_nano(&[100, 0], &[0, 100]),
        1_000_000_000 - 56_418_958
    );
    assert_eq!(mix_distance_nano(&[], &[5]), 0);
    assert_eq!(mix_distance_nano(&[7], &[5, 0, 0]), 0);
}

#[test]
fn many_devices_are_judged_by_a_replayable_draw() {
    let device = |index: u64| {
        sample(
            &format!("d{index}"),
            period(300, 0.9, &[1, 1]),
            period(200 + index % 7, 0.9, &[1, 1]),
        )
    };
    let mut input = GateInput {
        canaries: (0..30).map(device).collect(),
        controls: (30..60).map(device).collect(),
    };
    let verdict = judge(&GatePolicy::default(), &input);
    assert_eq!(verdict.decision, Decision::Pass);
    assert!(!verdict.metrics[0].exact);
    assert_eq!(judge(&GatePolicy::default(), &input), verdict);
    regress(&mut input);
    let verdict = judge(&GatePolicy::default(), &input);
    assert_eq!(
        verdict.metrics[0].p,
        PValue {
            num: 1,
            den: 10_000
        }
    );
    assert_eq!(verdict.decision, Decision::Stop);
}

fn any_period() -> impl Strategy<Value = Period> {
    let count = prop_oneof![3 => 0u64..500, 1 => Just(u64::MAX), 1 => any::<u64>()];
    (
        count.clone(),
        count.clone(),
        prop::collection::vec(count, 0..4),
    )
        .prop_map(|(inferences, confidence_sum_micro, outputs)| Period {
            inferences,
            confidence_sum_micro,
            outputs,
        })
}

fn any_side() -> impl Strategy<Value = Vec<DeviceSample>> {
    let device = ("[a-c]{1,2}", any_period(), any_period());
    prop::collection::vec(
        device.prop_map(|(name, before, after)| sample(&name, before, after)),
        0..7,
    )
}

proptest! {
    #[test]
    fn no_input_panics_and_order_never_matters(canaries in any_side(), controls in any_side(), min_inferences in 0u64..3) {
        let policy = GatePolicy { min_inferences, min_canaries: 0, alpha: Ratio::percent(50), ..GatePolicy::default() };
        let mut input = GateInput { canaries, controls };
        let verdict = serde_json::to_string(&judge(&policy, &input)).unwrap();
        input.canaries.reverse();
        input.controls.reverse();
        prop_assert_eq!(serde_json::to_string(&judge(&policy, &input)).unwrap(), verdict);
    }

    #[test]
    fn a_stored_verdict_is_read_back_as_it_was(seed in 0u64..50) {
        let mut input = quiet();
        input.canaries[0].after.confidence_sum_micro -= seed * 1_000_003;
        let verdict = judge(&GatePolicy::default(), &input);
        let json = serde_json::to_string(&verdict).unwrap();
        prop_assert_eq!(serde_json::from_str::<Verdict>(&json).unwrap(), verdict);
    }
}
