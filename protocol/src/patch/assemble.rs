//! Pieces to records.

use super::choose::{plane_stream, stream};
use super::planes;
use super::wire::{self, Coding, Grid, Relation, kind};
use super::{BLOCK_MAX_BYTES, CONTROL_MAX_BYTES, PREFIX_MAX_BYTES, SCALES_MAX_BYTES};
use std::ops::Range;

/// Copies of this length and more are records of their own.
const COPY_RECORD_BYTES: usize = 256 << 10;
/// A tensor begins in a new block rather than fill up less than this.
const ROOM_MIN_BYTES: usize = 64 << 10;
/// A segment's description is never longer.
const SEGMENT_MAX_BYTES: usize = 32;
/// Beside four times the new file's length, literals may refer to so many bytes of the old file in
/// all: with its tensors that is far below what a decoder reads of it.
const PREFIXES_BYTES: usize = 6 << 20;
/// Around a literal so much of the old file, and as much again as it is long, is its prefix.
const NEIGHBOURHOOD_BYTES: usize = 256;

/// A piece with its coding chosen.
#[derive(Debug, Clone)]
pub(super) enum Part {
    /// From this offset of the old file.
    Copy(usize),
    /// As bytes; like ones lie near this offset of the old file.
    Literal(usize),
    /// As numbers, against those at this offset of the old file.
    Numbers {
        coding: Coding,
        grid: Grid,
        offset: usize,
    },
}

/// Writes records.
pub(super) struct Assembler<'a> {
    base: &'a [u8],
    target: &'a [u8],
    level: i32,
    out: Vec<u8>,
    cursor: usize,
    block: Vec<(Range<usize>, Part)>,
    block_bytes: usize,
    scales_bytes: usize,
    /// What literals referred to so far.
    prefixes_bytes: usize,
}

impl<'a> Assembler<'a> {
    pub(super) fn new(base: &'a [u8], target: &'a [u8], level: i32) -> Self {
        Self {
            base,
            target,
            level,
            out: Vec::new(),
            cursor: 0,
            block: Vec::new(),
            block_bytes: 0,
            scales_bytes: 0,
            prefixes_bytes: 0,
        }
    }

    /// Adds the next bytes of the new file.
    pub(super) fn add(&mut self, mut place: Range<usize>, mut part: Part) {
        if let Part::Copy(offset) = part
            && place.len() >= COPY_RECORD_BYTES
        {
            self.flush();
            wire::put(&mut self.out, (place.len() as u64) << 1);
            let delta = self.delta(offset, place.len());
            wire::put_signed(&mut self.out, delta);
            return;
        }
        while !place.is_empty() {
            let room = BLOCK_MAX_BYTES - self.block_bytes;
            let step = place.len().min(room - room % part.width());
            let scales = part.scales(step);
            let is_control_full = (self.block.len() + 1) * SEGMENT_MAX_BYTES > CONTROL_MAX_BYTES;
            let is_short = step < place.len() && step < ROOM_MIN_BYTES;
            if is_control_full || is_short || self.scales_bytes + scales > SCALES_MAX_BYTES {
                self.flush();
                continue;
            }
            let next = place.start + step;
            self.block.push((place.start..next, part.clone()));
            self.block_bytes += step;
            self.scales_bytes += scales;
            place.start = next;
            part.advance(step);
        }
    }

    /// The records of everything added.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.flush();
        self.out
    }

    fn delta(&mut self, offset: usize, length: usize) -> i64 {
        let delta = offset as i64 - self.cursor as i64;
        self.cursor = offset + length;
        delta
    }

    fn flush(&mut self) {
        let block = std::mem::take(&mut self.block);
        self.block_bytes = 0;
        self.scales_bytes = 0;
        if block.is_empty() {
            return;
        }
        let (literals, prefix) = self.literals(&block);
        let mut control = Vec::new();
        wire::put(&mut control, prefix.ranges.len() as u64);
        let mut cursor = 0;
        for range in &prefix.ranges {
            wire::put_signed(&mut control, range.start as i64 - cursor as i64);
            wire::put(&mut control, range.len() as u64);
            cursor = range.end;
        }
        for (place, part) in &block {
            self.segment(&mut control, place.len(), part);
        }
        wire::put(&mut self.out, (control.len() as u64) << 1 | 1);
        self.out.extend(stream(&control, &[], self.level));
        self.out.extend(literals);
        self.numbers(&block);
    }

    fn segment(&mut self, control: &mut Vec<u8>, length: usize, part: &Part) {
        let head = |kind| (length as u64) << 2 | kind;
        match *part {
            Part::Literal(_) => wire::put(control, head(kind::LITERAL)),
            Part::Copy(offset) => {
                wire::put(control, head(kind::COPY));
                wire::put_signed(control, self.delta(offset, length));
            }
            Part::Numbers {
                coding,
                grid,
                offset,
            } => {
                let is_alone = coding.relation == Relation::Alone;
                let kind = if is_alone { kind::ALONE } else { kind::PAIRED };
                wire::put(control, head(kind));
                coding.put(control);
                if coding.sort.has_scales() {
                    wire::put(control, grid.row_length as u64);
                    wire::put(control, grid.first_column as u64);
                }
                if !is_alone {
                    wire::put_signed(control, self.delta(offset, length));
                }
            }
        }
    }

    /// The scales of all tensors of the block, then the planes of each class.
    fn numbers(&mut self, block: &[(Range<usize>, Part)]) {
        let mut tensors = Vec::new();
        for (place, part) in block {
            if let Part::Numbers {
                coding,
                grid,
                offset,
            } = *part
            {
                let new = &self.target[place.clone()];
                let old = match coding.relation {
                    Relation::Alone => &[],
                    _ => &self.base[offset..offset + new.len()],
                };
                let scales = match coding.sort.has_scales() {
                    true => planes::scales(coding, grid, old, new),
                    false => Default::default(),
                };
                tensors.push((coding, grid, old, new, scales));
            }
        }
        let scales = tensors
            .iter()
            .flat_map(|(.., (columns, rows))| [columns, rows]);
        let scales: Vec<u8> = scales.flatten().copied().collect();
        if !scales.is_empty() {
            self.out.extend(stream(&scales, &[], self.level));
        }
        let mut classes: Vec<Coding> = Vec::new();
        for (coding, ..) in &tensors {
            if !classes.contains(coding) {
                classes.push(*coding);
            }
        }
        for class in classes {
            let (mut old, mut new) = (Vec::new(), Vec::new());
            for (_, grid, numbers, after, scales) in tensors.iter().filter(|t| t.0 == class) {
                old.push(planes::Part {
                    numbers: *numbers,
                    grid: *grid,
                    columns: &scales.0,
                    rows: &scales.1,
                });
                new.push(*after);
            }
            for plane in planes::split(class, &old, &new) {
                self.out.extend(plane_stream(&plane, self.level));
            }
        }
    }

    /// The literals' stream, and what it refers to.
    fn literals(&mut self, block: &[(Range<usize>, Part)]) -> (Vec<u8>, Prefix) {
        let mut bytes = Vec::new();
        let mut near = Vec::new();
        for (place, part) in block {
            if let Part::Literal(offset) = part {
                bytes.extend_from_slice(&self.target[place.clone()]);
                let reach = place.len() + NEIGHBOURHOOD_BYTES;
                let end = self.base.len().min(offset + reach);
                near.push(offset.saturating_sub(reach).min(end)..end);
            }
        }
        if bytes.is_empty() {
            return (Vec::new(), Prefix::default());
        }
        let alone = stream(&bytes, &[], self.level);
        let end = block.last().map_or(0, |(place, _)| place.end);
        let left = (PREFIXES_BYTES + 4 * end).saturating_sub(self.prefixes_bytes);
        // Few literals are not worth the time that a long prefix takes.
        let worth = (bytes.len() * 64).max(64 << 10);
        let prefix = Prefix::of(near, self.base, left.min(worth).min(PREFIX_MAX_BYTES));
        let with = stream(&bytes, &prefix.bytes(self.base), self.level);
        if with.len() + prefix.cost_bytes() < alone.len() {
            self.prefixes_bytes += prefix
                .ranges
                .iter()
                .map(ExactSizeIterator::len)
                .sum::<usize>();
            (with, prefix)
        } else {
            (alone, Prefix::default())
        }
    }
}

impl Part {
    /// Bytes that must stay together.
    fn width(&self) -> usize {
        match self {
            Self::Numbers { coding, .. } => coding.width,
            _ => 1,
        }
    }

    /// How many scales its first `bytes` have.
    fn scales(&self, bytes: usize) -> usize {
        match self {
            Self::Numbers { coding, grid, .. } => {
                let (columns, rows) = grid.scales(coding.sort, bytes / coding.width);
                columns + rows
            }
            _ => 0,
        }
    }

    /// Leaves the first `bytes` behind.
    fn advance(&mut self, bytes: usize) {
        match self {
            Self::Copy(offset) | Self::Literal(offset) => *offset += bytes,
            Self::Numbers {
                coding,
                grid,
                offset,
            } => {
                *offset += bytes;
                let at = grid.first_column + bytes / coding.width;
                grid.first_column = at % grid.row_length;
            }
        }
    }
}

/// Parts of the old file that literals refer to.
#[derive(Debug, Default)]
struct Prefix {
    ranges: Vec<Range<usize>>,
}

impl Prefix {
    /// From what is near each literal, `max` bytes at most.
    fn of(mut near: Vec<Range<usize>>, base: &[u8], max: usize) -> Self {
        if base.len() <= max {
            let whole = 0..base.len();
            return Self {
                ranges: vec![whole],
            };
        }
        near.sort_by_key(|range| range.start);
        let mut ranges: Vec<Range<usize>> = Vec::new();
        let mut total = 0;
        for mut range in near {
            if let Some(last) = ranges.last_mut()
                && range.start <= last.end
            {
                range.start = last.end;
            }
            range.end = range.end.min(range.start + (max - total));
            if range.start >= range.end {
                continue;
            }
            total += range.len();
            match ranges.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => ranges.push(range),
            }
        }
        Self { ranges }
    }

    fn bytes(&self, base: &[u8]) -> Vec<u8> {
        let parts = self.ranges.iter().map(|range| &base[range.clone()]);
        parts.collect::<Vec<_>>().concat()
    }

    fn cost_bytes(&self) -> usize {
        let mut bytes = Vec::new();
        for range in &self.ranges {
            wire::put(&mut bytes, range.start as u64);
            wire::put(&mut bytes, range.len() as u64);
        }
        bytes.len()
    }
}
