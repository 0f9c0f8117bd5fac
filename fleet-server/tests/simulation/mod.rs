//! A simulated fleet under the real planner: devices that differ from each other and drift on
//! their own, telemetry drawn from them, everything from one seed. No mathematical library
//! function is used, so that the same seed gives the same run on every machine.
#![allow(dead_code, reason = "each test binary uses its part")]

use dunlin_server::drift::early::{self, EarlyInput};
use dunlin_server::drift::gate::{DeviceSample, GateInput, Period};
use dunlin_server::rollout::draw;
use dunlin_server::rollout::model::{Action, DeviceObservation, DeviceState, Plan, RolloutState};
use dunlin_server::rollout::pairs::{self, Entry};
use dunlin_server::rollout::plan::{PlanInput, plan};
use dunlin_server::rollout::policy::Policy;
use dunlin_server::rollout::report::{GateRequest, Report};
use std::collections::BTreeMap;

pub(crate) const T0_MS: i64 = 1_700_000_000_000;
const TICK_MS: i64 = 1000;
const CLASSES: usize = 10;

/// Steele, Lea & Flood 2014.
pub(crate) struct SplitMix64(pub u64);

impl SplitMix64 {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// About standard normal: the sum of twelve uniforms less six.
    pub(crate) fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }
}

/// What version the simulated rollout brings.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// As good as the one before.
    Alike,
    /// Confidence falls from about .9 to .35, and most answers become one class.
    Regressed,
}

/// How a device answers: mean confidence and weights of the classes.
#[derive(Clone)]
struct Behaviour {
    confidence: f64,
    weights: [f64; CLASSES],
}

pub(crate) struct World {
    pub(crate) policy: Policy,
    pub(crate) state: RolloutState,
    pub(crate) fleet: Vec<DeviceObservation>,
    pub(crate) now_ms: i64,
    pub(crate) gates: Vec<GateInput>,
    pub(crate) reports: Vec<(i64, Plan, Report)>,
    /// Devices that are off from the start.
    pub(crate) offline: Vec<String>,
    version: Version,
    /// What members of pairs have shown, by stage.
    entries: BTreeMap<usize, Vec<Entry>>,
    random: SplitMix64,
    behaviours: BTreeMap<String, Behaviour>,
    before: BTreeMap<String, Period>,
}

impl World {
    pub(crate) fn new(policy: Policy, devices: usize, version: Version) -> Self {
        Self::with_spread(policy, devices, version, 0.8)
    }

    /// `spread`: how far devices' class weights lie from 1, at most, 0 to 1.
    pub(crate) fn with_spread(
        mut policy: Policy,
        devices: usize,
        version: Version,
        spread: f64,
    ) -> Self {
        for stage in &mut policy.stages {
            stage.soak_ms = 20_000;
        }
        policy.silence_ms = 60_000;
        policy.validate().expect("policy");
        let names: Vec<String> = (1..=devices)
            .map(|index| format!("edge-{index:02}"))
            .collect();
        let cohorts = draw::cohorts(&policy, &names);
        assert_eq!(policy.check_feasible(&cohorts.sizes()), []);
        let fleet = cohorts
            .stages
            .iter()
            .enumerate()
            .flat_map(|(stage, cohort)| cohort.devices.iter().map(move |device| (stage, device)))
            .map(|(stage, device)| DeviceObservation {
                device: device.clone(),
                stage,
                state: DeviceState::Waiting,
                state_since_ms: T0_MS,
                last_seen_ms: Some(T0_MS - 500),
                assigned_at_ms: None,
                had_version: false,
                waits_for: None,
                way_back: None,
            })
            .collect();
        let mut random = SplitMix64(policy.seed ^ 0x6475_6e6c_696e);
        let behaviours: BTreeMap<String, Behaviour> = names
            .iter()
            .map(|name| (name.clone(), Behaviour::new(&mut random, spread)))
            .collect();
        let before = names
            .iter()
            .map(|name| {
                (
                    name.clone(),
                    behaviours[name].period(&mut random, 0.0, Version::Alike),
                )
            })
            .collect();
        Self {
            policy,
            state: RolloutState::START,
            fleet,
            now_ms: T0_MS,
            gates: Vec::new(),
            reports: Vec::new(),
            offline: Vec::new(),
            version,
            entries: BTreeMap::new(),
            random,
            behaviours,
            before,
        }
    }

    /// Ticks until the rollout rests: ended with nothing left to do, or paused.
    pub(crate) fn run(&mut self) {
        for _ in 0..1000 {
            let acted = self.tick();
            let rests = self.state.has_ended() || matches!(self.state, RolloutState::Paused { .. });
            if rests && !acted && self.fleet.iter().all(|d| !d.state.is_active()) {
                return;
            }
        }
        panic!(
            "seed {}: the rollout does not come to rest: {}",
            self.policy.seed,
            self.reports.last().unwrap().2
        );
    }

    fn tick(&mut self) -> bool {
        let early = self.early();
        let (mut decided, mut report) = self.ask(None, early.as_ref());
        if let Some(request) = report.gate_request.clone() {
            let input = self.telemetry(&request);
            (decided, report) = self.ask(Some(&input), early.as_ref());
            self.gates.push(input);
        }
        for action in &decided.actions {
            self.execute(action);
        }
        self.state = decided.next_state.clone();
        let acted = !decided.actions.is_empty();
        self.reports.push((self.now_ms - T0_MS, decided, report));
        self.now_ms += TICK_MS;
        self.devices_move();
        acted
    }

    fn ask(&self, gate: Option<&GateInput>, early: Option<&EarlyInput>) -> (Plan, Report) {
        let Self {
            policy,
            state,
            fleet,
            now_ms,
            ..
        } = self;
        plan(&PlanInput {
            policy,
            state,
            fleet,
            joined: &[],
            gate,
            early,
            listening_since_ms: Some(T0_MS),
            now_ms: *now_ms,
        })
    }

    fn execute(&mut self, action: &Action) {
        let now_ms = self.now_ms;
        match action {
            Action::Assign { device, .. } => {
                self.enter(device, DeviceState::Assigned).assigned_at_ms = Some(now_ms);
            }
            Action::MarkTimedOut { device, .. } => {
                self.enter(device, DeviceState::TimedOut);
            }
            Action::MarkNotStarted { device, .. } => {
                self.enter(device, DeviceState::NotStarted);
            }
            Action::RollBack { devices } => {
                for device in &mut self.fleet {
                    if devices.contains(&device.device) {
                        device.assigned_at_ms = None;
                    }
                }
            }
            _ => {}
        }
    }

    fn enter(&mut self, name: &str, state: DeviceState) -> &mut DeviceObservation {
        let found = self.fleet.iter_mut().find(|device| device.device == name);
        let device = found.expect("known device");
        (device.state, device.state_since_ms) = (state, self.now_ms);
        device
    }

    /// Each device takes a second to hear, three to install, four on probation, two to go back.
    fn devices_move(&mut self) {
        for (at, device) in self.fleet.iter_mut().enumerate() {
            if self.offline.contains(&device.device) {
                continue;
            }
            device.last_seen_ms = Some(self.now_ms - 100);
            let since_ms = self.now_ms - device.state_since_ms;
            let own_pace_ms = (at as i64 % 3) * TICK_MS;
            let next = match (&device.state, device.assigned_at_ms) {
                (DeviceState::Assigned, Some(_)) => DeviceState::Working,
                (DeviceState::Working, Some(_)) if since_ms >= 3000 + own_pace_ms => {
                    DeviceState::Probation
                }
                (DeviceState::Probation, Some(_)) if since_ms >= 4000 => DeviceState::Succeeded,
                (DeviceState::Succeeded | DeviceState::Probation | DeviceState::Working, None)
                    if since_ms >= 2000 =>
                {
                    DeviceState::RolledBack {
                        reason: "told to go back".to_owned(),
                    }
                }
                _ => continue,
            };
            (device.state, device.state_since_ms) = (next, self.now_ms);
        }
    }

    /// What the stage's pairs have shown: each device at its own pace, some seconds after the
    /// canary's success.
    fn early(&mut self) -> Option<EarlyInput> {
        let gate = self.policy.gate.clone()?;
        let (RolloutState::Running { stage } | RolloutState::Paused { stage, .. }) = self.state
        else {
            return None;
        };
        let fleet = self.fleet.clone();
        let pairs = pairs::of_stage(&fleet, stage);
        let entries = self.entries.entry(stage).or_default();
        if early::applies(&gate, pairs.len() as u64) {
            let open = pairs::open(&pairs, entries);
            let due = open.into_iter().enumerate().filter(|(at, member)| {
                self.now_ms - member.from_ms >= 2000 + (*at as i64 % 5) * TICK_MS
            });
            for (_, member) in due {
                let version = if member.is_canary {
                    self.version
                } else {
                    Version::Alike
                };
                let behaviour = &self.behaviours[member.device];
                let after = behaviour.period(&mut self.random, 0.0, version);
                let before = &self.before[member.device];
                entries.push(Entry {
                    device: member.device.to_owned(),
                    change_nano: early::member_change(before, &after, gate.min_inferences),
                });
            }
        }
        Some(pairs::input(&pairs, entries)).filter(|input| input.drawn > 0)
    }

    /// What the devices did since the stage's last success; the hour is the same for all.
    fn telemetry(&mut self, request: &GateRequest) -> GateInput {
        let hour = 0.02 * self.random.normal();
        let mut samples = |names: &[String], version: Version| -> Vec<DeviceSample> {
            names
                .iter()
                .map(|name| DeviceSample {
                    device: name.clone(),
                    before: self.before[name].clone(),
                    after: self.behaviours[name].period(&mut self.random, hour, version),
                })
                .collect()
        };
        let canaries = samples(&request.canaries, self.version);
        GateInput {
            canaries,
            controls: samples(&request.controls, Version::Alike),
        }
    }
}

impl Behaviour {
    /// Devices differ: the mean confidence by ±.04, each class's weight by ±`spread`.
    fn new(random: &mut SplitMix64, spread: f64) -> Self {
        let confidence = 0.88 + 0.04 * random.normal();
        let weights = std::array::from_fn(|_| 1.0 - spread + 2.0 * spread * random.unit());
        Self {
            confidence,
            weights,
        }
    }

    /// 150 to 400 inferences. A device's own day moves its confidence by ±.02 and the weight of
    /// each class by up to a tenth.
    fn period(&self, random: &mut SplitMix64, hour: f64, version: Version) -> Period {
        let inferences = 150 + random.next() % 251;
        let mut confidence = self.confidence + hour + 0.02 * random.normal();
        let mut weights = self
            .weights
            .map(|weight| weight * (0.9 + 0.2 * random.unit()));
        if version == Version::Regressed {
            confidence = 0.35 + 0.02 * random.normal();
            weights[3] += 2.0 * weights.iter().sum::<f64>();
        }
        let total: f64 = weights.iter().sum();
        let mut period = Period {
            inferences,
            confidence_sum_micro: 0,
            outputs: vec![0; CLASSES],
        };
        for _ in 0..inferences {
            let one = (confidence + 0.1 * random.normal()).clamp(0.0, 1.0);
            period.confidence_sum_micro += (one * 1e6) as u64;
            let mut left = random.unit() * total;
            let class = weights.iter().position(|weight| {
                left -= weight;
                left < 0.0
            });
            period.outputs[class.unwrap_or(CLASSES - 1)] += 1;
        }
        period
    }
}
