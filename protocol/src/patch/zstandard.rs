//! zstd frames (RFC 8878) without their first four bytes, which are always the same.

use zstd::zstd_safe::{self, CCtx, CParameter, DCtx};

const FRAME_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Room in front of a frame for the bytes that do not travel.
pub(super) const FRAME_HEAD_BYTES: usize = FRAME_MAGIC.len();
const NO_MEMORY: &str = "no memory for zstd";
/// Window sizes zstd can write, as powers of two; larger ones need a consent of the reader.
const WINDOW_LOG: std::ops::RangeInclusive<u32> = 10..=27;

/// Compresses `bytes`, with `prefix` as what came before them. `None` if that is not smaller.
pub(super) fn pack(bytes: &[u8], prefix: &[u8], level: i32) -> Option<Vec<u8>> {
    let mut context = CCtx::try_create()?;
    let history = (bytes.len() + prefix.len()).max(1);
    let log = history.next_power_of_two().ilog2();
    let mut parameters = vec![
        CParameter::CompressionLevel(level),
        CParameter::ContentSizeFlag(false),
        CParameter::ChecksumFlag(false),
        CParameter::DictIdFlag(false),
    ];
    if !prefix.is_empty() {
        parameters.push(CParameter::WindowLog(
            log.clamp(*WINDOW_LOG.start(), *WINDOW_LOG.end()),
        ));
    }
    for parameter in parameters {
        context.set_parameter(parameter).ok()?;
    }
    if !prefix.is_empty() {
        context.ref_prefix(prefix).ok()?;
    }
    let mut frame = Vec::with_capacity(zstd_safe::compress_bound(bytes.len()));
    context.compress2(&mut frame, bytes).ok()?;
    let body = frame.strip_prefix(&FRAME_MAGIC)?;
    (body.len() < bytes.len()).then(|| body.to_vec())
}

/// Unpacks frames. It keeps zstd's context, which is dear to make where frames are short.
#[derive(Default)]
pub(super) struct Unpacker {
    context: Option<DCtx<'static>>,
}

impl Unpacker {
    /// Unpacks a frame in front of which [`FRAME_HEAD_BYTES`] are free to exactly `length` bytes.
    pub(super) fn unpack(
        &mut self,
        frame: &mut [u8],
        prefix: &[u8],
        length: usize,
    ) -> Result<Vec<u8>, &'static str> {
        let head = frame.get_mut(..FRAME_HEAD_BYTES).ok_or("no frame")?;
        head.copy_from_slice(&FRAME_MAGIC);
        let problem = zstd_safe::get_error_name;
        match zstd_safe::find_frame_compressed_size(frame) {
            Ok(size) if size == frame.len() => {}
            Ok(_) => return Err("goes on after its frame"),
            Err(code) => return Err(problem(code)),
        }
        let mut bytes = Vec::with_capacity(length);
        if prefix.is_empty() {
            let context = match &mut self.context {
                Some(context) => context,
                none => none.insert(DCtx::try_create().ok_or(NO_MEMORY)?),
            };
            context.decompress(&mut bytes, frame).map_err(problem)?;
        } else {
            let mut context = DCtx::try_create().ok_or(NO_MEMORY)?;
            context.ref_prefix(prefix).map_err(problem)?;
            context.decompress(&mut bytes, frame).map_err(problem)?;
        }
        if bytes.len() != length {
            return Err("has another length than declared");
        }
        Ok(bytes)
    }
}
