//! Which bytes of the old file each part of the new one is made from.

use super::onnx::{Kind, Tensor, tensors};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

/// Shortest run that is copied rather than written: a copy takes three to eight bytes.
pub(super) const COPY_MIN_BYTES: usize = 32;
/// The same where zstd is to find the shorter ones: it codes many of them better.
pub(super) const COPY_MIN_COARSE_BYTES: usize = 16 << 10;
/// Bytes of the old file are looked up by runs of this length, at multiples of it.
const RUN_BYTES: usize = 16;
/// Places at which a tensor without a partner is looked up.
const KNOWN_SAMPLES: usize = 256;
/// Tensors shorter than this are bytes among others.
const TENSOR_MIN_BYTES: usize = 16;

/// Where bytes of the new file come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// The same bytes at this offset of the old file.
    Copy(usize),
    /// Numbers of a tensor and, if there is a like one, where its numbers lie in the old file.
    Numbers { old: Option<usize>, kind: Kind },
    /// Bytes that are nowhere in the old file; what is most like them lies near this offset.
    Literal { near: usize },
}

/// A part of the new file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// Its bytes in the new file.
    pub(super) place: Range<usize>,
    /// What they are made from.
    pub(super) origin: Origin,
}

/// Cuts the new file into pieces, in order and without gaps. Runs shorter than `copy_min_bytes` are
/// not looked for.
pub(super) fn pieces(base: &[u8], target: &[u8], copy_min_bytes: usize) -> Vec<Piece> {
    let (old, new) = (tensors(base), tensors(target));
    let partners = pair(&old, &new);
    let index = RunIndex::new(base);
    let mut plan = Plan {
        base,
        target,
        index,
        copy_min_bytes,
        pieces: Vec::new(),
        end: 0,
    };
    for (tensor, partner) in new.iter().zip(partners) {
        if tensor.place.len() < TENSOR_MIN_BYTES {
            continue;
        }
        let partner = partner.map(|at| old[at].place.clone());
        plan.bytes_until(
            tensor.place.start,
            partner.as_ref().map(|place| place.start),
        );
        plan.tensor(tensor, partner);
    }
    plan.bytes_until(target.len(), Some(base.len()));
    plan.pieces
}

/// For each new tensor the old one it is compared with.
fn pair(old: &[Tensor], new: &[Tensor]) -> Vec<Option<usize>> {
    let mut partners = vec![None; new.len()];
    let mut is_taken = vec![false; old.len()];
    // From sure to unsure: same name and shape, same shape in order (renamed), same name with
    // another outermost dimension (a class more, a word more).
    pair_by(old, new, &mut partners, &mut is_taken, |t| {
        (t.name.clone(), t.dtype, t.dims.clone(), t.place.len())
    });
    pair_by(old, new, &mut partners, &mut is_taken, |t| {
        (t.dtype, t.dims.clone(), t.place.len())
    });
    pair_by(old, new, &mut partners, &mut is_taken, |t| {
        let inner = t.dims.get(1..).unwrap_or_default().to_vec();
        (t.name.clone(), t.dtype, inner, 0)
    });
    partners
}

fn pair_by<K: Ord>(
    old: &[Tensor],
    new: &[Tensor],
    partners: &mut [Option<usize>],
    is_taken: &mut [bool],
    key: impl Fn(&Tensor) -> K,
) {
    let mut free: BTreeMap<K, VecDeque<usize>> = BTreeMap::new();
    for (at, tensor) in old.iter().enumerate().filter(|(at, _)| !is_taken[*at]) {
        free.entry(key(tensor)).or_default().push_back(at);
    }
    for (tensor, partner) in new.iter().zip(partners) {
        if partner.is_none() {
            *partner = free.get_mut(&key(tensor)).and_then(VecDeque::pop_front);
            if let Some(at) = *partner {
                is_taken[at] = true;
            }
        }
    }
}

struct Plan<'a> {
    base: &'a [u8],
    target: &'a [u8],
    index: RunIndex,
    copy_min_bytes: usize,
    pieces: Vec<Piece>,
    /// How much of the new file has pieces.
    end: usize,
}

impl Plan<'_> {
    fn tensor(&mut self, tensor: &Tensor, partner: Option<Range<usize>>) {
        let place = tensor.place.clone();
        let kind = tensor.kind();
        let numbers = |old| Origin::Numbers { old, kind };
        match partner {
            Some(old) if self.base[old.clone()] == self.target[place.clone()] => {
                self.push(place, Origin::Copy(old.start));
            }
            Some(old) => {
                let both = old.len().min(place.len());
                let cut = place.start + both;
                self.push(place.start..cut, numbers(Some(old.start)));
                self.push(cut..place.end, numbers(None));
            }
            None if self.is_known(place.clone()) => {
                self.bytes_until(place.end, None);
            }
            None => self.push(place, numbers(None)),
        }
    }

    /// Whether much of these bytes stands somewhere in the old file, by samples.
    fn is_known(&self, place: Range<usize>) -> bool {
        let bytes = &self.target[place];
        let step = (bytes.len() / KNOWN_SAMPLES).max(2 * RUN_BYTES);
        let starts = (0..bytes.len().saturating_sub(2 * RUN_BYTES)).step_by(step);
        let total = starts.clone().count();
        let found = starts.filter(|start| {
            // One of so many neighbours lies at a multiple of a run's length, if it is there.
            (*start..start + RUN_BYTES).any(|at| {
                let run = &bytes[at..at + RUN_BYTES];
                let old = self.index.find(run);
                old.is_some_and(|old| self.base[old..].starts_with(run))
            })
        });
        found.count() * 8 > total
    }

    /// Adds a piece; a copy that goes on where the last one ends becomes one with it.
    fn push(&mut self, place: Range<usize>, origin: Origin) {
        if place.is_empty() {
            return;
        }
        self.end = place.end;
        if let (Some(last), Origin::Copy(offset)) = (self.pieces.last_mut(), &origin)
            && let Origin::Copy(from) = last.origin
            && from + last.place.len() == *offset
        {
            last.place.end = place.end;
            return;
        }
        self.pieces.push(Piece { place, origin });
    }

    /// End of the last reference into the old file.
    fn cursor(&self) -> usize {
        let last = self.pieces.iter().rev().find_map(|piece| {
            let end = |offset: usize| Some(offset + piece.place.len());
            match piece.origin {
                Origin::Copy(offset) => end(offset),
                Origin::Numbers { old, .. } => old.and_then(end),
                Origin::Literal { .. } => None,
            }
        });
        last.unwrap_or(0)
    }

    /// Pieces for bytes whose meaning is not known, up to `stop`; `old_stop` is where their
    /// like ends in the old file.
    fn bytes_until(&mut self, stop: usize, old_stop: Option<usize>) {
        let start = self.end;
        let cursor = self.cursor();
        // What ends both may be the same although what is before it is not.
        let tail = old_stop.map_or(0, |old_stop| {
            let old = &self.base[cursor.min(old_stop)..old_stop];
            let new = &self.target[start..stop];
            let same = old.iter().rev().zip(new.iter().rev());
            same.take_while(|(a, b)| a == b).count()
        });
        let tail = if tail >= self.copy_min_bytes || tail == stop - start {
            tail
        } else {
            0
        };
        self.search(start, stop - tail);
        if let (Some(old_stop), true) = (old_stop, tail > 0) {
            self.push(stop - tail..stop, Origin::Copy(old_stop - tail));
        }
    }

    /// Looks for runs of the old file in `start..stop` of the new one.
    fn search(&mut self, start: usize, stop: usize) {
        let new = &self.target[..stop];
        let (mut at, mut literal) = (start, start);
        let mut ahead = self.cursor();
        while at < stop {
            let found = [Some(ahead + (at - literal)), self.index.find(&new[at..])]
                .into_iter()
                .flatten()
                .filter_map(|old| self.extend(old, at, literal, new))
                .max_by_key(|(place, _)| place.len());
            let Some((place, old)) = found else {
                at += 1;
                continue;
            };
            self.push(literal..place.start, Origin::Literal { near: old });
            at = place.end;
            literal = at;
            ahead = old + place.len();
            self.push(place, Origin::Copy(old));
        }
        self.push(literal..stop, Origin::Literal { near: ahead });
    }

    /// The run around `old` and `at` that both files share, if it is long enough.
    fn extend(
        &self,
        old: usize,
        at: usize,
        least: usize,
        new: &[u8],
    ) -> Option<(Range<usize>, usize)> {
        let after = same(self.base.get(old..)?, &new[at..]);
        if after == 0 {
            return None;
        }
        let before = self.base[..old].iter().rev();
        let before = before.zip(new[least..at].iter().rev());
        let before = before.take_while(|(a, b)| a == b).count();
        let place = at - before..at + after;
        (place.len() >= self.copy_min_bytes).then_some((place, old - before))
    }
}

/// How many first bytes two slices share.
fn same(a: &[u8], b: &[u8]) -> usize {
    const STEP: usize = 64;
    let steps = a.chunks_exact(STEP).zip(b.chunks_exact(STEP));
    let whole = steps.take_while(|(a, b)| a == b).count() * STEP;
    let rest = a[whole..].iter().zip(&b[whole..]);
    whole + rest.take_while(|(a, b)| a == b).count()
}

/// Places of the old file's runs by their content.
struct RunIndex {
    /// Number of a run, plus one.
    slots: Vec<u32>,
    shift: u32,
}

impl RunIndex {
    fn new(base: &[u8]) -> Self {
        let runs = base.len() / RUN_BYTES;
        let log = (runs * 2).next_power_of_two().ilog2().clamp(8, 31);
        let mut index = Self {
            slots: vec![0; 1 << log],
            shift: 64 - log,
        };
        for (number, run) in base.chunks_exact(RUN_BYTES).enumerate() {
            if let (Some(slot), Ok(number)) = (index.slot(run), u32::try_from(number + 1)) {
                // The first of equal runs stays: what follows it is the longest.
                if index.slots[slot] == 0 {
                    index.slots[slot] = number;
                }
            }
        }
        index
    }

    fn slot(&self, bytes: &[u8]) -> Option<usize> {
        let (low, rest) = bytes.split_first_chunk::<8>()?;
        let (high, _) = rest.split_first_chunk::<8>()?;
        let low = u64::from_le_bytes(*low).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let high = u64::from_le_bytes(*high).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
        let mixed = (low ^ high.rotate_left(29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Some((mixed >> self.shift) as usize)
    }

    /// Where the old file may hold the run that `bytes` begin with.
    fn find(&self, bytes: &[u8]) -> Option<usize> {
        match self.slots[self.slot(bytes)?] {
            0 => None,
            number => Some((number as usize - 1) * RUN_BYTES),
        }
    }
}
