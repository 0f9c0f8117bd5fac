//! From the old and the new file to a patch.

use super::assemble::{Assembler, Part};
use super::choose::{self, Numbers};
use super::decode::{Limits, apply};
use super::pairing::{Origin, Piece, pieces};
use super::wire::{self, Relation};
use super::zstandard;
use super::{BLOCK_MAX_BYTES, MAGIC, MODE_RECORDS, MODE_WHOLE, PREFIX_MAX_BYTES, PatchError};
use std::io::Cursor;

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
    let mut made = records(base, target, options.level);
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

fn records(base: &[u8], target: &[u8], level: i32) -> Made {
    let mut assembler = Assembler::new(base, target, level);
    let mut shares: Vec<Share> = Vec::new();
    for piece in pieces(base, target) {
        let part = part(base, target, &piece, level);
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
    let mut patch = head(MODE_RECORDS, target);
    patch.extend(assembler.finish());
    Made { patch, shares }
}

/// Decides how a piece is coded.
fn part(base: &[u8], target: &[u8], piece: &Piece, level: i32) -> Part {
    match piece.origin {
        Origin::Copy(offset) => Part::Copy(offset),
        Origin::Literal { near } => Part::Literal(near),
        Origin::Numbers { old, kind } => {
            let length = piece.place.len();
            let numbers = Numbers {
                new: &target[piece.place.clone()],
                old: old.map(|offset| &base[offset..offset + length]),
                kind,
            };
            // Where there is no partner, the same place in proportion is as good as any.
            let elsewhere = piece.place.start as u128 * base.len() as u128;
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
    }
}
