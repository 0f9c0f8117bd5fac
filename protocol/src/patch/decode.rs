//! From the old file and a patch to the new file.
//!
//! Memory: at most [`PREFIX_MAX_BYTES`] of the old file, [`BLOCK_MAX_BYTES`] of the new one and as
//! much of packed data or planes at a time: under 9 MiB in all, whatever the files' sizes, with
//! zstd's context and the list of segments. Every length is checked before memory is taken for it.

use super::error::PatchError;
use super::planes::{self, Part};
use super::wire::{self, BadVarint, Coding, Grid, PARTS_MAX, Relation, Slice, kind, method};
use super::zstandard::{FRAME_HEAD_BYTES, Unpacker};
use super::{
    BLOCK_MAX_BYTES, CONTROL_MAX_BYTES, MAGIC, MODE_RECORDS, MODE_WHOLE, PREFIX_MAX_BYTES,
    SCALES_MAX_BYTES, base_read_max_bytes,
};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::Range;

/// Bytes copied at a time.
const COPY_STEP_BYTES: usize = 64 << 10;

/// What the caller allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest new file, in bytes. A device gives the signed length.
    pub target_max_bytes: u64,
}

/// What a patch gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// Bytes of the new file.
    pub target_bytes: u64,
    /// Bytes of the patch.
    pub patch_bytes: u64,
    /// Bytes of the old file that were read.
    pub base_bytes: u64,
}

/// Writes the new file to `out`, given the old file and a patch, and nothing beyond the length
/// that the patch declares. The result is to be trusted no more than the patch: check its
/// length and SHA-256 against the signed ones.
///
/// The patch is read in small steps: give it a buffered reader.
///
/// # Errors
/// [`PatchError`] says whose fault it is. What was written by then is worthless.
pub fn apply(
    base: &mut (impl Read + Seek),
    patch: &mut impl Read,
    out: &mut impl Write,
    limits: &Limits,
) -> Result<Applied, PatchError> {
    let base_bytes = base.seek(SeekFrom::End(0)).map_err(PatchError::Base)?;
    let mut patch = Source {
        patch,
        at: 0,
        unpacker: Unpacker::default(),
    };
    let mut magic = [0; MAGIC.len()];
    patch.fill("the magic", &mut magic)?;
    if magic != MAGIC {
        return Err(PatchError::Magic { got: magic });
    }
    let mode = patch.byte("the mode")?;
    let target_bytes = patch.varint("the new file's length")?;
    patch.bound(
        "the new file's length",
        target_bytes,
        limits.target_max_bytes,
    )?;
    let mut decoder = Decoder {
        base: Base {
            file: base,
            bytes: base_bytes,
            read_bytes: 0,
            read_max_bytes: base_read_max_bytes(target_bytes),
        },
        patch,
        out,
        cursor: 0,
        left_bytes: target_bytes,
    };
    match mode {
        MODE_WHOLE => decoder.whole()?,
        MODE_RECORDS => decoder.records()?,
        got => return Err(decoder.patch.unknown("mode", u64::from(got))),
    }
    decoder.patch.end()?;
    decoder.out.flush().map_err(PatchError::Output)?;
    Ok(Applied {
        target_bytes,
        patch_bytes: decoder.patch.at,
        base_bytes: decoder.base.read_bytes,
    })
}

/// The patch, read from its beginning, with the offset for errors.
struct Source<'a, P> {
    patch: &'a mut P,
    at: u64,
    unpacker: Unpacker,
}

impl<P: Read> Source<'_, P> {
    fn fill(&mut self, what: &'static str, buffer: &mut [u8]) -> Result<(), PatchError> {
        match self.patch.read_exact(buffer) {
            Ok(()) => {
                self.at += buffer.len() as u64;
                Ok(())
            }
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => {
                Err(PatchError::Truncated { at: self.at, what })
            }
            Err(e) => Err(PatchError::Patch(e)),
        }
    }

    fn byte(&mut self, what: &'static str) -> Result<u8, PatchError> {
        let mut byte = [0];
        self.fill(what, &mut byte)?;
        Ok(byte[0])
    }

    fn varint(&mut self, what: &'static str) -> Result<u64, PatchError> {
        wire::varint(|| self.byte(what)).map_err(|bad| match bad {
            BadVarint::Source(e) => e,
            BadVarint::TooLong => self.too_large(what, u64::MAX, u64::MAX),
        })
    }

    fn end(&mut self) -> Result<(), PatchError> {
        match self.byte("") {
            Err(PatchError::Truncated { .. }) => Ok(()),
            Err(e) => Err(e),
            Ok(_) => Err(PatchError::Trailing { at: self.at - 1 }),
        }
    }

    /// The rest of the patch behind room for a frame's head, `max` bytes at most.
    fn rest(&mut self, max: usize) -> Result<Vec<u8>, PatchError> {
        let mut frame = vec![0; FRAME_HEAD_BYTES];
        let mut limited = (&mut *self.patch).take(max as u64 + 1);
        let got = limited.read_to_end(&mut frame).map_err(PatchError::Patch)?;
        self.at += got as u64;
        self.bound("a frame's length", got as u64, max as u64)?;
        Ok(frame)
    }

    /// A stream of `length` bytes once it is unpacked.
    fn stream(
        &mut self,
        what: &'static str,
        length: usize,
        prefix: &[u8],
    ) -> Result<Vec<u8>, PatchError> {
        let method = self.byte(what)?;
        self.stream_by(method, what, length, prefix)
    }

    /// The same; a stream without bytes is not in the patch.
    fn optional_stream(
        &mut self,
        what: &'static str,
        length: usize,
        prefix: &[u8],
    ) -> Result<Vec<u8>, PatchError> {
        match length {
            0 => Ok(Vec::new()),
            length => self.stream(what, length, prefix),
        }
    }

    fn stream_by(
        &mut self,
        method: u8,
        what: &'static str,
        length: usize,
        prefix: &[u8],
    ) -> Result<Vec<u8>, PatchError> {
        match method {
            method::ZERO => Ok(vec![0; length]),
            method::STORED => {
                let mut bytes = vec![0; length];
                self.fill(what, &mut bytes)?;
                Ok(bytes)
            }
            method::ZSTD => {
                let packed = self.varint(what)?;
                // A frame that is not smaller is stored instead.
                self.bound(what, packed, length as u64)?;
                let mut frame = vec![0; FRAME_HEAD_BYTES + packed as usize];
                self.fill(what, &mut frame[FRAME_HEAD_BYTES..])?;
                let bytes = self.unpacker.unpack(&mut frame, prefix, length);
                bytes.map_err(|problem| self.frame(what, problem))
            }
            got => Err(self.unknown("method", u64::from(got))),
        }
    }

    /// One byte plane of `count` bytes.
    fn plane(&mut self, count: usize) -> Result<Vec<u8>, PatchError> {
        let what = "a plane";
        let method = self.byte(what)?;
        if method != method::PARTS {
            return self.plane_by(method, count);
        }
        let parts = self.varint(what)?;
        self.bound("a plane's parts", parts, PARTS_MAX)?;
        let mut plane = Vec::with_capacity(count);
        for part in 0..parts {
            let left = count - plane.len();
            // The last part is what is left.
            let length = match part + 1 == parts {
                true => left as u64,
                false => self.varint(what)?,
            };
            self.bound("a plane's part", length, left as u64)?;
            let method = self.byte(what)?;
            plane.extend(self.plane_by(method, length as usize)?);
        }
        if plane.len() != count {
            return Err(self.frame(what, "has no parts"));
        }
        Ok(plane)
    }

    fn plane_by(&mut self, method: u8, count: usize) -> Result<Vec<u8>, PatchError> {
        let what = "a plane";
        if (method::ZSTD_NIBBLES..=method::ZSTD_BITS).contains(&method) {
            let bits = 8 >> (method - method::ZSTD);
            let length = planes::cut_length(count, bits);
            let cut = self.stream_by(method::ZSTD, what, length, &[])?;
            return Ok(planes::join_groups(&cut, bits, count));
        }
        self.stream_by(method, what, count, &[])
    }

    fn bound(&self, what: &'static str, got: u64, max: u64) -> Result<(), PatchError> {
        if got > max {
            return Err(self.too_large(what, got, max));
        }
        Ok(())
    }

    fn too_large(&self, what: &'static str, got: u64, max: u64) -> PatchError {
        let at = self.at;
        PatchError::TooLarge { at, what, max, got }
    }

    fn unknown(&self, what: &'static str, got: u64) -> PatchError {
        let at = self.at;
        PatchError::Unknown { at, what, got }
    }

    fn frame(&self, what: &'static str, problem: &'static str) -> PatchError {
        let at = self.at;
        PatchError::Frame { at, what, problem }
    }
}

/// The old file.
struct Base<'a, B> {
    file: &'a mut B,
    bytes: u64,
    read_bytes: u64,
    read_max_bytes: u64,
}

impl<B: Read + Seek> Base<'_, B> {
    fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<(), PatchError> {
        let offset = SeekFrom::Start(offset);
        self.file.seek(offset).map_err(PatchError::Base)?;
        self.file.read_exact(into).map_err(PatchError::Base)?;
        self.read_bytes += into.len() as u64;
        Ok(())
    }
}

/// A part of a block and where its bytes are in it.
struct Segment {
    place: Range<usize>,
    from: From,
}

enum From {
    Copy {
        offset: u64,
    },
    Literal,
    Numbers {
        coding: Coding,
        grid: Grid,
        offset: u64,
    },
}

/// What a block's control bytes say.
struct Control {
    prefix: Vec<(u64, usize)>,
    segments: Vec<Segment>,
    block_bytes: usize,
    literal_bytes: usize,
    scales_bytes: usize,
    /// Each coding once, in order of appearance.
    classes: Vec<Coding>,
}

struct Decoder<'a, B, P, W> {
    base: Base<'a, B>,
    patch: Source<'a, P>,
    out: &'a mut W,
    /// End of the last reference into the old file.
    cursor: u64,
    left_bytes: u64,
}

impl<B: Read + Seek, P: Read, W: Write> Decoder<'_, B, P, W> {
    fn whole(&mut self) -> Result<(), PatchError> {
        let what = "the new file";
        let (block, prefix) = (BLOCK_MAX_BYTES as u64, PREFIX_MAX_BYTES as u64);
        self.patch.bound(what, self.left_bytes, block)?;
        self.patch.bound("the old file", self.base.bytes, prefix)?;
        let mut old = vec![0; self.base.bytes as usize];
        self.base.read(0, &mut old)?;
        let mut frame = self.patch.rest(BLOCK_MAX_BYTES)?;
        let length = self.left_bytes as usize;
        let new = self.patch.unpacker.unpack(&mut frame, &old, length);
        let new = new.map_err(|problem| self.patch.frame(what, problem))?;
        self.out.write_all(&new).map_err(PatchError::Output)
    }

    fn records(&mut self) -> Result<(), PatchError> {
        while self.left_bytes > 0 {
            let head = self.patch.varint("a record")?;
            match (head >> 1, head & 1) {
                (0, _) => return Err(self.patch.unknown("empty record", head)),
                (length, 0) => {
                    let delta = wire::unfold(self.patch.varint("a copy's offset")?);
                    self.patch.bound("a copy", length, self.left_bytes)?;
                    let offset = self.refer(delta, length)?;
                    self.copy(offset, length)?;
                }
                (control, _) => {
                    let max = CONTROL_MAX_BYTES as u64;
                    self.patch.bound("a block's control", control, max)?;
                    self.block(control as usize)?;
                }
            }
        }
        Ok(())
    }

    /// Checks a reference to `length` bytes, `delta` from the end of the last one.
    fn refer(&mut self, delta: i64, length: u64) -> Result<u64, PatchError> {
        let offset = self.resolve(self.cursor, delta, length)?;
        self.cursor = offset + length;
        Ok(offset)
    }

    fn resolve(&self, from: u64, delta: i64, length: u64) -> Result<u64, PatchError> {
        let offset = i128::from(from) + i128::from(delta);
        let end = offset + i128::from(length);
        match u64::try_from(offset) {
            Ok(offset) if end <= i128::from(self.base.bytes) => Ok(offset),
            _ => Err(PatchError::BaseRange {
                at: self.patch.at,
                offset,
                length,
                base_bytes: self.base.bytes,
            }),
        }
    }

    fn copy(&mut self, mut offset: u64, length: u64) -> Result<(), PatchError> {
        let mut left = length;
        let mut buffer = vec![0; left.min(COPY_STEP_BYTES as u64) as usize];
        while left > 0 {
            let step = left.min(buffer.len() as u64);
            let bytes = &mut buffer[..step as usize];
            self.base.read(offset, bytes)?;
            self.out.write_all(bytes).map_err(PatchError::Output)?;
            offset += step;
            left -= step;
        }
        self.left_bytes -= length;
        Ok(())
    }

    fn block(&mut self, control_bytes: usize) -> Result<(), PatchError> {
        let control = self.patch.stream("a block's control", control_bytes, &[])?;
        let control = self.control(&control)?;
        let literals = self.literals(&control)?;
        let mut block = vec![0; control.block_bytes];
        let scales = self
            .patch
            .optional_stream("scales", control.scales_bytes, &[])?;
        let mut literals = Slice::new(&literals);
        for segment in &control.segments {
            let bytes = &mut block[segment.place.clone()];
            match segment.from {
                From::Literal => {
                    if let Some(literal) = literals.take(bytes.len() as u64) {
                        bytes.copy_from_slice(literal);
                    }
                }
                From::Copy { offset } => self.base.read(offset, bytes)?,
                From::Numbers { coding, offset, .. } if coding.relation != Relation::Alone => {
                    self.base.read(offset, bytes)?;
                }
                From::Numbers { .. } => {}
            }
        }
        for class in &control.classes {
            let mut parts = parts_of(*class, &control.segments, &mut block, &scales);
            let bytes: usize = parts.iter().map(|part| part.numbers.len()).sum();
            self.class(*class, bytes / class.width, &mut parts)?;
        }
        self.out.write_all(&block).map_err(PatchError::Output)?;
        self.left_bytes -= block.len() as u64;
        Ok(())
    }

    /// Reads the planes of `count` numbers and turns the old ones into new ones.
    fn class(
        &mut self,
        class: Coding,
        count: usize,
        parts: &mut [Part<'_, &mut [u8]>],
    ) -> Result<(), PatchError> {
        let lengths = match class.is_sized {
            true => Some(self.patch.plane(count)?),
            false => None,
        };
        let mut counts = vec![count; class.width];
        if let Some(lengths) = &lengths {
            let mut longer = vec![0; class.width];
            for length in lengths {
                let Some(planes) = longer.get_mut(..usize::from(*length)) else {
                    return Err(self
                        .patch
                        .frame("a plane of lengths", "names too long a number"));
                };
                planes.iter_mut().for_each(|count| *count += 1);
            }
            counts = longer;
        }
        let planes = counts.into_iter().map(|count| self.patch.plane(count));
        let planes = planes.collect::<Result<Vec<_>, _>>()?;
        planes::join(class, lengths.as_deref(), &planes, parts);
        Ok(())
    }

    fn control(&mut self, bytes: &[u8]) -> Result<Control, PatchError> {
        let at = self.patch.at;
        let what = "a block's control";
        let ended = PatchError::Truncated { at, what };
        let mut from = Slice::new(bytes);
        let mut control = Control {
            prefix: Vec::new(),
            segments: Vec::new(),
            block_bytes: 0,
            literal_bytes: 0,
            scales_bytes: 0,
            classes: Vec::new(),
        };
        let mut reads = 0_u64;
        let ranges = from.varint().ok_or(PatchError::Truncated { at, what })?;
        let (mut prefix_bytes, mut prefix_cursor) = (0_u64, 0_u64);
        for _ in 0..ranges {
            let (Some(delta), Some(length)) = (from.signed(), from.varint()) else {
                return Err(ended);
            };
            let offset = self.resolve(prefix_cursor, delta, length)?;
            prefix_cursor = offset + length;
            prefix_bytes = prefix_bytes.saturating_add(length);
            let max = PREFIX_MAX_BYTES as u64;
            self.patch.bound("a block's prefix", prefix_bytes, max)?;
            control.prefix.push((offset, length as usize));
        }
        reads += prefix_bytes;
        while !from.is_empty() {
            let Some(head) = from.varint() else {
                return Err(ended);
            };
            let length = head >> 2;
            if length == 0 {
                return Err(self.patch.unknown("empty segment", head));
            }
            let max = self.left_bytes.min(BLOCK_MAX_BYTES as u64) - control.block_bytes as u64;
            self.patch.bound("a segment", length, max)?;
            let segment = self.segment(head & 3, length, &mut from)?;
            match &segment {
                From::Literal => control.literal_bytes += length as usize,
                From::Copy { .. } => reads += length,
                From::Numbers { coding, grid, .. } => {
                    if length % coding.width as u64 != 0 {
                        return Err(self.patch.unknown("part of a number", length));
                    }
                    if coding.relation != Relation::Alone {
                        reads += length;
                    }
                    let count = length as usize / coding.width;
                    let (columns, rows) = grid.scales(coding.sort, count);
                    control.scales_bytes += columns + rows;
                    let (scales, max) = (control.scales_bytes as u64, SCALES_MAX_BYTES as u64);
                    self.patch.bound("a block's scales", scales, max)?;
                    if !control.classes.contains(coding) {
                        control.classes.push(*coding);
                    }
                }
            }
            let start = control.block_bytes;
            control.block_bytes += length as usize;
            control.segments.push(Segment {
                place: start..control.block_bytes,
                from: segment,
            });
        }
        if control.block_bytes == 0 {
            return Err(self.patch.unknown("empty block", 0));
        }
        let reads = reads.saturating_add(self.base.read_bytes);
        self.patch.bound(
            "what is read of the old file",
            reads,
            self.base.read_max_bytes,
        )?;
        Ok(control)
    }

    fn segment(
        &mut self,
        kind: u64,
        length: u64,
        from: &mut Slice<'_>,
    ) -> Result<From, PatchError> {
        let at = self.patch.at;
        let what = "a block's control";
        let ended = || PatchError::Truncated { at, what };
        match kind {
            kind::LITERAL => Ok(From::Literal),
            kind::COPY => {
                let delta = from.signed().ok_or_else(ended)?;
                let offset = self.refer(delta, length)?;
                Ok(From::Copy { offset })
            }
            _ => {
                let coding = Coding::read(from).map_err(|byte| match byte {
                    Some(byte) => self.patch.unknown("coding", u64::from(byte)),
                    None => ended(),
                })?;
                let is_alone = coding.relation == Relation::Alone;
                if is_alone != (kind == kind::ALONE) {
                    return Err(self.patch.unknown("coding for this kind", kind));
                }
                let grid = match coding.sort.has_scales() {
                    false => Grid::FLAT,
                    true => self.grid(from)?,
                };
                let offset = match is_alone {
                    true => 0,
                    false => {
                        let delta = from.signed().ok_or_else(ended)?;
                        self.refer(delta, length)?
                    }
                };
                Ok(From::Numbers {
                    coding,
                    grid,
                    offset,
                })
            }
        }
    }

    fn grid(&self, from: &mut Slice<'_>) -> Result<Grid, PatchError> {
        let at = self.patch.at;
        let what = "a block's control";
        let (Some(row_length), Some(first_column)) = (from.varint(), from.varint()) else {
            return Err(PatchError::Truncated { at, what });
        };
        let max = SCALES_MAX_BYTES as u64;
        self.patch.bound("a row's length", row_length, max)?;
        self.patch.bound(
            "a row's first column",
            first_column.saturating_add(1),
            row_length,
        )?;
        Ok(Grid {
            row_length: row_length as usize,
            first_column: first_column as usize,
        })
    }

    fn literals(&mut self, control: &Control) -> Result<Vec<u8>, PatchError> {
        let total = control.prefix.iter().map(|(_, length)| length).sum();
        let mut prefix = vec![0; total];
        let mut rest = &mut prefix[..];
        for (offset, length) in &control.prefix {
            let (part, after) = rest.split_at_mut(*length);
            self.base.read(*offset, part)?;
            rest = after;
        }
        self.patch
            .optional_stream("literals", control.literal_bytes, &prefix)
    }
}

/// The numbers of a class in the block, in order, each with its part of the scales.
fn parts_of<'a>(
    class: Coding,
    segments: &[Segment],
    mut block: &'a mut [u8],
    mut scales: &'a [u8],
) -> Vec<Part<'a, &'a mut [u8]>> {
    let mut parts = Vec::new();
    for segment in segments {
        let (numbers, rest) = block.split_at_mut(segment.place.len());
        block = rest;
        if let From::Numbers { coding, grid, .. } = segment.from {
            let (columns, rows) = grid.scales(coding.sort, numbers.len() / coding.width);
            let (columns, rest) = scales.split_at(columns);
            let (rows, rest) = rest.split_at(rows);
            scales = rest;
            if coding == class {
                parts.push(Part {
                    numbers,
                    grid,
                    columns,
                    rows,
                });
            }
        }
    }
    parts
}
