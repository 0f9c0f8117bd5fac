//! Whole rollouts as text, compared exactly with `tests/scenarios/*.txt`, so that a change of the
//! planner's policy is reviewed as a diff. `UPDATE_SCENARIOS=1` writes the files anew.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod simulation;

use dunlin_server::rollout::draw;
use dunlin_server::rollout::model::Action;
use dunlin_server::rollout::policy::{Policy, StageSize};
use simulation::{Version, World};
use std::fmt::Write as _;
use std::path::Path;

/// Ticks at which something was done or the kinds of reasons changed.
fn transcript(world: &World) -> String {
    let mut text = String::new();
    let mut last = Vec::new();
    for (at_ms, plan, report) in &world.reports {
        let codes: Vec<_> = report.reasons.iter().map(|reason| reason.code).collect();
        if plan.actions.is_empty() && codes == last {
            continue;
        }
        last = codes;
        write!(text, "t+{} s: {report}", at_ms / 1000).unwrap();
        for action in &plan.actions {
            writeln!(text, "  > {}", summary(action)).unwrap();
        }
        text.push('\n');
    }
    text
}

/// The action without the verdict, which the report's reason already tells.
fn summary(action: &Action) -> String {
    match action {
        Action::Stop { stage, .. } => format!("stop at stage {stage}"),
        Action::Pause { stage, .. } => format!("pause at stage {stage}"),
        Action::Assign { device, .. } => format!("assign {device}"),
        Action::RollBack { devices } => format!("roll back {}", devices.join(", ")),
        other => serde_json::to_string(other).unwrap(),
    }
}

fn compare(name: &str, got: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/scenarios")
        .join(name);
    if std::env::var_os("UPDATE_SCENARIOS").is_some() {
        std::fs::write(&path, got).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    let differing = got.lines().zip(expected.lines()).position(|(a, b)| a != b);
    assert!(
        got == expected,
        "{} differs from line {}: if that is meant, run with UPDATE_SCENARIOS=1 and review the diff. Got:\n{got}",
        path.display(),
        differing.unwrap_or(got.lines().count().min(expected.lines().count())) + 1
    );
}

#[test]
fn a_good_version_goes_all_the_way() {
    let mut world = World::new(Policy::with_seed(2), 12, Version::Alike);
    world.run();
    compare("good_version.txt", &transcript(&world));
}

#[test]
fn a_bad_version_is_stopped_and_its_canaries_go_back() {
    let mut world = World::new(Policy::with_seed(3), 12, Version::Regressed);
    world.run();
    compare("bad_version.txt", &transcript(&world));
}

/// 25 canaries of 60 devices: enough for early looks.
fn large(seed: u64, version: Version) -> World {
    let mut policy = Policy::with_seed(seed);
    policy.stages[0].size = StageSize::Count(25);
    World::new(policy, 60, version)
}

#[test]
fn a_bad_version_on_many_canaries_is_stopped_while_they_soak() {
    let mut world = large(5, Version::Regressed);
    world.run();
    compare("stopped_early.txt", &transcript(&world));
}

#[test]
fn a_good_version_on_many_canaries_is_looked_at_and_goes_on() {
    let mut world = large(6, Version::Alike);
    world.run();
    compare("looked_at_early.txt", &transcript(&world));
}

#[test]
fn a_canary_that_is_switched_off_pauses_the_rollout() {
    let policy = Policy::with_seed(4);
    let names: Vec<String> = (1..=12).map(|index| format!("edge-{index:02}")).collect();
    let first = draw::order(policy.seed, &names).remove(0);
    let mut world = World::new(policy, 12, Version::Alike);
    world.offline.push(first);
    world.run();
    compare("silent_canary.txt", &transcript(&world));
}
