//! How often the whole planner stops a version that is as good as the one before, and how often
//! it catches one that is not: 100 seeds, 12 devices that differ, three canaries.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod simulation;

use dunlin_server::drift::gate::GateInput;
use dunlin_server::drift::statistics::{Comparison, Sensitivity};
use dunlin_server::rollout::model::{RolloutState, StopReason};
use dunlin_server::rollout::policy::{Policy, StageSize};
use simulation::{Version, World};

const SEEDS: u64 = 100;

fn finished(policy: Policy, version: Version) -> World {
    let mut world = World::new(policy, 12, version);
    world.run();
    world
}

fn is_stopped_by_gate(world: &World) -> bool {
    matches!(
        &world.state,
        RolloutState::Stopped {
            why: StopReason::Gate { .. },
            ..
        }
    )
}

/// What is often done instead: pool the predicted classes of all canaries and of all controls
/// and test whether the two mixes differ.
fn pooled_chi_squared_stops(input: &GateInput, alpha: f64) -> bool {
    let pool = |samples: &[dunlin_server::drift::gate::DeviceSample]| {
        let classes = samples[0].after.outputs.len();
        (0..classes)
            .map(|c| samples.iter().map(|s| s.after.outputs[c]).sum())
            .collect::<Vec<u64>>()
    };
    let comparison = Comparison::new(&pool(&input.controls), &pool(&input.canaries)).unwrap();
    comparison
        .chi_squared(Sensitivity { alpha, margin: 0.0 })
        .p_value
        <= alpha
}

/// Shares of 100 seeds, in percent.
#[derive(Default)]
struct WrongStops {
    gate: u32,
    gate_without_margins: u32,
    pooled: u32,
}

fn count_wrong_stops(spread: f64) -> WrongStops {
    let mut wrong = WrongStops::default();
    for seed in 0..SEEDS {
        let mut world = World::with_spread(Policy::with_seed(seed), 12, Version::Alike, spread);
        world.run();
        if is_stopped_by_gate(&world) {
            wrong.gate += 1;
        } else {
            assert_eq!(world.state, RolloutState::Finished, "seed {seed}");
            assert_eq!(
                world.gates.len(),
                2,
                "seed {seed}: one look for each stage with controls"
            );
        }
        wrong.pooled += u32::from(pooled_chi_squared_stops(&world.gates[0], 0.02));
        let mut bare = Policy::with_seed(seed);
        if let Some(gate) = &mut bare.gate {
            (gate.confidence_margin, gate.mix_margin) = (0.0, 0.0);
        }
        let mut world = World::with_spread(bare, 12, Version::Alike, spread);
        world.run();
        wrong.gate_without_margins += u32::from(is_stopped_by_gate(&world));
    }
    wrong
}

#[test]
fn a_version_without_regression_is_rarely_stopped() {
    println!(
        "wrong stops of {SEEDS} rollouts without regression, 12 devices, 3 canaries, 2 gates:"
    );
    for (spread, words) in [
        (0.2, "alike, class weights within 20 %"),
        (0.8, "different, within 80 %"),
    ] {
        let WrongStops {
            gate,
            gate_without_margins,
            pooled,
        } = count_wrong_stops(spread);
        println!("  devices {words}:");
        println!("    the gate (alpha 1/50 a look, margins .05 and .10):        {gate} %");
        println!(
            "    its tests alone, margins set to zero:                     {gate_without_margins} %"
        );
        println!("    pooled chi-squared of the mixes, first look, alpha 1/50:  {pooled} %");
        assert!(gate <= 5, "{gate} of {SEEDS} good rollouts were stopped");
        // Two looks at 1/50 allow 4 %; more than 10 of 100 then has a probability below 1/250.
        assert!(
            gate_without_margins <= 10,
            "{gate_without_margins} of {SEEDS} without margins"
        );
        assert!(
            pooled > gate,
            "the simulation's devices differ too little to show anything"
        );
    }
}

/// 25 canaries of 60 devices: early looks at every tick, then the gate.
fn large(seed: u64, version: Version) -> World {
    let mut policy = Policy::with_seed(seed);
    policy.stages[0].size = StageSize::Count(25);
    if let Some(gate) = &mut policy.gate {
        (gate.confidence_margin, gate.mix_margin) = (0.0, 0.0);
    }
    let mut world = World::new(policy, 60, version);
    world.run();
    world
}

#[test]
fn the_early_look_and_the_gate_together_keep_the_gates_alpha() {
    let (mut early, mut gate) = (0, 0);
    for seed in 0..SEEDS {
        match &large(seed, Version::Alike).state {
            RolloutState::Stopped {
                why: StopReason::Early { .. },
                ..
            } => early += 1,
            RolloutState::Stopped {
                why: StopReason::Gate { .. },
                ..
            } => gate += 1,
            state => assert_eq!(*state, RolloutState::Finished, "seed {seed}"),
        }
    }
    println!(
        "wrong stops of {SEEDS} rollouts without regression, 60 devices, 25 canaries, margins set to zero: early {early} %, gate {gate} %"
    );
    // Two stages with controls at 1/50 allow 4 %, the early look 1/200 of them; as above.
    assert!(early + gate <= 10, "{early} + {gate} of {SEEDS}");
    assert!(early <= 4, "{early} of {SEEDS}");
}

#[test]
fn a_regression_on_many_canaries_is_stopped_before_the_soak_is_over() {
    let mut seconds: Vec<i64> = (0..SEEDS)
        .map(|seed| {
            let world = large(seed, Version::Regressed);
            let stopped = world
                .reports
                .iter()
                .find(|(_, plan, _)| plan.next_state.has_ended());
            let (at_ms, plan, _) = stopped.unwrap();
            assert!(
                matches!(
                    plan.next_state,
                    RolloutState::Stopped {
                        stage: 0,
                        why: StopReason::Early { .. }
                    }
                ),
                "seed {seed}"
            );
            let given = world.fleet.iter().filter(|device| device.stage == 0);
            assert!(given.clone().all(|d| d.state.name() == "rolled_back"));
            at_ms / 1000
        })
        .collect();
    seconds.sort_unstable();
    let median = seconds[seconds.len() / 2];
    println!(
        "regression on 25 canaries, {SEEDS} seeds: stopped {median} s after the start (median), {} s at most; the soak ends after 30 s",
        seconds[seconds.len() - 1]
    );
    assert!(seconds[seconds.len() - 1] < 30, "before the fixed look");
}

#[test]
fn a_regression_is_caught_at_the_canaries_and_taken_back() {
    let mut caught = 0;
    for seed in 0..SEEDS {
        let world = finished(Policy::with_seed(seed), Version::Regressed);
        if let RolloutState::Stopped {
            stage: 0,
            why: StopReason::Gate { .. },
        } = &world.state
        {
            caught += 1;
            let given = world.fleet.iter().filter(|device| device.stage == 0);
            assert!(
                given.clone().count() == 3
                    && given.clone().all(|d| d.state.name() == "rolled_back")
            );
            let others = world.fleet.iter().filter(|device| device.stage > 0);
            assert!(
                others
                    .clone()
                    .all(|device| device.state.name() == "waiting"),
                "seed {seed}"
            );
        }
    }
    println!("regression (confidence .9 to .35, mix collapsed), {SEEDS} seeds: caught {caught} %");
    assert!(caught >= 95, "{caught} of {SEEDS} regressions were caught");
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let bytes = |seed| {
        let world = finished(Policy::with_seed(seed), Version::Regressed);
        serde_json::to_vec(&world.state).unwrap()
    };
    assert_eq!(bytes(7), bytes(7));
    assert_ne!(bytes(7), bytes(8));
}
