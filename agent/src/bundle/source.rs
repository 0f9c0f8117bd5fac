//! Where a bundle comes from: HTTPS, MQTT block by block, or an archive or folder on the device.
//!
//! All give the same files by the same names ([`RepositoryFile`]), none is believed: metadata pass
//! the TUF cycle, and everything else is checked against what those metadata sign.

pub mod blocks;
mod https;
pub mod local;

pub use blocks::BlockLink;
pub(crate) use https::Https;
pub use local::{Local, LocalError};

use super::{Kind, MetadataSource, UpdateError};
use crate::http::HttpError;
use blocks::BlockDownload;
use bytes::Bytes;
use dunlin_protocol::repository::{PathError, RepositoryFile};
use local::LocalDownload;
use std::sync::atomic::{AtomicBool, Ordering};

/// Why a file did not come.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// Over HTTPS.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// Over MQTT.
    #[error("{file} over MQTT: {problem}")]
    Blocks {
        /// The file.
        file: RepositoryFile,
        /// What happened.
        problem: BlockProblem,
    },
    /// From an archive or folder.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// More bytes than a file of this kind may have (endless data).
    #[error("{file}: more than the {max_bytes} bytes that are accepted")]
    TooLarge {
        /// The file.
        file: RepositoryFile,
        /// Limit in bytes.
        max_bytes: u64,
    },
    /// Signed metadata ask for a file that cannot be one of a repository.
    #[error(transparent)]
    Path(#[from] PathError),
}

/// What went wrong with a transfer in blocks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockProblem {
    /// The server has no such file.
    #[error("the server has no such file")]
    Absent,
    /// The file is shorter than what is here of it already.
    #[error("has {total_bytes} bytes, asked for byte {offset} and on")]
    BeyondEnd {
        /// First byte asked for.
        offset: u64,
        /// Length of the file.
        total_bytes: u64,
    },
    /// Another file has taken its place since the first block.
    #[error("changed while it was fetched")]
    Changed,
    /// Nothing useful came for too long.
    #[error("no block came within {after_ms} ms")]
    Stalled {
        /// Time waited.
        after_ms: u64,
    },
}

impl SourceError {
    /// Whether the source says that there is no such file.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(
            self,
            Self::Http(HttpError::Status { code: 404, .. })
                | Self::Blocks {
                    problem: BlockProblem::Absent,
                    ..
                }
                | Self::Local(LocalError::Absent { .. })
        )
    }

    /// Whether the file is shorter than the first byte asked for.
    #[must_use]
    pub fn is_beyond_end(&self) -> bool {
        matches!(
            self,
            Self::Http(HttpError::Status { code: 416, .. })
                | Self::Blocks {
                    problem: BlockProblem::BeyondEnd { .. },
                    ..
                }
                | Self::Local(LocalError::BeyondEnd { .. })
        )
    }

    /// Whether the other end was not even reached.
    fn is_unreachable(&self) -> bool {
        match self {
            Self::Http(HttpError::Timeout { what, .. }) => *what == crate::http::ANSWERS_HEAD,
            Self::Http(error) => {
                matches!(error, HttpError::Connect { .. } | HttpError::Tls { .. })
            }
            _ => false,
        }
    }
}

impl From<SourceError> for UpdateError {
    fn from(error: SourceError) -> Self {
        let detail = error.to_string();
        let (kind, code) = match error {
            SourceError::Http(error) => return error.into(),
            SourceError::Blocks { .. } => (Kind::Transient, "blocks"),
            SourceError::Local(LocalError::Read { .. }) => (Kind::Failed, "file"),
            SourceError::Local(_) => (Kind::Refused, "archive"),
            SourceError::TooLarge { .. } => (Kind::Refused, "too_large"),
            SourceError::Path(_) => (Kind::Refused, "bad_field"),
        };
        Self { kind, code, detail }
    }
}

/// Where to fetch from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// HTTPS alone.
    Https(Https),
    /// MQTT alone.
    Blocks(BlockLink),
    /// HTTPS, and MQTT once HTTPS could not be reached.
    Auto(Auto),
    /// An archive or a folder.
    Local(Local),
}

impl Source {
    /// A file of at most `max_bytes` bytes; `None` if there is none.
    pub(crate) async fn read(
        &self,
        file: &RepositoryFile,
        max_bytes: u64,
    ) -> Result<Option<Vec<u8>>, SourceError> {
        match self.open(file, 0).await {
            Ok(download) => download.collect(file, max_bytes).await.map(Some),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Begins a download at byte `offset`. A source may not honour it: see [`Download::offset`].
    pub(crate) async fn open(
        &self,
        file: &RepositoryFile,
        offset: u64,
    ) -> Result<Download, SourceError> {
        match self {
            Self::Https(https) => https.open(file, offset).await,
            Self::Blocks(link) => open_blocks(link, file, offset).await,
            Self::Local(local) => Ok(local.open(file, offset)?.into()),
            Self::Auto(auto) => auto.open(file, offset).await,
        }
    }

    /// A new attempt begins: what was found out about the network may have changed.
    pub(crate) fn begin_attempt(&self) {
        if let Self::Auto(auto) = self {
            auto.https_failed.store(false, Ordering::Relaxed);
        }
    }
}

impl MetadataSource for Source {
    async fn fetch(&self, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, UpdateError> {
        let file = RepositoryFile::metadata(name).map_err(SourceError::from)?;
        Ok(self.read(&file, max_bytes).await?)
    }
}

/// HTTPS first; once it could not be reached, MQTT for the rest of the attempt.
#[derive(Debug)]
pub(crate) struct Auto {
    https: Https,
    blocks: BlockLink,
    https_failed: AtomicBool,
}

impl Clone for Auto {
    fn clone(&self) -> Self {
        Self::new(self.https.clone(), self.blocks.clone())
    }
}

impl Auto {
    pub(crate) fn new(https: Https, blocks: BlockLink) -> Self {
        Self {
            https,
            blocks,
            https_failed: AtomicBool::new(false),
        }
    }

    async fn open(&self, file: &RepositoryFile, offset: u64) -> Result<Download, SourceError> {
        if !self.https_failed.load(Ordering::Relaxed) {
            match self.https.open(file, offset).await {
                Err(error) if error.is_unreachable() && self.blocks.is_connected() => {
                    tracing::warn!(%error, "HTTPS cannot be reached, fetching over MQTT");
                    self.https_failed.store(true, Ordering::Relaxed);
                }
                other => return other,
            }
        }
        open_blocks(&self.blocks, file, offset).await
    }
}

async fn open_blocks(
    link: &BlockLink,
    file: &RepositoryFile,
    offset: u64,
) -> Result<Download, SourceError> {
    let opened = BlockDownload::open(link, file, offset).await;
    let opened = opened.map_err(|problem| SourceError::Blocks {
        file: file.clone(),
        problem,
    })?;
    Ok(Download {
        offset,
        total_bytes: Some(opened.total_bytes()),
        body: Body::Blocks(file.clone(), Box::new(opened)),
    })
}

/// A download under way.
pub(crate) struct Download {
    /// Where the bytes begin: as asked, or 0 if the source gives all of the file.
    pub(crate) offset: u64,
    /// Length of the whole file, if the source says.
    pub(crate) total_bytes: Option<u64>,
    body: Body,
}

enum Body {
    Https(Box<crate::http::Download>),
    Blocks(RepositoryFile, Box<BlockDownload>),
    Local(LocalDownload),
}

impl From<LocalDownload> for Download {
    fn from(local: LocalDownload) -> Self {
        Self {
            offset: local.offset(),
            total_bytes: Some(local.total_bytes()),
            body: Body::Local(local),
        }
    }
}

impl Download {
    /// The next piece; `None` at the end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, SourceError> {
        match &mut self.body {
            Body::Https(download) => Ok(download.chunk().await?),
            Body::Local(download) => Ok(download.chunk().await?),
            Body::Blocks(file, download) => match download.chunk().await {
                Ok(bytes) => Ok(bytes),
                Err(problem) => Err(SourceError::Blocks {
                    file: file.clone(),
                    problem,
                }),
            },
        }
    }

    pub(crate) async fn collect(
        mut self,
        file: &RepositoryFile,
        max_bytes: u64,
    ) -> Result<Vec<u8>, SourceError> {
        let too_large = || SourceError::TooLarge {
            file: file.clone(),
            max_bytes,
        };
        if self.total_bytes.is_some_and(|n| n > max_bytes) {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if (bytes.len() + chunk.len()) as u64 > max_bytes {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }
}
