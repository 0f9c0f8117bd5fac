//! Whose request is computed next.
//!
//! So many inferences at once as there are cores. Each model has its own queue, a most it computes
//! at once, a priority and a share: of the models that wait, those of the highest priority are
//! served, and of these the one that has had least computing time for its share (start-time fair
//! queueing, Goyal, Vin and Cheng 1996, by time really spent). A model that was idle gains nothing
//! from it.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Models that are known though nobody asks for them; beyond, those are forgotten.
const IDLE_MAX: usize = 64;
/// Share of a model of which nothing is said.
pub const SHARE_DEFAULT: u32 = 100;
/// Requests of a model that wait, of which nothing is said.
pub const QUEUE_DEFAULT: usize = 256;

/// How a model is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// Most requests that wait; further ones are refused at once.
    pub queue: usize,
    /// Most requests computed at once; none: as many as there are cores.
    pub concurrency: Option<usize>,
    /// Models of a higher one go first.
    pub priority: i32,
    /// Computing time relative to that of other models of the same priority.
    pub cpu_share: u32,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            queue: QUEUE_DEFAULT,
            concurrency: None,
            priority: 0,
            cpu_share: SHARE_DEFAULT,
        }
    }
}

/// Rules by model family.
pub type RulesByModel = BTreeMap<String, Rules>;

/// Why there is no turn.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoTurn {
    /// The model's queue is full.
    #[error("{0} requests wait for it already (inference.models, queue); try again later")]
    Full(usize),
    /// It did not come in time.
    #[error("its turn did not come within {0:?}; try again later")]
    Late(Duration),
}

/// What a model's requests did and do.
#[derive(Debug)]
struct Lane<W> {
    rules: Rules,
    running: usize,
    waiting: VecDeque<W>,
    /// Computing time had, in nanoseconds for a share of [`SHARE_DEFAULT`].
    had: u128,
}

/// Decides; pure. `W` stands for a request that waits.
#[derive(Debug)]
struct Schedule<W> {
    cores: usize,
    running: usize,
    rules: RulesByModel,
    lanes: BTreeMap<String, Lane<W>>,
    /// What the model last chosen had had: where one begins that was idle.
    now: u128,
}

impl<W> Schedule<W> {
    fn new(cores: usize, rules: RulesByModel) -> Self {
        Self {
            cores: cores.max(1),
            running: 0,
            rules,
            lanes: BTreeMap::new(),
            now: 0,
        }
    }

    /// A request comes: begins at once (`None`), or waits as what `waiter` makes.
    fn ask<T>(
        &mut self,
        model: &str,
        waiter: impl FnOnce() -> (W, T),
    ) -> Result<Option<T>, NoTurn> {
        let (cores, now) = (self.cores, self.now);
        if !self.lanes.contains_key(model) {
            self.forget_idle();
        }
        let rules = &self.rules;
        let lane = self.lanes.entry(model.to_owned()).or_insert_with(|| Lane {
            rules: rules.get(model).copied().unwrap_or_default(),
            running: 0,
            waiting: VecDeque::new(),
            had: now,
        });
        if lane.running == 0 && lane.waiting.is_empty() {
            lane.had = lane.had.max(now);
        }
        if self.running < cores && lane.has_room(cores) && lane.waiting.is_empty() {
            lane.running += 1;
            self.running += 1;
            return Ok(None);
        }
        if lane.waiting.len() >= lane.rules.queue {
            return Err(NoTurn::Full(lane.waiting.len()));
        }
        let (waits, token) = waiter();
        lane.waiting.push_back(waits);
        Ok(Some(token))
    }

    /// A request ended after so long.
    fn done(&mut self, model: &str, spent: Duration) {
        self.running = self.running.saturating_sub(1);
        if let Some(lane) = self.lanes.get_mut(model) {
            lane.running = lane.running.saturating_sub(1);
            let share = u128::from(lane.rules.cpu_share.max(1));
            lane.had += spent.as_nanos() * u128::from(SHARE_DEFAULT) / share;
        }
    }

    /// The request whose turn it is, if there is room for one; it counts as begun.
    fn next(&mut self) -> Option<(String, W)> {
        if self.running >= self.cores {
            return None;
        }
        let ready = self
            .lanes
            .iter_mut()
            .filter(|(_, lane)| !lane.waiting.is_empty() && lane.has_room(self.cores));
        let (model, lane) =
            ready.min_by_key(|(_, lane)| (std::cmp::Reverse(lane.rules.priority), lane.had))?;
        let waits = lane.waiting.pop_front()?;
        lane.running += 1;
        self.running += 1;
        self.now = self.now.max(lane.had);
        Some((model.clone(), waits))
    }

    fn forget_idle(&mut self) {
        if self.lanes.len() >= IDLE_MAX {
            let busy = |lane: &Lane<W>| lane.running > 0 || !lane.waiting.is_empty();
            self.lanes.retain(|_, lane| busy(lane));
        }
    }
}

impl<W> Lane<W> {
    fn has_room(&self, cores: usize) -> bool {
        self.running < self.rules.concurrency.unwrap_or(cores).max(1)
    }
}

/// Gives turns.
#[derive(Debug, Clone)]
pub(crate) struct Turns(Arc<Mutex<Schedule<oneshot::Sender<Turn>>>>);

/// A turn; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    turns: Turns,
    model: String,
    since: Instant,
}

impl Turns {
    pub(crate) fn new(cores: usize, rules: RulesByModel) -> Self {
        Self(Arc::new(Mutex::new(Schedule::new(cores, rules))))
    }

    /// Waits for a turn for a request to this model.
    pub(crate) async fn take(&self, model: &str, limit: Duration) -> Result<Turn, NoTurn> {
        let waits = self.schedule().ask(model, oneshot::channel)?;
        let Some(waits) = waits else {
            return Ok(self.turn(model.to_owned()));
        };
        match timeout(limit, waits).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) | Err(_) => Err(NoTurn::Late(limit)),
        }
    }

    fn turn(&self, model: String) -> Turn {
        Turn {
            turns: self.clone(),
            model,
            since: Instant::now(),
        }
    }

    /// Every change is made in one step, so a panic in another thread cannot have torn it.
    fn schedule(&self) -> MutexGuard<'_, Schedule<oneshot::Sender<Turn>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns
            .schedule()
            .done(&self.model, self.since.elapsed());
        // One that has given up gives its turn back by being dropped here.
        loop {
            let next = self.turns.schedule().next();
            let Some((model, waits)) = next else { return };
            let _ = waits.send(self.turns.turn(model));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn rules(rules: &[(&str, Rules)]) -> RulesByModel {
        rules.iter().map(|(m, r)| ((*m).to_owned(), *r)).collect()
    }

    /// Computing times that each model got while all always had requests waiting.
    fn contend(
        schedule: &mut Schedule<u32>,
        models: &[(&str, u64)],
        turns: usize,
    ) -> BTreeMap<String, u64> {
        let mut got = BTreeMap::new();
        let cost = |model: &str| models.iter().find(|(m, _)| *m == model).unwrap().1;
        let mut running = VecDeque::new();
        for (model, _) in models {
            for n in 0..8 {
                if schedule.ask(model, || (n, ())).unwrap().is_none() {
                    running.push_back((*model).to_owned());
                }
            }
        }
        for _ in 0..turns {
            let model = running.pop_front().unwrap();
            *got.entry(model.clone()).or_default() += cost(&model);
            schedule.done(&model, Duration::from_micros(cost(&model)));
            schedule.ask(&model, || (9, ())).unwrap();
            while let Some((next, _)) = schedule.next() {
                running.push_back(next);
            }
            if running.is_empty() {
                running.push_back(model);
            }
        }
        got
    }

    #[test]
    fn computing_time_goes_by_shares_whatever_a_request_costs() {
        let share = |cpu_share| Rules {
            cpu_share,
            ..Rules::default()
        };
        let by = rules(&[("a", share(300)), ("b", share(100))]);
        let mut schedule = Schedule::new(1, by);
        let got = contend(&mut schedule, &[("a", 700), ("b", 4_000)], 5_000);
        let ratio = got["a"] as f64 / got["b"] as f64;
        assert!((2.8..3.2).contains(&ratio), "{got:?}");
    }

    #[test]
    fn the_higher_priority_goes_first_and_concurrency_leaves_room() {
        let first = Rules {
            priority: 5,
            concurrency: Some(1),
            ..Rules::default()
        };
        let mut schedule = Schedule::new(2, rules(&[("first", first)]));
        assert_eq!(schedule.ask("other", || (0, ())), Ok(None));
        assert_eq!(schedule.ask("other", || (0, ())), Ok(None));
        for n in 1..4 {
            assert!(schedule.ask("other", || (n, ())).unwrap().is_some());
            assert!(schedule.ask("first", || (10 + n, ())).unwrap().is_some());
        }
        let next = |schedule: &mut Schedule<i32>, ended: &str| {
            schedule.done(ended, Duration::from_millis(1));
            let next = schedule.next();
            assert_eq!(schedule.next(), None, "no more than there is room for");
            next.map(|(_, waits)| waits)
        };
        assert_eq!(next(&mut schedule, "other"), Some(11));
        // It may run once at a time: the other one takes the second core.
        assert_eq!(next(&mut schedule, "other"), Some(1));
        assert_eq!(next(&mut schedule, "first"), Some(12));
    }

    #[test]
    fn a_full_queue_refuses_and_an_idle_model_saves_nothing_up() {
        let short = Rules {
            queue: 1,
            ..Rules::default()
        };
        let mut schedule = Schedule::new(1, rules(&[("short", short)]));
        assert_eq!(schedule.ask("busy", || (0, ())), Ok(None));
        assert!(schedule.ask("short", || (1, ())).unwrap().is_some());
        assert_eq!(schedule.ask("short", || (2, ())), Err(NoTurn::Full(1)));
        // The busy one has had a second; the other begins there, not at nothing.
        schedule.done("busy", Duration::from_secs(1));
        assert_eq!(schedule.next(), Some(("short".to_owned(), 1)));
        schedule.done("short", Duration::ZERO);
        schedule.ask("busy", || (3, ())).unwrap();
        schedule.done("busy", Duration::ZERO);
        schedule.ask("short", || (4, ())).unwrap();
        assert!(schedule.lanes["short"].had >= schedule.now);
    }

    #[tokio::test]
    async fn who_gives_up_leaves_no_turn_lost() {
        let turns = Turns::new(1, RulesByModel::new());
        let held = turns.take("a", Duration::from_secs(60)).await.unwrap();
        let late = turns.take("a", Duration::from_millis(1)).await;
        assert_eq!(late.err(), Some(NoTurn::Late(Duration::from_millis(1))));
        let next = tokio::spawn({
            let turns = turns.clone();
            async move { turns.take("b", Duration::from_secs(60)).await }
        });
        while turns
            .schedule()
            .lanes
            .get("b")
            .is_none_or(|l| l.waiting.is_empty())
        {
            tokio::task::yield_now().await;
        }
        drop(held);
        drop(next.await.unwrap().unwrap());
        drop(turns.take("a", Duration::from_secs(60)).await.unwrap());
        assert_eq!(turns.schedule().running, 0);
    }
}
