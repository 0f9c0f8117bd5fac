//! Calls about consumers.

use super::{ApiClient, ApiError, IssuedConsumer, escape, items};
use http::Method;
use serde_json::{Value, json};

impl ApiClient {
    /// Adds a consumer that may read channels of devices (none: of all), and gets a certificate for
    /// the key of a request.
    ///
    /// # Errors
    /// As every call; refused if the name is, or was, given.
    pub async fn add_consumer(
        &self,
        name: &str,
        channels: &[String],
        devices: &[String],
        csr_pem: &str,
    ) -> Result<IssuedConsumer, ApiError> {
        let body =
            json!({"name": name, "channels": channels, "devices": devices, "csr_pem": csr_pem});
        self.call(Method::POST, "/api/v1/consumers", Some(body))
            .await
    }

    /// Gets another certificate for a consumer, in place of the one before.
    ///
    /// # Errors
    /// As every call; refused if the consumer is revoked.
    pub async fn renew_consumer(
        &self,
        name: &str,
        csr_pem: &str,
    ) -> Result<IssuedConsumer, ApiError> {
        let path = format!("/api/v1/consumers/{}/certificate", escape(name));
        let body = json!({ "csr_pem": csr_pem });
        self.call(Method::POST, &path, Some(body)).await
    }

    /// Every consumer, the revoked too.
    ///
    /// # Errors
    /// As every call.
    pub async fn consumers(&self) -> Result<Vec<Value>, ApiError> {
        let answer = self.get("/api/v1/consumers").await?;
        Ok(items(answer, "consumers"))
    }

    /// Lets a consumer in no more.
    ///
    /// # Errors
    /// As every call.
    pub async fn revoke_consumer(&self, name: &str) -> Result<(), ApiError> {
        let path = format!("/api/v1/consumers/{}", escape(name));
        self.exchange(Method::DELETE, &path, None).await.map(drop)
    }
}
