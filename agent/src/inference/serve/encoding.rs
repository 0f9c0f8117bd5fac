//! Packed request bodies (`Content-Encoding`), unpacked within bounds.

use super::{ApiError, too_large};
use flate2::read::{GzDecoder, ZlibDecoder};
use http::StatusCode;
use std::borrow::Cow;
use std::io::Read;

/// How a body is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    /// Not at all.
    Identity,
    /// RFC 1952.
    Gzip,
    /// RFC 1950: zlib, as HTTP's `deflate` is defined.
    Deflate,
}

impl Encoding {
    /// What these names (`Content-Encoding`, `grpc-encoding`) say.
    ///
    /// # Errors
    /// One that is not known.
    pub(super) fn named(name: Option<&[u8]>) -> Result<Self, ApiError> {
        let Some(name) = name.map(<[u8]>::trim_ascii) else {
            return Ok(Self::Identity);
        };
        for (known, encoding) in [
            ("identity", Self::Identity),
            ("gzip", Self::Gzip),
            ("x-gzip", Self::Gzip),
            ("deflate", Self::Deflate),
        ] {
            if name.eq_ignore_ascii_case(known.as_bytes()) {
                return Ok(encoding);
            }
        }
        let got = crate::inference::api::given::quoted(&String::from_utf8_lossy(name));
        Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!("content encoding: expected identity, gzip or deflate, got {got}"),
        ))
    }

    /// The body as it was before it was packed.
    ///
    /// # Errors
    /// It is not packed so, or is longer than this.
    pub(super) fn decode<'a>(
        self,
        body: &'a [u8],
        max_bytes: usize,
    ) -> Result<Cow<'a, [u8]>, ApiError> {
        let unpacked = match self {
            Self::Identity => return Ok(Cow::Borrowed(body)),
            Self::Gzip => unpack(GzDecoder::new(body), max_bytes),
            Self::Deflate => unpack(ZlibDecoder::new(body), max_bytes),
        };
        let unpacked = unpacked.map_err(|e| {
            let name = format!("{self:?}").to_lowercase();
            ApiError::bad(format!("the body is not {name}: {e}"))
        })?;
        if unpacked.len() > max_bytes {
            return Err(too_large(max_bytes));
        }
        Ok(Cow::Owned(unpacked))
    }
}

/// At most one byte more than allowed, however much there is.
fn unpack(from: impl Read, max_bytes: usize) -> std::io::Result<Vec<u8>> {
    let limit = u64::try_from(max_bytes).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    from.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::{GzEncoder, ZlibEncoder};
    use std::io::Write as _;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut to = GzEncoder::new(Vec::new(), Compression::default());
        to.write_all(bytes).unwrap();
        to.finish().unwrap()
    }

    #[test]
    fn packed_bodies_are_unpacked() {
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
        zlib.write_all(b"a body").unwrap();
        let zlib = zlib.finish().unwrap();
        for (name, packed) in [("GZIP", gzip(b"a body")), (" deflate", zlib)] {
            let encoding = Encoding::named(Some(name.as_bytes())).unwrap();
            assert_eq!(&*encoding.decode(&packed, 6).unwrap(), b"a body");
            let error = encoding.decode(&packed, 5).unwrap_err();
            assert_eq!(error.status, StatusCode::PAYLOAD_TOO_LARGE);
            let error = encoding.decode(&packed[..8], 100).unwrap_err();
            assert_eq!(error.status, StatusCode::BAD_REQUEST);
        }
        assert_eq!(Encoding::named(None), Ok(Encoding::Identity));
        let error = Encoding::named(Some(b"br")).unwrap_err();
        assert_eq!(error.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
        assert!(error.message.contains("got \"br\""), "{error}");
    }

    #[test]
    fn a_bomb_is_unpacked_no_further_than_allowed() {
        let bomb = gzip(&vec![0; 50 << 20]);
        assert!(bomb.len() < 1 << 16);
        let error = Encoding::Gzip.decode(&bomb, 1000).unwrap_err();
        assert_eq!(error.status, StatusCode::PAYLOAD_TOO_LARGE);
    }
}
