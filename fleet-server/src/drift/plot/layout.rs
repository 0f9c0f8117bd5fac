//! Where bins stand.

use super::text::{NAME_CHARS, number, short};
use super::{BOTTOM, LEFT, RIGHT, TOP, total};
use crate::drift::query::{Bins, Picture};

/// Most classes that have a bar of their own.
pub(super) const CLASSES_MAX: usize = 40;
/// Width of an open tail.
const TAIL_WIDTH: f64 = 26.0;
/// Space between a tail and the bins.
const TAIL_GAP: f64 = 8.0;
/// Narrower bins cannot be seen.
const WIDTH_MIN: f64 = 2.5;
/// Space between two labels of the axis.
const LABEL_WIDTH: f64 = 68.0;
/// A character of a class's name, about.
const CHARACTER_WIDTH: f64 = 8.0;

/// One bin, tail or class.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Slot {
    pub(super) name: String,
    pub(super) x: f64,
    pub(super) width: f64,
    pub(super) reference: f64,
    pub(super) live: f64,
    pub(super) reference_count: u64,
    pub(super) live_count: u64,
    pub(super) is_tail: bool,
    /// Whether the next one is its neighbour, without a space between.
    pub(super) joins_next: bool,
}

/// Shares of a bin.
struct Shares {
    reference: f64,
    live: f64,
}

impl Shares {
    fn of(&self, (reference, live): (u64, u64), name: String, (x, width): (f64, f64)) -> Slot {
        Slot {
            name,
            x,
            width,
            reference: share(reference, self.reference),
            live: share(live, self.live),
            reference_count: reference,
            live_count: live,
            is_tail: false,
            joins_next: false,
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "a share to be drawn")]
fn share(count: u64, whole: f64) -> f64 {
    if whole > 0.0 {
        count as f64 / whole
    } else {
        0.0
    }
}

#[allow(clippy::cast_precision_loss, reason = "a share to be drawn")]
pub(super) fn slots(picture: &Picture) -> Vec<Slot> {
    let tails = picture.under.saturating_add(picture.over);
    let shares = Shares {
        reference: total(&picture.reference) as f64,
        live: total(&picture.live).saturating_add(tails) as f64,
    };
    match &picture.bins {
        Bins::Edges(edges) => histogram(picture, edges, &shares),
        Bins::Classes(names) => classes(picture, names, &shares),
    }
}

fn histogram(picture: &Picture, edges: &[f64], shares: &Shares) -> Vec<Slot> {
    let (Some(first), Some(last)) = (edges.first(), edges.last()) else {
        return Vec::new();
    };
    let left = LEFT + TAIL_WIDTH + TAIL_GAP;
    let right = RIGHT - TAIL_WIDTH - TAIL_GAP;
    let bins = edges.len().saturating_sub(1);
    let is_linear = is_linear(edges, right - left);
    #[allow(clippy::cast_precision_loss, reason = "at most 1024 bins")]
    let x = |at: usize| {
        let share = if is_linear {
            // Halved first: edges may be as far apart as doubles are.
            edges.get(at).map_or(0.0, |e| {
                (e / 2.0 - first / 2.0) / (last / 2.0 - first / 2.0)
            })
        } else {
            at as f64 / bins.max(1) as f64
        };
        left + share * (right - left)
    };
    let mut slots = Vec::with_capacity(bins + 2);
    let below = format!("below {}", number(*first));
    let mut tail = shares.of((0, picture.under), below, (LEFT, TAIL_WIDTH));
    tail.is_tail = true;
    slots.push(tail);
    let counts = picture.reference.iter().zip(&picture.live);
    for (at, (pair, (reference, live))) in edges.windows(2).zip(counts).enumerate() {
        let (from, to) = (number(pair[0]), number(pair[1]));
        let span = (x(at), x(at + 1) - x(at));
        let mut slot = shares.of((*reference, *live), format!("{from} to {to}"), span);
        slot.joins_next = at + 1 < bins;
        slots.push(slot);
    }
    let above = format!("{} and above", number(*last));
    let mut tail = shares.of((0, picture.over), above, (right + TAIL_GAP, TAIL_WIDTH));
    tail.is_tail = true;
    slots.push(tail);
    slots
}

fn is_linear(edges: &[f64], width: f64) -> bool {
    let (Some(first), Some(last)) = (edges.first(), edges.last()) else {
        return false;
    };
    let half = last / 2.0 - first / 2.0;
    let narrowest = edges
        .windows(2)
        .map(|pair| (pair[1] / 2.0 - pair[0] / 2.0) / half * width)
        .fold(f64::INFINITY, f64::min);
    narrowest >= WIDTH_MIN
}

/// Whether all bins are drawn equally wide.
pub(super) fn is_even(slots: &[Slot]) -> bool {
    let mut widths = slots.iter().filter(|slot| !slot.is_tail).map(|s| s.width);
    let first = widths.next().unwrap_or(0.0);
    widths.all(|width| (width - first).abs() < 1e-6)
}

fn classes(picture: &Picture, names: &[String], shares: &Shares) -> Vec<Slot> {
    let mut order: Vec<usize> = (0..names.len()).collect();
    let count = |counts: &[u64], at: usize| counts.get(at).copied().unwrap_or(0);
    if names.len() > CLASSES_MAX {
        let weight = |at: &usize| {
            let reference = share(count(&picture.reference, *at), shares.reference);
            reference.max(share(count(&picture.live, *at), shares.live))
        };
        order.sort_by(|a, b| weight(b).total_cmp(&weight(a)).then(a.cmp(b)));
    }
    let rest = order.split_off(order.len().min(CLASSES_MAX));
    let others = usize::from(!rest.is_empty());
    #[allow(clippy::cast_precision_loss, reason = "at most 41 bars")]
    let pitch = (RIGHT - LEFT) / (order.len() + others).max(1) as f64;
    let span = |at: usize| {
        #[allow(clippy::cast_precision_loss, reason = "at most 41 bars")]
        let x = LEFT + (at as f64 + 0.1) * pitch;
        (x, 0.8 * pitch)
    };
    let mut slots = Vec::with_capacity(order.len() + others);
    for (at, class) in order.iter().enumerate() {
        let counts = (
            count(&picture.reference, *class),
            count(&picture.live, *class),
        );
        let name = names.get(*class).map_or("", String::as_str);
        slots.push(shares.of(counts, short(name, NAME_CHARS), span(at)));
    }
    if others > 0 {
        let sum = |counts: &[u64]| {
            let rest = rest.iter().map(|at| count(counts, *at));
            rest.fold(0_u64, u64::saturating_add)
        };
        let counts = (sum(&picture.reference), sum(&picture.live));
        let name = format!("{} others", rest.len());
        slots.push(shares.of(counts, name, span(order.len())));
    }
    slots
}

/// The axis of shares.
pub(super) struct Axis {
    most: f64,
    step: f64,
}

impl Axis {
    pub(super) fn over(slots: &[Slot]) -> Self {
        let most = slots
            .iter()
            .flat_map(|slot| [slot.reference, slot.live])
            .fold(0.01, f64::max);
        let steps = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.25];
        let step = steps.into_iter().find(|step| most / step <= 5.0);
        let step = step.unwrap_or(0.25);
        Self {
            most: (most / step).ceil() * step,
            step,
        }
    }

    pub(super) fn y(&self, share: f64) -> f64 {
        BOTTOM - share / self.most * (BOTTOM - TOP)
    }

    pub(super) fn ticks(&self) -> Vec<f64> {
        (0..=6_u8)
            .map(|at| f64::from(at) * self.step)
            .filter(|share| *share <= self.most + 1e-9)
            .collect()
    }
}

/// Labels under the axis: edges where there is room for them, or classes.
pub(super) fn ticks(picture: &Picture, slots: &[Slot]) -> Vec<(f64, String)> {
    match &picture.bins {
        Bins::Edges(edges) => {
            let bins = slots.iter().filter(|slot| !slot.is_tail);
            let mut places: Vec<f64> = bins.clone().map(|slot| slot.x).collect();
            places.extend(bins.clone().next_back().map(|slot| slot.x + slot.width));
            let mut ticks: Vec<(f64, String)> = Vec::new();
            let end = places.last().copied().unwrap_or(0.0);
            for (at, (x, edge)) in places.iter().zip(edges).enumerate() {
                let is_last = at + 1 == places.len();
                let is_free = ticks
                    .last()
                    .is_none_or(|(before, _)| x - before >= LABEL_WIDTH);
                if is_last || (is_free && (at == 0 || end - x >= LABEL_WIDTH)) {
                    ticks.push((*x, number(*edge)));
                }
            }
            ticks
        }
        Bins::Classes(_) => {
            let pitch = slots.first().map_or(0.0, |slot| slot.width / 0.8);
            let mut free_from = f64::NEG_INFINITY;
            let mut ticks = Vec::new();
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a few characters"
            )]
            let room = ((pitch / CHARACTER_WIDTH) as usize).max(3);
            for slot in slots {
                let words = short(&slot.name, room);
                #[allow(clippy::cast_precision_loss, reason = "a few characters")]
                let half = words.chars().count() as f64 * CHARACTER_WIDTH / 2.0;
                let middle = slot.x + slot.width / 2.0;
                if middle - half >= free_from {
                    free_from = middle + half;
                    ticks.push((middle, words));
                }
            }
            ticks
        }
    }
}
