//! Telemetry as files.

use super::transport::ANSWER_MAX_BYTES;
use super::{ApiClient, ApiError, query_text};

impl ApiClient {
    /// Writes a table of telemetry (`windows`, `histograms`, `reference`) as Parquet to `to`, as it
    /// comes; gives its length in bytes.
    ///
    /// # Errors
    /// As every call, or the file cannot be written.
    pub async fn export(
        &self,
        table: &str,
        query: &[(&str, String)],
        max_bytes: u64,
        to: &mut impl std::io::Write,
    ) -> Result<u64, ApiError> {
        let path = format!("/api/v1/export/{table}.parquet{}", query_text(query));
        self.transport.fetch(&path, max_bytes, to).await
    }

    /// A signal's picture as SVG (`signal`, and as for [`drift`](Self::drift)).
    ///
    /// # Errors
    /// As every call.
    pub async fn drift_plot(&self, query: &[(&str, String)]) -> Result<Vec<u8>, ApiError> {
        let path = format!("/api/v1/drift/plot.svg{}", query_text(query));
        let mut svg = Vec::new();
        let max_bytes = ANSWER_MAX_BYTES as u64;
        self.transport.fetch(&path, max_bytes, &mut svg).await?;
        Ok(svg)
    }
}
