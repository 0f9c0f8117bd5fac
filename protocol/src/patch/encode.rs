//! From the old and the new file to a patch.

use super::assemble::{Assembler, Part};
use super::choose::{self, Numbers};
use super::decode::{Limits, apply};
use super::onnx::Kind;
use super::pairing::{COPY_MIN_BYTES, COPY_MIN_COARSE_BYTES, Origin, Piece, pieces};
use super::wire::{self, Relation};
use super::zstandard;
use super::{BLOCK_MAX_BYTES, MAGIC, MODE_RECORDS, MODE_WHOLE, PREFIX_MAX_BYTES, PatchError};
use std::collections::BTreeMap;
use std::io::Cursor;
use std::ops::Range;

/// How to make a patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// zstd's level, 1 to 22.
    pub level: i32,
}

impl Default for Options {
    fn default() -> Self {
        Self { level: 19 }
    }
}

/// Why no patch was made. The full file is what travels then.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The new patch could not be applied.
    #[error("the patch that was made does not apply: {0}")]
    Apply(#[from] PatchError),
    /// The new patch gave another file.
    #[error("the patch that was made gives another file")]
    Different,
}

/// Bytes of the new file that are made in one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// `copied`, `difference`, `xor`, `planes` or `bytes`.
    pub how: &'static str,
    /// So many of the new file's bytes.
    pub target_bytes: u64,
}

/// A patch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Its bytes.
    pub patch: Vec<u8>,
    /// How the new file is made from it; ways that do not occur are left out.
    pub shares: Vec<Share>,
}

/// Makes a patch from `base` to `target`, any two files, and applies it to make sure.
///
/// # Errors
/// [`MakeError`]: the patch proved wrong and is not given out.
pub fn make(base: &[u8], target: &[u8], options: &Options) -> Result<Made, MakeError> {
    let mut plan = Plan {
        base,
        target,
        level: options.level,
        tensors: BTreeMap::new(),
    };
    let mut made = plan.records(COPY_MIN_BYTES);
    if is_rich_in_bytes(&made) {
        let coarse = plan.records(COPY_MIN_COARSE_BYTES);
        if coarse.patch.len() < made.patch.len() {
            made = coarse;
        }
    }
    if let Some(whole) = whole(base, target, options.level)
        && whole.patch.len() < made.patch.len()
    {
        made = whole;
    }
    let mut proof = Vec::with_capacity(target.len());
    let limits = Limits {
        target_max_bytes: target.len() as u64,
    };
    let mut patch = &made.patch[..];
    apply(&mut Cursor::new(base), &mut patch, &mut proof, &limits)?;
    if proof != target {
        return Err(MakeError::Different);
    }
    Ok(made)
}

/// Whether what is neither tensor nor copy is enough to be worth a second plan.
fn is_rich_in_bytes(made: &Made) -> bool {
    let bytes = made.shares.iter().find(|share| share.how == "bytes");
    bytes.is_some_and(|share| share.target_bytes > made.patch.len() as u64 / 50)
}

fn head(mode: u8, target: &[u8]) -> Vec<u8> {
    let mut head = MAGIC.to_vec();
    head.push(mode);
    wire::put(&mut head, target.len() as u64);
    head
}

/// One zstd frame with the old file as prefix, where both are short enough.
fn whole(base: &[u8], target: &[u8], level: i32) -> Option<Made> {
    if base.len() > PREFIX_MAX_BYTES || target.len() > BLOCK_MAX_BYTES {
        return None;
    }
    let mut patch = head(MODE_WHOLE, target);
    patch.extend(zstandard::pack(target, base, level)?);
    let target_bytes = target.len() as u64;
    let shares = vec![Share {
        how: "bytes",
        target_bytes,
    }];
    Some(Made { patch, shares })
}

/// Plans for the same two files.
struct Plan<'a> {
    base: &'a [u8],
    target: &'a [u8],
    level: i32,
    /// What was decided for the tensors, by their places in the new file.
    tensors: BTreeMap<(usize, usize), Part>,
}

impl Plan<'_> {
    fn records(&mut self, copy_min_bytes: usize) -> Made {
        let mut assembler = Assembler::new(self.base, self.target, self.level);
        let mut shares: Vec<Share> = Vec::new();
        for piece in pieces(self.base, self.target, copy_min_bytes) {
            let part = self.part(&piece);
            let how = match &part {
                Part::Copy(_) => "copied",
                Part::Literal(_) => "bytes",
                Part::Numbers { coding, .. } => match coding.relation {
                    Relation::Alone => "planes",
                    Relation::Xor => "xor",
                    Relation::Difference | Relation::FloatDifference => "difference",
                },
            };
            let target_bytes = piece.place.len() as u64;
            match shares.iter_mut().find(|share| share.how == how) {
                Some(share) => share.target_bytes += target_bytes,
                None => shares.push(Share { how, target_bytes }),
            }
            assembler.add(piece.place, part);
        }
        let mut patch = head(MODE_RECORDS, self.target);
        patch.extend(assembler.finish());
        Made { patch, shares }
    }

    fn part(&mut self, piece: &Piece) -> Part {
        match piece.origin {
            Origin::Copy(offset) => Part::Copy(offset),
            Origin::Literal { near } => Part::Literal(near),
            Origin::Numbers { old, kind } => {
                let (base, target, level) = (self.base, self.target, self.level);
                let key = (piece.place.start, piece.place.end);
                let decided = self.tensors.entry(key);
                let place = piece.place.clone();
                let part = decided.or_insert_with(|| tensor(base, target, place, old, kind, level));
                part.clone()
            }
        }
    }
}

/// Decides how a tensor is coded.
fn tensor(
    base: &[u8],
    target: &[u8],
    place: Range<usize>,
    old: Option<usize>,
    kind: Kind,
    level: i32,
) -> Part {
    let numbers = Numbers {
        new: &target[place.clone()],
        old: old.map(|offset| &base[offset..offset + place.len()]),
        kind,
    };
    // Where there is no partner, the same place in proportion is as good as any.
    let elsewhere = place.start as u128 * base.len() as u128;
    let elsewhere = (elsewhere / target.len().max(1) as u128) as usize;
    let offset = old.unwrap_or(elsewhere);
    match choose::coding(&numbers, level) {
        Some((coding, grid)) => Part::Numbers {
            coding,
            grid,
            offset,
        },
        None => Part::Literal(offset),
    }
}
