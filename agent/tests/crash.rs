//! The power fails, the disk fills up or an operation breaks at every single operation on the disk
//! of an update: through the agent's own code, over a disk in memory that keeps what POSIX promises
//! and no more, and over real HTTPS.
//!
//! `DUNLIN_CRASH_RANDOM=20` looks at twenty random outcomes of every cut instead of two, and at ten
//! times as many updates that are cut several times.

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
use dunlin_agent::files::Disk;
use dunlin_agent::ledger::Ledger;
use dunlin_protocol::report::Progress;
use random::Random;
use std::collections::BTreeSet;
use std::path::Path;
use world::{FOLDER, World};

/// What was tried.
#[derive(Debug, Default)]
struct Tally {
    points: u64,
    outcomes: u64,
}

/// Most cuts of one update.
const CUTS_MAX: u64 = 4;

fn random_outcomes() -> u64 {
    let asked = std::env::var("DUNLIN_CRASH_RANDOM").ok();
    asked.map_or(2, |n| n.parse().expect("a number"))
}

/// Updates that are cut several times.
fn rounds() -> u64 {
    random_outcomes() * 30
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

/// Cuts the power several times in one update, at random operations, also of what follows a start.
async fn cut_again_and_again(name: &str, world: &World, start: &SimDisk, script: &Script) {
    let mut random = Random(7);
    let (mut cuts, mut interrupted) = (0_u64, 0_u64);
    for round in 0..rounds() {
        let mut disk = start.restart(Outcome::Everything);
        world.begin(script);
        for _ in 0..CUTS_MAX {
            disk.break_at(Some(Fault::Cut(random.below(150))));
            let cut = match Device::boot(world, &disk, script) {
                Some(mut device) => device.run().await == End::Cut,
                None => true,
            };
            if !cut {
                break;
            }
            cuts += 1;
            world.heal();
            disk = disk.restart(Outcome::Random(random.below(u64::MAX >> 33)));
        }
        disk.break_at(None);
        let context = format!("{name}: round {round}");
        let mut device = Device::boot(world, &disk, script).unwrap();
        device.serves_a_whole_version(&context).await;
        let end = device.run().await;
        drop(device);
        // Two cuts in a trial look like a model that takes the machine down.
        if matches!(&end, End::Settled(Progress::Failed(f)) if f.code == "trial_interrupted") {
            interrupted += 1;
            let again = script.again();
            let mut device = Device::boot(world, &disk, &again).unwrap();
            let end = device.run().await;
            drop(device);
            again.check(world, &disk, &end, &context);
        } else {
            script.check(world, &disk, &end, &context);
        }
    }
    println!(
        "{name}: {cuts} cuts in {} updates, {interrupted} trials interrupted twice",
        rounds()
    );
    assert!(cuts > rounds() && interrupted < rounds() / 2, "{cuts} cuts");
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
async fn an_update_by_a_patch_arrives_whatever_is_cut() {
    let world = World::patched().await;
    let (one, script) = (world.running(1).await, Script::install(2));
    world.after(&one, &script).await;
    assert!(!world.model_was_asked_for(), "the patch was of no use");
    cut_everywhere("update by a patch", &world, &one, &script).await;
    full_everywhere("update by a patch", &world, &one, &script).await;
    broken_everywhere("update by a patch", &world, &one, &script).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_agent_of_before_left_is_taken_over_whatever_is_cut() {
    let world = World::new().await;
    let now = world.running(1).await;
    let before = world.as_of_before(&now);
    cut_everywhere("taking over", &world, &before, &Script::install(2)).await;
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
async fn an_update_that_is_cut_again_and_again_arrives() {
    let world = World::new().await;
    let one = world.running(1).await;
    cut_again_and_again("update", &world, &one, &Script::install(2)).await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_be_read_no_more_is_fetched_again() {
    let world = World::new().await;
    let script = Script::install(2);
    let disk = world.running(1).await;
    world.begin(&script);
    let receiver = world.receiver(&Disk::new(disk.clone())).unwrap();
    let want = world.version(2);
    let slot = Path::new(FOLDER).join("models/digits/b");
    let receive = || receiver.receive(&want, jiff::Timestamp::now(), &slot, |_, _| {});
    let error = receive().await.unwrap_err();
    assert_eq!(error.code, "broken", "{error}");
    // All that is held of the first version, and what there is of the second, wears out.
    let blobs = Path::new(FOLDER).join("blobs");
    let files = disk.files();
    for file in files.iter().filter(|f| f.starts_with(&blobs)) {
        disk.wear_out(file);
    }
    let begun = blobs.join("partial").join(world.model_of_two());
    assert!(files.contains(&begun), "{files:?}");
    receive().await.unwrap();
    assert_eq!(world.whole_version(&disk, &slot), Some(2));
    // Nor does it keep garbage from being collected.
    receiver
        .gc(&[world.version(1).digest, want.digest])
        .await
        .unwrap();
    receive().await.unwrap();
    let unread = blobs.join(world.version(1).digest.to_string());
    assert!(!disk.files().contains(&unread));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_ends_cleanly_writes_it_down_and_the_next_takes_it_back() {
    let world = World::new().await;
    let script = Script::install(1);
    let disk = world.running(1).await;
    let ended_cleanly = || {
        let ledger = Ledger::new(&Disk::new(disk.clone()), Path::new(FOLDER));
        ledger.load().unwrap().unwrap().ended_cleanly
    };
    let mut device = Device::boot(&world, &disk, &script).unwrap();
    device.serves_a_whole_version("before").await;
    assert!(!ended_cleanly());
    device.close();
    assert!(ended_cleanly());
    let mut device = Device::boot(&world, &disk, &script).unwrap();
    device.serves_a_whole_version("after").await;
    assert!(!ended_cleanly());
}
