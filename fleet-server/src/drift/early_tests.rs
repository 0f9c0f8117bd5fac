#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
use super::*;
use crate::rollout::policy::EarlyPolicy;
use proptest::prelude::*;

/// Steele, Lea & Flood 2014.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    #[allow(clippy::cast_precision_loss)]
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// About standard normal: the sum of twelve uniforms less six.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }
}

/// How devices differ.
#[derive(Debug, Clone, Copy)]
enum Fleet {
    /// Every device's change deviates by .03.
    Alike,
    /// One device's by .005, another's by .1.
    Unequal,
    /// One of twenty falls by .4, whatever it runs.
    Jumps,
    /// Changes pile up at one end: most gain a little, a few lose much.
    Skewed,
    /// Everybody falls by up to .2 as night comes, on top of their own change.
    Nightfall,
}

const FLEETS: [Fleet; 5] = [
    Fleet::Alike,
    Fleet::Unequal,
    Fleet::Jumps,
    Fleet::Skewed,
    Fleet::Nightfall,
];

impl Fleet {
    fn change(self, random: &mut SplitMix64, share_of_run: f64) -> f64 {
        let own = 0.03 * random.normal();
        match self {
            Self::Alike => own,
            Self::Unequal => own / 6.0 * (1.0 + 19.0 * random.unit()),
            Self::Jumps if random.unit() < 0.05 => own - 0.4,
            Self::Jumps => own,
            Self::Skewed => {
                let u = random.unit().max(1e-9);
                0.05 * (1.0 + u.ln())
            }
            Self::Nightfall => own - 0.2 * share_of_run,
        }
    }
}

fn nano(change: f64) -> i64 {
    (change * 1e9) as i64
}

/// A rollout of so many pairs of which the canaries fall by `harm`.
fn run(fleet: Fleet, pairs: u32, harm: f64, seed: u64) -> Vec<PairChange> {
    let mut random = SplitMix64(seed);
    (0..pairs)
        .map(|at| {
            let share_of_run = f64::from(at) / f64::from(pairs);
            let canary = fleet.change(&mut random, share_of_run) - harm;
            let control = fleet.change(&mut random, share_of_run);
            PairChange {
                canary: format!("k{at}"),
                control: format!("c{at}"),
                canary_nano: nano(canary),
                control_nano: nano(control),
            }
        })
        .collect()
}

fn input(pairs: Vec<PairChange>) -> EarlyInput {
    let count = pairs.len() as u64;
    EarlyInput {
        drawn: count.max(500),
        canaries: count,
        controls: count,
        pairs,
    }
}

fn policy(alpha: Ratio) -> GatePolicy {
    GatePolicy {
        early: Some(EarlyPolicy { alpha }),
        ..GatePolicy::default()
    }
}

fn verdict(pairs: Vec<PairChange>) -> EarlyVerdict {
    judge(&GatePolicy::default(), &input(pairs)).unwrap()
}

/// After how many pairs a rollout is stopped that is looked at after each.
fn stopped_after(policy: &GatePolicy, pairs: &[PairChange]) -> Option<usize> {
    (1..=pairs.len()).find(|&seen| {
        let verdict = judge(policy, &input(pairs[..seen].to_vec())).unwrap();
        verdict.decision == EarlyDecision::Stop
    })
}

#[test]
fn the_fixture() {
    let sums = |pairs: u64, difference_nano: i128, square: u128| Sums {
        pairs,
        difference_nano,
        square: square * 1_000_000_000_000_000_000,
        ..Sums::default()
    };
    // V = 2, and τ = V/m = .1 with m = 20.
    let first = sums(100, -30_000_000_000, 200).likelihood_ratio(20.0);
    assert!((first - 1.728_523).abs() < 1e-6, "{first}");
    let second = sums(1000, -150_000_000_000, 2000).likelihood_ratio(20.0);
    assert!((second - 44.328_166).abs() < 1e-6, "{second}");
}

/// The same as the mean of exp(λΣD − λ²ΣD²/2) over λ ~ N(0, 1/m²), integrated numerically.
#[test]
fn it_is_the_mixture_that_it_says() {
    let pairs = run(Fleet::Alike, 30, 0.05, 3);
    let mut sums = Sums::default();
    pairs.iter().for_each(|pair| sums.add(pair));
    let differences: Vec<f64> = pairs.iter().map(|p| plain(p.difference_nano())).collect();
    let (sum, square): (f64, f64) = (
        differences.iter().sum(),
        differences.iter().map(|d| d * d).sum(),
    );
    let (margin, step) = (0.05, 0.01);
    let mean: f64 = (-20_000..20_000)
        .map(|at| {
            let lambda = f64::from(at) * step;
            let density = (-(lambda * margin).powi(2) / 2.0).exp() * margin
                / (2.0 * std::f64::consts::PI).sqrt();
            density * step * (lambda * sum - lambda * lambda * square / 2.0).exp()
        })
        .sum();
    let ratio = sums.likelihood_ratio(margin);
    assert!((ratio / mean - 1.0).abs() < 1e-6, "{ratio} {mean}");
}

#[test]
fn no_data_of_fourteen_pairs_reach_a_two_hundredth() {
    let largest = |pairs: u64| {
        (1..2000_u32)
            .map(|at| {
                let each = 1_000_000_i64 * i64::from(at);
                let mut sums = Sums::default();
                for _ in 0..pairs {
                    sums.add(&PairChange {
                        canary: String::new(),
                        control: String::new(),
                        canary_nano: -each,
                        control_nano: 0,
                    });
                }
                sums.likelihood_ratio(0.05)
            })
            .fold(0.0, f64::max)
    };
    assert!(largest(14) < 200.0, "{}", largest(14));
    assert!(largest(15) > 200.0, "{}", largest(15));
}

#[test]
fn looked_at_after_every_pair_it_keeps_its_alpha_whatever_the_fleet() {
    const RUNS: u32 = 2000;
    const PAIRS: u32 = 150;
    println!("{RUNS} rollouts without regression, {PAIRS} pairs, a look after every pair:");
    for fleet in FLEETS {
        let (mut significant, mut strict, mut stops, mut naive) = (0, 0, 0, 0);
        for seed in 0..u64::from(RUNS) {
            let pairs = run(fleet, PAIRS, 0.0, seed * 7919 + 1);
            let evidence = weigh(0.05, Ratio::percent(5), &pairs);
            significant += u32::from(evidence.is_significant);
            let share = Ratio::new(1, 200).unwrap();
            strict += u32::from(evidence.p.at_most(share));
            // A stop also needs an effect beyond the margin at that look; none can without.
            if evidence.p.at_most(share) {
                stops += u32::from(stopped_after(&policy(share), &pairs).is_some());
            }
            naive += u32::from(ever_beyond_z(&pairs, 1.645));
        }
        println!(
            "  {fleet:?}: p <= 1/20 in {significant}, p <= 1/200 in {strict}, stopped {stops}; a z-test at 1/20: {naive}"
        );
        // One in twenty is 100, one in 200 is 10; four deviations more have a probability of 1/30 000.
        assert!(significant <= 100 + 39, "{fleet:?}: {significant}");
        assert!(strict <= 10 + 13, "{fleet:?}: {strict}");
        assert!(stops <= strict);
        assert!(
            naive > 2 * 100,
            "the simulation can tell a test that does not keep it"
        );
    }
}

/// What is often done instead: a z-test at every look.
fn ever_beyond_z(pairs: &[PairChange], z: f64) -> bool {
    let (mut n, mut sum, mut square) = (0.0, 0.0, 0.0);
    pairs.iter().any(|pair| {
        let difference = plain(pair.difference_nano());
        n += 1.0;
        sum += difference;
        square += difference * difference;
        let variance: f64 = (square - sum * sum / n) / (n - 1.0_f64).max(1.0);
        n >= 20.0 && sum / n < -z * (variance / n).sqrt()
    })
}

#[test]
fn a_regression_is_found_long_before_the_last_device() {
    const RUNS: usize = 200;
    const PAIRS: u32 = 500;
    println!("{RUNS} rollouts with a regression, {PAIRS} pairs, a look after every pair:");
    let policy = GatePolicy::default();
    for (fleet, harm, median_max) in [
        (Fleet::Alike, 0.3, 20),
        (Fleet::Alike, 0.1, 25),
        (Fleet::Alike, 0.07, 30),
        (Fleet::Unequal, 0.1, 60),
        (Fleet::Jumps, 0.1, 60),
        (Fleet::Nightfall, 0.1, 25),
    ] {
        let mut found: Vec<usize> = (0..RUNS as u64)
            .map(|seed| {
                let pairs = run(fleet, PAIRS, harm, seed * 104_729 + 5);
                stopped_after(&policy, &pairs).unwrap_or(usize::MAX)
            })
            .collect();
        found.sort_unstable();
        let (median, worst) = (found[RUNS / 2], found[RUNS - 1]);
        println!(
            "  {fleet:?}, confidence falls by {harm}: stopped after {median} pairs (median), {worst} at most"
        );
        assert!(median <= median_max, "{fleet:?} {harm}: {median}");
        assert!(worst <= PAIRS as usize, "{fleet:?} {harm}: one was missed");
    }
}

#[test]
fn a_harm_within_the_margin_is_seen_and_not_stopped() {
    let verdict = verdict(run(Fleet::Alike, 400, 0.03, 11));
    let evidence = verdict.evidence.unwrap();
    assert!(
        evidence.is_significant && !evidence.is_beyond_margin,
        "{}",
        verdict.reason
    );
    assert_eq!(verdict.decision, EarlyDecision::GoOn);
}

#[test]
fn an_improvement_is_no_reason_to_stop() {
    let verdict = verdict(run(Fleet::Alike, 200, -0.3, 12));
    let evidence = verdict.evidence.unwrap();
    assert!(evidence.likelihood_ratio > 1e6 && evidence.p.num == NANO);
    assert_eq!(verdict.decision, EarlyDecision::GoOn);
}

#[test]
fn what_a_stop_rests_on_is_said() {
    let verdict = verdict(run(Fleet::Alike, 24, 0.3, 13));
    assert_eq!(verdict.decision, EarlyDecision::Stop);
    let said = &verdict.reason;
    assert!(
        said.starts_with("24 pairs of canary and control: confidence -0."),
        "{said}"
    );
    assert!(
        said.contains("margin 0.05, Λ ") && said.ends_with("<= 1/200)"),
        "{said}"
    );
    let json = serde_json::to_string(&verdict).unwrap();
    assert_eq!(
        serde_json::from_str::<EarlyVerdict>(&json).unwrap(),
        verdict
    );
}

#[test]
fn too_few_devices_are_counted_and_their_outcomes_not_looked_at() {
    let mut few = input(run(Fleet::Alike, 12, 0.9, 14));
    few.canaries = 14;
    let verdict = judge(&GatePolicy::default(), &few).unwrap();
    assert_eq!(
        (verdict.decision, verdict.evidence),
        (EarlyDecision::Insufficient, None)
    );
    assert_eq!(
        verdict.reason,
        "too few devices for an early look: 12 of 20 pairs (14 canaries and 12 controls have shown enough)"
    );
    few.drawn = 12;
    let verdict = judge(&GatePolicy::default(), &few).unwrap();
    assert!(
        verdict.reason.ends_with("the gate decides after the soak"),
        "{}",
        verdict.reason
    );
    let off = GatePolicy {
        early: None,
        ..GatePolicy::default()
    };
    assert_eq!(judge(&off, &few), None);
}

#[test]
fn a_device_enters_with_enough_in_both_periods_only() {
    let period = |inferences, confidence_sum_micro, outputs: &[u64]| Period {
        inferences,
        confidence_sum_micro,
        outputs: outputs.to_vec(),
    };
    let before = period(200, 180_000_000, &[100, 100]);
    let after = period(100, 60_000_000, &[100]);
    assert_eq!(member_change(&before, &after, 100), Some(-300_000_000));
    assert_eq!(member_change(&before, &after, 101), None);
    assert_eq!(member_change(&Period::default(), &after, 0), None);
    assert_eq!(
        member_change(&before, &period(100, 60_000_000, &[]), 100),
        None
    );
}

fn any_pairs() -> impl Strategy<Value = Vec<PairChange>> {
    let pair = (any::<i64>(), any::<i64>(), 1_i64..2_000_000_000);
    prop::collection::vec(pair, 0..60).prop_map(|changes| {
        changes
            .into_iter()
            .map(|(canary, control, modulus)| PairChange {
                canary: "k".to_owned(),
                control: "c".to_owned(),
                canary_nano: canary % modulus,
                control_nano: control % modulus,
            })
            .collect()
    })
}

proptest! {
    #[test]
    fn p_never_rises_and_every_input_is_judged(pairs in any_pairs(), margin in 0.0..1.0_f64) {
        let policy = GatePolicy { confidence_margin: margin, ..GatePolicy::default() };
        let mut least = NANO;
        for seen in 0..=pairs.len() {
            let verdict = judge(&policy, &input(pairs[..seen].to_vec())).unwrap();
            prop_assert_eq!(verdict.evidence.is_some(), seen as u64 >= PAIRS_MIN);
            if let Some(evidence) = verdict.evidence {
                prop_assert!(evidence.p.num >= 1 && evidence.p.num <= least);
                prop_assert!(evidence.likelihood_ratio.is_finite());
                least = evidence.p.num;
            }
        }
    }

    /// Over all ways in which the draw could have assigned the members of the same pairs, at most a
    /// share alpha ever comes to p ≤ alpha: the level, without any assumption on the devices.
    #[test]
    fn the_level_holds_over_the_draws(sizes in prop::collection::vec(1_i64..1_000_000_000, 40), seed in any::<u64>()) {
        let mut random = SplitMix64(seed);
        let mut small = 0_u32;
        for _ in 0..300 {
            let pairs: Vec<PairChange> = sizes.iter().map(|size| {
                let sign = if random.next() >> 63 == 0 { 1 } else { -1 };
                PairChange { canary: String::new(), control: String::new(), canary_nano: sign * size, control_nano: 0 }
            }).collect();
            small += u32::from(weigh(0.05, Ratio::percent(10), &pairs).is_significant);
        }
        // A tenth is 30; six deviations more.
        prop_assert!(small <= 30 + 31, "{small} of 300");
    }
}
