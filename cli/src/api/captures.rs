//! Calls about captured samples.

use super::{ApiClient, ApiError, CALL_TIMEOUT, JSON, accepted, bytes_body, items, query_text};
use dunlin_protocol::capture::seal::SEALED_MAX_BYTES;
use dunlin_protocol::id::Digest;
use http::Method;
use serde_json::Value;

impl ApiClient {
    /// Sealed batches on the server, the newest first.
    ///
    /// # Errors
    /// As every call.
    pub async fn captures(&self, query: &[(&str, String)]) -> Result<Vec<Value>, ApiError> {
        let path = format!("/api/v1/captures{}", query_text(query));
        Ok(items(self.get(&path).await?, "captures"))
    }

    /// A sealed batch.
    ///
    /// # Errors
    /// As every call; other bytes than the digest says are unreadable.
    pub async fn capture(&self, sha256: &Digest) -> Result<Vec<u8>, ApiError> {
        let path = format!("/api/v1/captures/{sha256}");
        let empty = bytes_body(Vec::new());
        let sent = self.transport.send_for(
            Method::GET,
            &path,
            JSON,
            empty,
            CALL_TIMEOUT,
            SEALED_MAX_BYTES,
        );
        let bytes = accepted(sent.await?)?.body.to_vec();
        if Digest::of(&bytes) != *sha256 {
            return Err(ApiError::Unreadable {
                request: format!("GET {path}"),
                problem: format!("{} bytes with another SHA-256", bytes.len()),
            });
        }
        Ok(bytes)
    }
}
