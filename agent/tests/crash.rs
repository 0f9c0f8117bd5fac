//! The power fails, the disk fills up or an operation breaks at every single operation on the disk
//! of an update: through the agent's own code, over a disk in memory that keeps what POSIX promises
//! and no more, and over real HTTPS.
//!
//! `DUNLIN_CRASH_RANDOM=20` looks at twenty random outcomes of every cut instead of two.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation
)]

#[path = "crash/device.rs"]
mod device;
#[path = "crash/disk.rs"]
mod disk;
#[path = "crash/random.rs"]
mod random;
// Shared with the tests of receiving, which need more of it.
#[allow(dead_code)]
#[path = "receive/repository.rs"]
mod repository;
#[allow(dead_code)]
#[path = "receive/server.rs"]
mod server;
#[path = "crash/world.rs"]
mod world;

use device::{Device, End, Script};
use disk::{Fault, Outcome, SimDisk};
use dunlin_protocol::report::Progress;
use std::collections::BTreeSet;
use world::World;

/// What was tried.
#[derive(Debug, Default)]
struct Tally {
    points: u64,
    outcomes: u64,
}

fn random_outcomes() -> u64 {
    let asked = std::env::var("DUNLIN_CRASH_RANDOM").ok();
    asked.map_or(2, |n| n.parse().expect("a number"))
}

/// Cuts the power before every operation of the scenario, and goes on from every outcome.
async fn cut_everywhere(name: &str, world: &World, start: &SimDisk, script: &Script) {
    let mut tally = Tally::default();
    for point in 0.. {
        let disk = start.restart(Outcome::Everything);
        world.begin(script);
        disk.break_at(Some(Fault::Cut(point)));
        let end = match Device::boot(world, &disk, script) {
            Some(mut device) => device.run().await,
            None => End::Cut,
        };
        if end != End::Cut {
            script.check(world, &disk, &end, &format!("{name}: no cut"));
            break;
        }
        tally.points += 1;
        let mut seen = BTreeSet::new();
        for outcome in Outcome::all(point + 1, random_outcomes()) {
            let after = disk.restart(outcome);
            if !seen.insert(after.fingerprint()) {
                continue;
            }
            tally.outcomes += 1;
            let context = format!(
                "{name}: cut before operation {point}, {outcome:?}, after\n{}\nthen",
                disk.trace()
            );
            world.heal();
            let mut device = Device::boot(world, &after, script)
                .unwrap_or_else(|| panic!("{context} it does not start"));
            device.serves_a_whole_version(&context).await;
            let end = device.run().await;
            drop(device);
            script.check(world, &after, &end, &context);
        }
    }
    println!(
        "{name}: {} points, {} different disks found afterwards",
        tally.points, tally.outcomes
    );
    assert!(tally.points > 20, "{name}: only {} points", tally.points);
}

/// Fills the disk up before every operation of the scenario; gives space back afterwards.
async fn full_everywhere(name: &str, world: &World, start: &SimDisk, script: &Script) {
    let mut points = 0_u64;
    for point in 0.. {
        let disk = start.restart(Outcome::Everything);
        world.begin(script);
        disk.break_at(Some(Fault::Full(point)));
        let context = format!("{name}: full from operation {point} on");
        let mut device = Device::boot(world, &disk, script).unwrap();
        let end = device.run().await;
        if !disk.has_struck() {
            break;
        }
        points += 1;
        match &end {
            // Everything that was left to do fitted, or took the place of something else.
            End::Settled(progress) if script.is_end(progress) => {}
            End::Settled(Progress::Failed(failure)) => {
                assert_eq!(failure.code, "disk_full", "{context}: {failure:?}");
            }
            End::Stuck => assert!(device.told("disk_full"), "{context}: not a word of it"),
            other => panic!("{context}: {other:?}\n{}", disk.trace()),
        }
        device.serves_a_whole_version(&context).await;
        drop(device);
        world.nothing_is_left_over(&disk, &context, matches!(end, End::Stuck));
        // Space comes back, and somebody asks again.
        disk.give_space();
        let again = script.again();
        let mut device = Device::boot(world, &disk, &again).unwrap();
        let end = device.run().await;
        drop(device);
        again.check(world, &disk, &end, &format!("{context}, then again"));
    }
    println!("{name}: full at each of {points} points");
    assert!(points > 20, "{name}: only {points} points");
}

/// Every operation fails once with an I/O error.
async fn broken_everywhere(name: &str, world: &World, start: &SimDisk, script: &Script) {
    let mut points = 0_u64;
    for point in 0.. {
        let disk = start.restart(Outcome::Everything);
        world.begin(script);
        disk.break_at(Some(Fault::Broken(point)));
        let context = format!("{name}: operation {point} fails");
        // One that cannot start is started again.
        let mut device = Device::boot(world, &disk, script)
            .or_else(|| Device::boot(world, &disk, script))
            .unwrap();
        let end = device.run().await;
        if !disk.has_struck() {
            break;
        }
        points += 1;
        device.serves_a_whole_version(&context).await;
        drop(device);
        assert!(
            matches!(end, End::Settled(_)),
            "{context}: {end:?}\n{}",
            disk.trace()
        );
        let again = script.again();
        let mut device = Device::boot(world, &disk, &again).unwrap();
        let end = device.run().await;
        drop(device);
        again.check(world, &disk, &end, &format!("{context}, then again"));
    }
    println!("{name}: each of {points} operations failed once");
    assert!(points > 20, "{name}: only {points} points");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_version_arrives_whatever_is_cut() {
    let world = World::new().await;
    cut_everywhere(
        "first install",
        &world,
        &world.enrolled(),
        &Script::install(1),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_arrives_whatever_is_cut() {
    let world = World::new().await;
    let one = world.running(1).await;
    cut_everywhere("update", &world, &one, &Script::install(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_does_not_hold_goes_back_whatever_is_cut() {
    let world = World::new().await;
    let one = world.running(1).await;
    cut_everywhere("roll-back", &world, &one, &Script::rolls_back(2)).await;
    cut_everywhere("failed trial", &world, &one, &Script::fails_its_trial(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_way_back_is_open_whatever_is_cut() {
    let world = World::new().await;
    let one = world.running(1).await;
    let two = world.after(&one, &Script::install(2)).await;
    cut_everywhere("way back", &world, &two, &Script::back_to(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_told_and_borne_wherever_it_strikes() {
    let world = World::new().await;
    full_everywhere(
        "first install",
        &world,
        &world.enrolled(),
        &Script::install(1),
    )
    .await;
    let one = world.running(1).await;
    full_everywhere("update", &world, &one, &Script::install(2)).await;
    full_everywhere("roll-back", &world, &one, &Script::rolls_back(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_that_fails_is_borne_wherever_it_is() {
    let world = World::new().await;
    let one = world.running(1).await;
    broken_everywhere("update", &world, &one, &Script::install(2)).await;
}
