//! A repository over HTTPS.

use super::{Body, Download, SourceError};
use crate::http::Client;
use dunlin_protocol::repository::RepositoryFile;

/// The repository of a fleet server.
#[derive(Debug, Clone)]
pub(crate) struct Https {
    client: Client,
    base_url: String,
}

impl Https {
    pub(crate) fn new(client: Client, base_url: &str) -> Self {
        Self {
            client,
            base_url: base_url.trim_end_matches('/').to_owned(),
        }
    }

    pub(super) async fn open(
        &self,
        file: &RepositoryFile,
        offset: u64,
    ) -> Result<Download, SourceError> {
        let url = format!("{}/repository/{}", self.base_url, escaped(file));
        let download = self.client.open(&url, offset).await?;
        Ok(Download {
            offset: download.offset,
            total_bytes: download.total_bytes,
            body: Body::Https(Box::new(download)),
        })
    }
}

/// As in a URL. Metadata names are percent-encoded already; in others `%` is a character like any.
fn escaped(file: &RepositoryFile) -> String {
    match file {
        RepositoryFile::Metadata(_) => file.to_string(),
        file => file.to_string().replace('%', "%25"),
    }
}
