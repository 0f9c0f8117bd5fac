#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;
use crate::rollout::policy::StageSize;
use proptest::prelude::*;

const T0: i64 = 1_700_000_000_000;

fn policy() -> Policy {
    let mut policy = Policy::with_seed(1);
    for stage in &mut policy.stages {
        stage.soak_ms = 20_000;
    }
    policy.silence_ms = 60_000;
    policy
}

fn device(name: &str, stage: usize, state: DeviceState) -> DeviceObservation {
    let is_given = !matches!(state, DeviceState::Waiting | DeviceState::Cancelled);
    DeviceObservation {
        device: name.to_owned(),
        stage,
        state,
        state_since_ms: T0,
        last_seen_ms: Some(T0),
        assigned_at_ms: is_given.then_some(T0 - 1000),
        had_version: false,
        waits_for: None,
        way_back: None,
    }
}

fn stage_of(stage: usize, states: &[DeviceState]) -> Vec<DeviceObservation> {
    states
        .iter()
        .enumerate()
        .map(|(at, s)| device(&format!("s{stage}-{at}"), stage, s.clone()))
        .collect()
}

/// Three canaries in these states, three and six that wait.
fn fleet(canaries: &[DeviceState]) -> Vec<DeviceObservation> {
    let waiting = vec![DeviceState::Waiting; 6];
    [
        stage_of(0, canaries),
        stage_of(1, &waiting[..3]),
        stage_of(2, &waiting),
    ]
    .concat()
}

fn failed() -> DeviceState {
    DeviceState::Failed {
        reason: "disk full".to_owned(),
    }
}

fn at(state: &RolloutState, fleet: &[DeviceObservation], after_ms: i64) -> (Plan, Report) {
    let policy = policy();
    plan(&PlanInput {
        policy: &policy,
        state,
        fleet,
        joined: &[],
        gate: None,
        early: None,
        listening_since_ms: Some(0),
        now_ms: T0 + after_ms,
    })
}

fn run(fleet: &[DeviceObservation], after_ms: i64) -> (Plan, Report) {
    at(&RolloutState::START, fleet, after_ms)
}

fn codes(report: &Report) -> Vec<ReasonCode> {
    report.reasons.iter().map(|reason| reason.code).collect()
}

use DeviceState::{
    Assigned, Cancelled, NotStarted, Probation, Succeeded, TimedOut, Waiting, Working,
};

#[test]
fn only_the_first_stage_is_assigned() {
    let (plan, report) = run(&fleet(&[Waiting, Waiting, Waiting]), 0);
    let assign = |device: &str| Action::Assign {
        device: device.to_owned(),
        stage: 0,
    };
    assert_eq!(
        plan.actions,
        [assign("s0-0"), assign("s0-1"), assign("s0-2")]
    );
    assert_eq!(
        report.headline(),
        "stage canary: assigning 3 devices: s0-0, s0-1, s0-2"
    );
}

#[test]
fn waiting_says_for_whom_and_how_long() {
    let (plan, report) = run(&fleet(&[Succeeded, Working, Succeeded]), 12_345);
    assert_eq!(plan.actions, []);
    assert_eq!(
        report.headline(),
        "stage canary: waiting for 1 of 3 devices (s0-1 working, silent for 12.3 s; deadline for silence 60 s)"
    );
}

#[test]
fn a_device_that_waits_for_its_window_is_named_with_its_reason_and_is_no_failure() {
    let mut fleet = fleet(&[Succeeded, Working, Succeeded]);
    fleet[1].waits_for = Some("window: opens at 02:00".to_owned());
    let (plan, report) = run(&fleet, 12_345);
    assert_eq!(
        (plan.actions, report.stages[0].counts.errors()),
        (vec![], 0)
    );
    assert_eq!(
        report.headline(),
        "stage canary: waiting for 1 of 3 devices (s0-1 waits (window: opens at 02:00), silent for 12.3 s; deadline for silence 60 s)"
    );
}

#[test]
fn silence_has_two_outcomes_and_one_deadline() {
    let mut fleet = fleet(&[Assigned, Probation, Succeeded]);
    fleet[0].last_seen_ms = Some(T0 - 5000);
    assert_eq!(run(&fleet, 59_000).0.actions, []);
    let mut policy = policy();
    policy.error.0 = crate::rollout::ratio::Ratio::percent(50);
    let input = PlanInput {
        policy: &policy,
        state: &RolloutState::START,
        fleet: &fleet,
        joined: &[],
        gate: None,
        early: None,
        listening_since_ms: Some(0),
        now_ms: T0 + 60_001,
    };
    let (plan, report) = plan(&input);
    assert_eq!(
        plan.actions[0],
        Action::MarkNotStarted {
            device: "s0-0".into(),
            silent_ms: 61_001
        }
    );
    assert_eq!(
        plan.actions[1],
        Action::MarkTimedOut {
            device: "s0-1".into(),
            silent_ms: 60_001
        }
    );
    // One error of three is within 50 %, but one success of three is below 90 %.
    assert!(matches!(
        plan.next_state,
        RolloutState::Paused { stage: 0, .. }
    ));
    assert_eq!(
        (
            report.stages[0].counts.not_started,
            report.stages[0].counts.timed_out
        ),
        (1, 1)
    );
}

#[test]
fn a_device_that_never_started_is_no_error() {
    let (plan, report) = run(&fleet(&[NotStarted, Succeeded, Succeeded]), 30_000);
    assert!(matches!(
        plan.next_state,
        RolloutState::Paused { stage: 0, .. }
    ));
    assert_eq!(
        report.headline(),
        "stage canary: paused: complete, but 2 of 3 succeeded and 90 % is needed"
    );
}

#[test]
fn a_cancelled_device_stays_in_the_denominator() {
    let (plan, _) = run(&fleet(&[Cancelled, Succeeded, Succeeded]), 30_000);
    assert!(matches!(
        plan.next_state,
        RolloutState::Paused {
            why: PauseReason::BelowSuccess {
                succeeded: 2,
                total: 3,
                ..
            },
            ..
        }
    ));
}

#[test]
fn errors_come_first_and_take_everyone_back() {
    let (plan, report) = run(&fleet(&[failed(), Working, Succeeded]), 5000);
    assert!(matches!(plan.actions[0], Action::Stop { stage: 0, .. }));
    let devices = ["s0-0", "s0-1", "s0-2"].map(str::to_owned).to_vec();
    assert_eq!(plan.actions[1], Action::RollBack { devices });
    assert_eq!(
        codes(&report),
        [ReasonCode::TooManyErrors, ReasonCode::RollingBack]
    );
    assert_eq!(
        report.headline(),
        "stopped: 1 of 3 devices of stage canary failed, 10 % is tolerated"
    );
}

#[test]
fn a_late_failure_of_an_earlier_stage_stops_too() {
    let fleet = [
        stage_of(
            0,
            &[
                Succeeded,
                DeviceState::RolledBack {
                    reason: "latency".into(),
                },
                Succeeded,
            ],
        ),
        stage_of(1, &[Working, Working, Working]),
        stage_of(2, &[Waiting]),
    ]
    .concat();
    let (plan, _) = at(&RolloutState::Running { stage: 1 }, &fleet, 1000);
    let Action::RollBack { devices } = &plan.actions[1] else {
        panic!("{plan:?}")
    };
    assert_eq!(
        devices.len(),
        6,
        "devices that were not given the version stay untouched"
    );
}

#[test]
fn the_soak_counts_from_the_last_success() {
    let mut fleet = fleet(&[Succeeded, Succeeded, Succeeded]);
    fleet[1].state_since_ms = T0 + 3200;
    let (_, report) = run(&fleet, 15_000);
    assert_eq!(report.headline(), "stage canary: soaking, 8.2 of 20 s left");
    let (plan, report) = run(&fleet, 23_200);
    assert_eq!(codes(&report), [ReasonCode::GateDue]);
    assert_eq!(
        plan.next_state,
        RolloutState::START,
        "no data: hold, never pass"
    );
    let request = report.gate_request.unwrap();
    assert_eq!((request.canaries.len(), request.controls.len()), (3, 9));
    assert_eq!(request.before_until_ms, T0 - 1000);
    assert_eq!(
        (request.after_from_ms, request.after_until_ms),
        (T0 + 3200, T0 + 23_200)
    );
}

#[test]
fn an_unfed_and_a_starved_gate_hold() {
    let (policy, fleet) = (policy(), fleet(&[Succeeded, Succeeded, Succeeded]));
    let gate = GateInput::default();
    let input = PlanInput {
        policy: &policy,
        state: &RolloutState::START,
        fleet: &fleet,
        joined: &[],
        gate: Some(&gate),
        early: None,
        listening_since_ms: Some(0),
        now_ms: T0 + 20_000,
    };
    let (plan, report) = plan(&input);
    assert_eq!(plan.actions, []);
    assert_eq!(
        report.headline(),
        "stage canary: gate holds: canary s0-0 has no inferences on the version before; s0-1 has no \
         inferences on the version before; s0-2 has no inferences on the version before"
    );
    assert!(report.gate_request.is_some() && report.verdict.is_some());
}

#[test]
fn without_controls_there_is_no_gate_but_the_soak_holds() {
    let fleet = [
        stage_of(0, &[const { Succeeded }; 3]),
        stage_of(1, &[const { Succeeded }; 3]),
        stage_of(2, &[const { Succeeded }; 6]),
    ]
    .concat();
    let state = RolloutState::Running { stage: 2 };
    assert_eq!(codes(&at(&state, &fleet, 19_999).1), [ReasonCode::Soaking]);
    let (plan, report) = at(&state, &fleet, 20_000);
    assert_eq!(plan.actions, [Action::Finish]);
    assert_eq!(
        codes(&report),
        [ReasonCode::NoControl, ReasonCode::Finished]
    );
}

#[test]
fn an_empty_stage_is_skipped_with_a_report() {
    let fleet = [
        stage_of(0, &[const { Succeeded }; 3]),
        stage_of(2, &[const { Waiting }; 2]),
    ]
    .concat();
    let (plan, report) = at(&RolloutState::Running { stage: 1 }, &fleet, 1000);
    assert_eq!(plan.actions, [Action::Advance { stage: 2 }]);
    assert_eq!(
        codes(&report),
        [ReasonCode::EmptyStageSkipped, ReasonCode::Advancing]
    );
}

#[test]
fn a_rollout_without_devices_holds() {
    let (plan, report) = run(&[], 1000);
    assert_eq!(
        (plan.actions, codes(&report)),
        (vec![], vec![ReasonCode::NoDevices])
    );
}

#[test]
fn a_paused_rollout_assigns_nothing_yet_errors_stop_it() {
    let paused = RolloutState::START.paused("holiday").unwrap();
    let (plan, report) = at(&paused, &fleet(&[Waiting, Working, Waiting]), 1000);
    assert_eq!((plan.actions, plan.next_state), (vec![], paused.clone()));
    assert_eq!(report.headline(), "paused by an operator: holiday");
    let (plan, _) = at(&paused, &fleet(&[Waiting, failed(), Waiting]), 1000);
    assert!(matches!(plan.next_state, RolloutState::Stopped { .. }));
    assert_eq!(paused.resumed(), Some(RolloutState::START));
}

#[test]
fn resuming_looks_at_the_same_stage_again() {
    let fleet = fleet(&[NotStarted, Succeeded, Succeeded]);
    let (first, _) = run(&fleet, 30_000);
    let (second, _) = at(&first.next_state.resumed().unwrap(), &fleet, 40_000);
    assert_eq!(second.next_state, first.next_state);
}

#[test]
fn ended_rollouts_take_back_what_still_names_the_version() {
    let aborted = RolloutState::START.aborted("wrong model").unwrap();
    let mut fleet = fleet(&[Succeeded, TimedOut, Working]);
    fleet[0].assigned_at_ms = None;
    let (plan, report) = at(&aborted, &fleet, 1000);
    assert_eq!(
        plan.actions,
        [Action::RollBack {
            devices: vec!["s0-1".into(), "s0-2".into()]
        }]
    );
    assert_eq!(report.reasons[2].sentence, "on the way back: s0-0");
    for device in &mut fleet {
        device.assigned_at_ms = None;
    }
    assert_eq!(at(&aborted, &fleet, 1000).0.actions, []);
    assert_eq!(aborted.aborted("again"), None);
}

#[test]
fn later_comers_join_the_last_stage_until_it_is_complete() {
    let (policy, joined) = (policy(), ["new".to_owned(), "s0-0".to_owned()]);
    let fleet = fleet(&[Working, Working, Working]);
    let mut input = PlanInput {
        policy: &policy,
        state: &RolloutState::START,
        fleet: &fleet,
        joined: &joined,
        gate: None,
        early: None,
        listening_since_ms: Some(0),
        now_ms: T0,
    };
    assert_eq!(
        plan(&input).0.actions,
        [Action::Join {
            device: "new".into(),
            stage: 2
        }]
    );
    let mut done = fleet.clone();
    for device in &mut done {
        device.state = Succeeded;
    }
    input = PlanInput {
        fleet: &done,
        state: &RolloutState::Running { stage: 2 },
        ..input
    };
    let (plan, report) = plan(&input);
    assert_eq!(plan.actions, []);
    assert_eq!(
        report.headline(),
        "new came too late: stage rest is complete"
    );
}

fn any_state() -> impl Strategy<Value = DeviceState> {
    let reason = || "r".to_owned();
    prop::sample::select(vec![
        Waiting,
        Assigned,
        Working,
        Probation,
        Succeeded,
        TimedOut,
        NotStarted,
        Cancelled,
        DeviceState::Failed { reason: reason() },
        DeviceState::Rejected { reason: reason() },
        DeviceState::RolledBack { reason: reason() },
    ])
}

fn any_device() -> impl Strategy<Value = DeviceObservation> {
    let when = || {
        prop_oneof![
            Just(None),
            (-100_000i64..100_000).prop_map(|at| Some(T0 + at)),
            any::<i64>().prop_map(Some)
        ]
    };
    (
        "[a-h]",
        0usize..5,
        any_state(),
        any::<i64>(),
        when(),
        when(),
    )
        .prop_map(
            |(device, stage, state, state_since_ms, last_seen_ms, assigned_at_ms)| {
                DeviceObservation {
                    device,
                    stage,
                    state,
                    state_since_ms,
                    last_seen_ms,
                    assigned_at_ms,
                    had_version: false,
                    waits_for: None,
                    way_back: None,
                }
            },
        )
}

proptest! {
    #[test]
    fn total_repeatable_and_independent_of_order(devices in prop::collection::btree_map("[a-h]", any_device(), 0..10), stage in 0usize..5, is_paused: bool, now_ms: i64) {
        let devices: Vec<DeviceObservation> =
            devices.into_iter().map(|(device, rest)| DeviceObservation { device, ..rest }).collect();
        let policy = policy();
        let running = RolloutState::Running { stage };
        let state = if is_paused { running.paused("x").unwrap() } else { running };
        let input = PlanInput { policy: &policy, state: &state, fleet: &devices, joined: &[], gate: None, early: None, listening_since_ms: Some(0), now_ms };
        let first = plan(&input);
        prop_assert_eq!(plan(&input), first.clone());
        prop_assert!(!first.1.reasons.is_empty());
        // Whatever is given or taken back is known, and errors never go on.
        for action in &first.0.actions {
            if let Action::Assign { device, .. } = action {
                prop_assert!(!is_paused);
                prop_assert!(devices.iter().any(|d| d.device == *device && d.state == Waiting));
            }
        }
        if matches!(first.0.next_state, RolloutState::Finished) || first.0.actions.iter().any(|a| matches!(a, Action::Advance { .. })) {
            for started in first.1.stages.iter().take(stage + 1).filter(|s| s.total > 0) {
                prop_assert!(!policy.error.0.exceeded_by(started.counts.errors().into(), started.total.into()));
            }
        }
        let backwards: Vec<DeviceObservation> = devices.iter().rev().cloned().collect();
        let reversed = PlanInput { fleet: &backwards, ..input };
        prop_assert_eq!(plan(&reversed), first.clone());
        let json = serde_json::to_string(&first.0).unwrap();
        prop_assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), first.0);
    }

    #[test]
    fn the_smallest_policy_never_divides_by_nothing(count in 1u32..4) {
        let mut policy = policy();
        policy.gate = None;
        policy.stages = vec![Stage { name: "one".into(), size: StageSize::Count(count), soak_ms: 0 }];
        let fleet = stage_of(0, &[Succeeded]);
        let input = PlanInput { policy: &policy, state: &RolloutState::START, fleet: &fleet, joined: &[], gate: None, early: None, listening_since_ms: Some(0), now_ms: T0 };
        prop_assert_eq!(plan(&input).0.actions, vec![Action::Advance { stage: 1 }]);
    }
}

#[test]
fn an_outage_of_the_server_is_nobodys_silence() {
    let (policy, fleet) = (policy(), fleet(&[Assigned, Probation, Succeeded]));
    let mut input = PlanInput {
        policy: &policy,
        state: &RolloutState::START,
        fleet: &fleet,
        joined: &[],
        gate: None,
        early: None,
        listening_since_ms: None,
        now_ms: T0 + 3_600_000,
    };
    assert_eq!(plan(&input).0.actions, [], "deaf");
    input.listening_since_ms = Some(T0 + 3_590_000);
    assert_eq!(plan(&input).0.actions, [], "has just begun to listen");
    input.now_ms = T0 + 3_590_000 + 60_001;
    assert!(matches!(
        plan(&input).0.actions[..],
        [
            Action::MarkTimedOut { .. } | Action::MarkNotStarted { .. },
            ..
        ]
    ));
}

#[test]
fn a_device_that_had_the_version_shows_nothing_about_it() {
    let mut fleet = fleet(&[Succeeded, Succeeded, Succeeded]);
    (fleet[1].had_version, fleet[5].had_version) = (true, true);
    let request = run(&fleet, 23_200).1.gate_request.unwrap();
    assert_eq!((request.canaries.len(), request.controls.len()), (2, 8));
}

#[test]
fn who_could_not_go_back_is_asked_again_when_due() {
    let aborted = RolloutState::START.aborted("wrong model").unwrap();
    let mut fleet = fleet(&[Succeeded, Waiting, Waiting]);
    fleet[0].assigned_at_ms = None;
    fleet[0].way_back = Some(crate::rollout::model::WayBack {
        tries: 1,
        problem: "hash: mirror".to_owned(),
        retry_at_ms: Some(T0 + 30_000),
    });
    let (early, report) = at(&aborted, &fleet, 0);
    assert_eq!(early.actions, []);
    let last = &report.reasons.last().unwrap().sentence;
    assert_eq!(
        last,
        "s0-0 could not go back (hash: mirror), asked 1 times, again in 30 s"
    );
    let devices = vec!["s0-0".to_owned()];
    assert_eq!(
        at(&aborted, &fleet, 30_000).0.actions,
        [Action::RollBack { devices }]
    );
}

#[test]
fn an_early_look_stops_what_runs_soaks_or_is_paused_and_nothing_else_does_by_it() {
    use crate::drift::early::PairChange;
    let canaries = stage_of(0, &vec![Succeeded; 20]);
    let large = [canaries.clone(), stage_of(1, &vec![Waiting; 20])].concat();
    let pair = |at: usize| PairChange {
        canary: format!("s0-{at}"),
        control: format!("s1-{at}"),
        canary_nano: -400_000_000,
        control_nano: 0,
    };
    let seen = EarlyInput {
        drawn: 20,
        canaries: 20,
        controls: 20,
        pairs: (0..20).map(pair).collect(),
    };
    let policy = policy();
    let looked = |state: &RolloutState, fleet: &[DeviceObservation], early: &EarlyInput| {
        plan(&PlanInput {
            policy: &policy,
            state,
            fleet,
            joined: &[],
            gate: None,
            early: Some(early),
            listening_since_ms: Some(0),
            now_ms: T0 + 1000,
        })
    };
    let paused = RolloutState::START.paused("holiday").unwrap();
    for state in [RolloutState::START, paused.clone()] {
        let (plan, report) = looked(&state, &large, &seen);
        assert!(
            report.headline().starts_with("stopped early: 20 pairs"),
            "{report}"
        );
        assert_eq!(
            codes(&report),
            [ReasonCode::EarlyStopped, ReasonCode::RollingBack]
        );
        let [Action::Stop { stage: 0, .. }, Action::RollBack { devices }] = &plan.actions[..]
        else {
            panic!("{plan:?}");
        };
        assert_eq!(devices.len(), 20);
    }
    let mut fewer = seen.clone();
    fewer.pairs.truncate(19);
    let (plan, report) = looked(&paused, &large, &fewer);
    assert_eq!(plan.actions, []);
    assert_eq!(
        codes(&report),
        [ReasonCode::PausedByOperator, ReasonCode::EarlyLook]
    );
    // A stage too small by the draw has all of alpha for its gate, whatever it is fed with.
    let small = [canaries, stage_of(1, &vec![Waiting; 19])].concat();
    assert_eq!(
        codes(&looked(&paused, &small, &seen).1)[0],
        ReasonCode::PausedByOperator
    );
    let ended = RolloutState::Finished;
    assert_eq!(
        codes(&looked(&ended, &large, &seen).1),
        [ReasonCode::Finished]
    );
}
