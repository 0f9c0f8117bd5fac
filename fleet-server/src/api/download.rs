//! What devices fetch: metadata, manifests, blobs and patches (with ranges).

use super::error::{ApiError, ErrorBody, parse};
use super::{App, blocking};
use crate::blobs::BlobPart;
use crate::patches::Patches;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use dunlin_protocol::id::Digest;
use dunlin_protocol::repository::RepositoryFile;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use std::ops::Range;
use std::sync::Arc;

fn json(bytes: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], bytes).into_response()
}

/// A metadata file.
pub async fn metadata(
    State(app): State<Arc<App>>,
    Path(file): Path<String>,
) -> Result<Response, ApiError> {
    let repository = app.repository.clone();
    let name = file.clone();
    match blocking(move || repository.metadata_file(&name)).await? {
        Some(bytes) => Ok(json(bytes)),
        None => Err(ApiError::not_found(format!("no metadata file {file:?}"))),
    }
}

/// A manifest.
pub async fn target(
    State(app): State<Arc<App>>,
    Path(path): Path<String>,
) -> Result<Response, ApiError> {
    let repository = app.repository.clone();
    let name = path.clone();
    match blocking(move || repository.target_file(&name)).await? {
        Some(bytes) => Ok(json(bytes)),
        None => Err(ApiError::not_found(format!("no target {path:?}"))),
    }
}

/// What a `Range` header asks of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wanted {
    Whole,
    Part(Range<u64>),
    Nothing,
}

/// Reads `bytes=a-b`, `bytes=a-` and `bytes=-n` (RFC 9110, 14.1.2). Several ranges, or what is
/// no range, are answered with the whole, as the standard allows.
fn read_range(header: Option<&HeaderValue>, length: u64) -> Wanted {
    let spec = header.and_then(|v| v.to_str().ok()?.strip_prefix("bytes="));
    let Some((first, last)) = spec.and_then(|s| s.split_once('-')) else {
        return Wanted::Whole;
    };
    match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first > last => Wanted::Whole,
        (Ok(first), _) if (last.is_empty() || last.parse::<u64>().is_ok()) && first >= length => {
            Wanted::Nothing
        }
        (Ok(first), Ok(last)) => Wanted::Part(first..last.saturating_add(1).min(length)),
        (Ok(first), Err(_)) if last.is_empty() => Wanted::Part(first..length),
        (Err(_), Ok(0)) if first.is_empty() => Wanted::Nothing,
        (Err(_), Ok(_)) if first.is_empty() && length == 0 => Wanted::Nothing,
        (Err(_), Ok(tail)) if first.is_empty() => Wanted::Part(length.saturating_sub(tail)..length),
        _ => Wanted::Whole,
    }
}

/// A blob, or a part of it.
pub async fn blob(
    State(app): State<Arc<App>>,
    Path(sha256): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let digest: Digest = parse("sha256", &sha256)?;
    let length = app.blobs.length(&digest).await?;
    let length = length.ok_or(crate::blobs::BlobError::Missing(digest))?;
    // A blob never changes, so If-Range holds or names another blob.
    let file = File {
        name: format!("blob {digest}"),
        tag: format!("\"{digest}\""),
        length,
    };
    send(&headers, &file, |range| async move {
        Ok(app.blobs.get(&digest, range).await?)
    })
    .await
}

/// A patch from one model to another, or a part of it.
pub async fn patch(
    State(app): State<Arc<App>>,
    Path((from, to)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let pair = super::patches::pair(&from, &to)?;
    let patches = Patches::beside(&app.blobs);
    let stored = patches.stored(&pair).await?;
    let stored = stored.ok_or(crate::patches::PatchStoreError::Missing(pair))?;
    let file = File {
        name: pair.to_string(),
        tag: stored.tag,
        length: stored.length,
    };
    send(&headers, &file, |range| async move {
        Ok(patches.get(&pair, range).await?)
    })
    .await
}

/// What can be downloaded.
struct File {
    /// For people.
    name: String,
    /// Entity tag with its quotes: other bytes, another tag.
    tag: String,
    length: u64,
}

/// Answers with a file or the part that was asked for (RFC 9110, 13 and 14).
async fn send<F>(
    headers: &HeaderMap,
    file: &File,
    get: impl FnOnce(Option<Range<u64>>) -> F,
) -> Result<Response, ApiError>
where
    F: Future<Output = Result<BlobPart, ApiError>>,
{
    let File { name, tag, length } = file;
    let same = |name| {
        headers
            .get(name)
            .is_none_or(|v: &HeaderValue| v.as_bytes() == tag.as_bytes())
    };
    let range = headers
        .get(header::RANGE)
        .filter(|_| same(header::IF_RANGE));
    let mut response = Response::builder()
        .header(header::ETAG, tag)
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::CONTENT_TYPE, "application/octet-stream");
    let not_modified = headers.contains_key(header::IF_NONE_MATCH) && same(header::IF_NONE_MATCH);
    let built = if not_modified {
        response
            .status(StatusCode::NOT_MODIFIED)
            .body(Body::empty())
    } else {
        let range = match read_range(range, *length) {
            Wanted::Nothing => {
                let message = format!("{name} has {length} bytes");
                let status = StatusCode::RANGE_NOT_SATISFIABLE;
                let mut refusal = ApiError::new(status, "range", message).into_response();
                if let Ok(value) = HeaderValue::from_str(&format!("bytes */{length}")) {
                    refusal.headers_mut().insert(header::CONTENT_RANGE, value);
                }
                return Ok(refusal);
            }
            Wanted::Whole => None,
            Wanted::Part(range) => Some(range),
        };
        let part = get(range.clone()).await?;
        if range.is_some() {
            let (from, to) = (part.range.start, part.range.end.saturating_sub(1));
            response = response
                .status(StatusCode::PARTIAL_CONTENT)
                .header(header::CONTENT_RANGE, format!("bytes {from}-{to}/{length}"));
        }
        response
            .header(header::CONTENT_LENGTH, part.range.end - part.range.start)
            .body(Body::from_stream(part.stream))
    };
    built.map_err(|e| ApiError::internal(&e))
}

/// Any file of the repository, as devices get it, for whoever carries a bundle to a device by hand.
#[utoipa::path(get, path = "/api/v1/repository/{*path}", tag = "bundles", security(("token" = [])),
    params(("path" = String, Path, description = "metadata/NAME.json, targets/PATH, blobs/SHA256 or patches/SHA256/SHA256")),
    responses((status = 200), (status = 206, description = "a part, as Range asks"), (status = 404, body = ErrorBody)))]
pub async fn file(
    State(app): State<Arc<App>>,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    match parse::<RepositoryFile>("path", &path)? {
        file @ RepositoryFile::Metadata(_) => {
            let repository = app.repository.clone();
            let read = blocking(move || repository.read_file(&file));
            let bytes = read.await?;
            let bytes = bytes.ok_or_else(|| ApiError::not_found(format!("no file {path:?}")))?;
            Ok(json(bytes))
        }
        RepositoryFile::Target(path) => target(State(app), Path(path)).await,
        RepositoryFile::Blob(digest) => blob(State(app), Path(digest.to_string()), headers).await,
        RepositoryFile::Patch { from, to } => {
            let pair = (from.to_string(), to.to_string());
            patch(State(app), Path(pair), headers).await
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn ranges_as_the_standard_has_them() {
        let read = |text: &str| read_range(Some(&HeaderValue::from_str(text).unwrap()), 10);
        assert_eq!(read("bytes=0-3"), Wanted::Part(0..4));
        assert_eq!(read("bytes=4-"), Wanted::Part(4..10));
        assert_eq!(read("bytes=4-99"), Wanted::Part(4..10));
        assert_eq!(read("bytes=-3"), Wanted::Part(7..10));
        assert_eq!(read("bytes=-99"), Wanted::Part(0..10));
        assert_eq!(read("bytes=10-"), Wanted::Nothing);
        assert_eq!(read("bytes=12-13"), Wanted::Nothing);
        assert_eq!(read("bytes=-0"), Wanted::Nothing);
        for whole in [
            "bytes=3-1",
            "bytes=a-b",
            "bytes=0-1,3-4",
            "lines=0-1",
            "bytes=-",
            "bytes=1-x",
        ] {
            assert_eq!(read(whole), Wanted::Whole, "{whole}");
        }
        assert_eq!(read_range(None, 10), Wanted::Whole);
    }
}
