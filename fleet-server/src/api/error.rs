//! Errors as clients see them, and inputs that fail with them.

use crate::acl::AclError;
use crate::blobs::BlobError;
use crate::consumer::ConsumerError;
use crate::patches::PatchStoreError;
use crate::pki::PkiError;
use crate::repository::RepositoryError;
use crate::store::StoreError;
use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::Serialize;
use serde::de::DeserializeOwned;
use utoipa::ToSchema;

/// The body of every answer that is no success.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorDetail {
    /// Short and stable.
    pub code: String,
    /// For people: what, where, expected and got.
    pub message: String,
}

/// An answer that is no success.
#[derive(Debug)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// Short and stable.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

impl ApiError {
    /// An error of a status.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            status,
            code,
            message,
        }
    }

    /// 400: the request itself is wrong.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// 404: there is no such thing.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// 409: it does not go with what is there.
    pub fn conflict(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, message)
    }

    /// 422: understood, and refused.
    pub fn refused(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, message)
    }

    /// 500: the reason goes to the log.
    pub fn internal(error: &dyn std::fmt::Display) -> Self {
        tracing::error!(%error, "request failed");
        let message = "the server failed; its log says why";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let error = ErrorDetail {
            code: self.code.to_owned(),
            message: self.message,
        };
        (self.status, axum::Json(ErrorBody { error })).into_response()
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict(message) => Self::conflict("conflict", message),
            StoreError::NotFound(message) => Self::not_found(message),
            other => Self::internal(&other),
        }
    }
}

impl From<RepositoryError> for ApiError {
    fn from(error: RepositoryError) -> Self {
        let message = error.to_string();
        match error {
            RepositoryError::File(_) => Self::internal(&error),
            RepositoryError::Blobs(inner) => inner.into(),
            RepositoryError::Trust { source, .. } => Self::refused(source.code(), message),
            RepositoryError::NoRoot => Self::conflict("no_root", message),
            RepositoryError::NothingPublished => Self::not_found(message),
            RepositoryError::NotOurKey { .. } => Self::refused("online_keys", message),
            RepositoryError::RootVersion { .. } => Self::conflict("root_version", message),
            RepositoryError::TargetsVersion { .. } => Self::conflict("targets_version", message),
            RepositoryError::NotDelegated { .. } => Self::refused("not_delegated", message),
            RepositoryError::OutOfScope { .. } => Self::refused("out_of_scope", message),
            RepositoryError::VersionTaken(_) => Self::conflict("version_taken", message),
            RepositoryError::Empty => Self::bad_request(message),
            RepositoryError::Random(_) => Self::internal(&error),
            RepositoryError::ManifestMissing { .. } => Self::conflict("manifest_missing", message),
            RepositoryError::ManifestUnlisted(_) => Self::refused("manifest_unlisted", message),
            RepositoryError::BlobsMissing(_) => Self::conflict("blobs_missing", message),
        }
    }
}

impl From<BlobError> for ApiError {
    fn from(error: BlobError) -> Self {
        let message = error.to_string();
        match error {
            BlobError::Store(_) | BlobError::Folder(_) => Self::internal(&error),
            BlobError::Hash { .. } => Self::refused("hash", message),
            BlobError::TooLarge(_) => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
            }
            BlobError::BrokenOff { .. } => {
                Self::new(StatusCode::REQUEST_TIMEOUT, "broken_off", message)
            }
            BlobError::Missing(_) => Self::not_found(message),
            BlobError::Damaged { .. } => Self::refused("damaged", message),
        }
    }
}

impl From<PatchStoreError> for ApiError {
    fn from(error: PatchStoreError) -> Self {
        let message = error.to_string();
        match error {
            PatchStoreError::Store(_) => Self::internal(&error),
            PatchStoreError::TooLarge { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
            }
            PatchStoreError::BrokenOff { .. } => {
                Self::new(StatusCode::REQUEST_TIMEOUT, "broken_off", message)
            }
            PatchStoreError::Missing(_) => Self::not_found(message),
        }
    }
}

impl From<ConsumerError> for ApiError {
    fn from(error: ConsumerError) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<AclError> for ApiError {
    fn from(error: AclError) -> Self {
        tracing::error!(%error, "the broker's ACL file is not current");
        let message = format!(
            "done, but the broker's ACL file is not current: {error}; ask again or start the server anew"
        );
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "acl_file", message)
    }
}

impl From<PkiError> for ApiError {
    fn from(error: PkiError) -> Self {
        match error {
            PkiError::Csr(_) => Self::bad_request(error.to_string()),
            other => Self::internal(&other),
        }
    }
}

/// A body of raw bytes within the route's limit.
pub struct Raw(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for Raw {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        match Bytes::from_request(request, state).await {
            Ok(bytes) => Ok(Self(bytes)),
            Err(e) if e.status() == StatusCode::PAYLOAD_TOO_LARGE => Err(ApiError::new(
                e.status(),
                "too_large",
                "the body is longer than this route accepts",
            )),
            Err(e) => Err(ApiError::bad_request(e.body_text())),
        }
    }
}

/// A JSON body within the route's limit.
pub struct Input<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Input<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let Raw(bytes) = Raw::from_request(request, state).await?;
        match serde_json::from_slice(&bytes) {
            Ok(value) => Ok(Self(value)),
            Err(e) => Err(ApiError::bad_request(format!("body: {e}"))),
        }
    }
}

/// Reads an identifier or number from a path or query.
///
/// # Errors
/// 400, naming the parameter.
pub fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(
    name: &str,
    text: &str,
) -> Result<T, ApiError> {
    text.parse()
        .map_err(|e| ApiError::bad_request(format!("{name}: {e}")))
}
