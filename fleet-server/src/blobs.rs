//! Blobs by their SHA-256, in an object store (a local folder).

use dunlin_protocol::bundle::{BLOB_MAX_BYTES, Blob, DOCUMENT_MAX_BYTES};
use dunlin_protocol::id::Digest;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt as _};
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{
    GetOptions, GetRange, ObjectStore, ObjectStoreExt as _, PutPayload, WriteMultipart,
};
use sha2::Digest as _;
use std::io::Read as _;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A stream that gives nothing for this long is given up.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Parts of an upload written at once.
const UPLOAD_PARTS: usize = 4;

/// Why a blob was not stored or given.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The store itself.
    #[error("blob store: {0}")]
    Store(#[from] object_store::Error),
    /// The folder cannot be made.
    #[error("blob store: {0}")]
    Folder(#[from] crate::files::FileError),
    /// Other bytes than announced.
    #[error("blob {expected}: the {length} bytes sent have SHA-256 {got}")]
    Hash {
        /// Announced.
        expected: Digest,
        /// Of what was sent.
        got: Digest,
        /// Bytes sent.
        length: u64,
    },
    /// More bytes than any blob has.
    #[error("blob {0}: longer than {BLOB_MAX_BYTES} bytes")]
    TooLarge(Digest),
    /// The sender stopped.
    #[error("blob {digest}: the upload broke off after {length} bytes: {problem}")]
    BrokenOff {
        /// Announced.
        digest: Digest,
        /// Bytes that came.
        length: u64,
        /// Why.
        problem: String,
    },
    /// Not there.
    #[error("blob {0} is not stored here")]
    Missing(Digest),
    /// Stored, but not what the manifest says.
    #[error("blob {digest}: {problem}")]
    Damaged {
        /// Which.
        digest: Digest,
        /// What is wrong.
        problem: String,
    },
}

/// Bytes of a blob, or a part of it.
pub struct BlobPart {
    /// The whole blob's length in bytes.
    pub length: u64,
    /// The bytes given, as offsets.
    pub range: Range<u64>,
    /// The bytes.
    pub stream: BoxStream<'static, object_store::Result<bytes::Bytes>>,
}

/// The blob store. Clones share it.
#[derive(Debug, Clone)]
pub struct Blobs {
    store: Arc<dyn ObjectStore>,
}

fn place(digest: &Digest) -> ObjectPath {
    ObjectPath::from(digest.to_string())
}

impl Blobs {
    /// Blobs in a folder, made if it is not there.
    ///
    /// # Errors
    /// The folder cannot be made or opened.
    pub fn open(folder: &Path) -> Result<Self, BlobError> {
        crate::files::make_private_folder(folder)?;
        let store = LocalFileSystem::new_with_prefix(folder)?.with_fsync(true);
        Ok(Self {
            store: Arc::new(store),
        })
    }

    /// The store itself, for what is kept beside the blobs.
    pub(crate) fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// A blob's length in bytes, if it is here.
    ///
    /// # Errors
    /// The store failed.
    pub async fn length(&self, digest: &Digest) -> Result<Option<u64>, BlobError> {
        match self.store.head(&place(digest)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Stores a blob from a stream; it is there only once its hash was found right.
    ///
    /// # Errors
    /// Another hash, too long, broken off, or the store failed; nothing is kept then.
    pub async fn put<S, E>(&self, digest: &Digest, stream: S) -> Result<u64, BlobError>
    where
        S: Stream<Item = Result<bytes::Bytes, E>>,
        E: std::fmt::Display,
    {
        let mut upload = WriteMultipart::new(self.store.put_multipart(&place(digest)).await?);
        match receive_blob(digest, stream, &mut upload).await {
            Ok(0) => {
                upload.abort().await?;
                self.store.put(&place(digest), PutPayload::new()).await?;
                Ok(0)
            }
            Ok(length) => {
                upload.finish().await?;
                Ok(length)
            }
            Err(e) => {
                if let Err(error) = upload.abort().await {
                    tracing::warn!(%digest, %error, "blob store: an upload was not cleaned up");
                }
                Err(e)
            }
        }
    }

    /// A blob, or a part of it: from the first offset up to the second (exclusive), cut at the
    /// blob's end.
    ///
    /// # Errors
    /// [`BlobError::Missing`], a range that begins beyond the end, or the store failed.
    pub async fn get(
        &self,
        digest: &Digest,
        range: Option<Range<u64>>,
    ) -> Result<BlobPart, BlobError> {
        let mut options = GetOptions::new();
        options.range = range.map(GetRange::Bounded);
        match self.store.get_opts(&place(digest), options).await {
            Ok(found) => Ok(BlobPart {
                length: found.meta.size,
                range: found.range.clone(),
                stream: found.into_stream(),
            }),
            Err(object_store::Error::NotFound { .. }) => Err(BlobError::Missing(*digest)),
            Err(e) => Err(e.into()),
        }
    }

    /// A document of a bundle (profile, golden cases, card) in full, unpacked and checked.
    ///
    /// # Errors
    /// Missing, longer than a document may be, or not what the manifest says.
    pub async fn document(&self, blob: &Blob) -> Result<Vec<u8>, BlobError> {
        let (digest, length) = blob.transport();
        let damaged = |problem: String| BlobError::Damaged { digest, problem };
        if blob.length > DOCUMENT_MAX_BYTES {
            return Err(damaged(format!(
                "{} bytes, at most {DOCUMENT_MAX_BYTES}",
                blob.length
            )));
        }
        let found = self.store.get(&place(&digest)).await;
        let found = found.map_err(|e| match e {
            object_store::Error::NotFound { .. } => BlobError::Missing(digest),
            other => other.into(),
        })?;
        if found.meta.size != length {
            return Err(damaged(format!(
                "{} bytes, expected {length}",
                found.meta.size
            )));
        }
        let bytes = found.bytes().await?;
        let bytes = match &blob.packed {
            None => bytes.to_vec(),
            Some(_) => unpack(&bytes, blob.length).map_err(|e| damaged(e.to_string()))?,
        };
        if bytes.len() as u64 != blob.length {
            return Err(damaged(format!(
                "unpacked, it is not the {} bytes long that the manifest says",
                blob.length
            )));
        }
        let got = Digest::of(&bytes);
        if got != blob.sha256 {
            return Err(damaged(format!(
                "SHA-256 is {got}, expected {}",
                blob.sha256
            )));
        }
        Ok(bytes)
    }
}

fn unpack(packed: &[u8], length: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte more shows that there is more than signed.
    let reader = zstd::stream::read::Decoder::new(packed)?;
    reader.take(length + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Why a stream was not stored whole.
pub(crate) enum Interrupted {
    /// More bytes than may be.
    TooLarge,
    /// The sender stopped after so many bytes.
    BrokenOff(u64, String),
    /// The store failed.
    Store(object_store::Error),
}

/// Writes a stream of at most `max_bytes`, shows every chunk to `see`, and returns the length.
pub(crate) async fn receive<S, E>(
    stream: S,
    max_bytes: u64,
    upload: &mut WriteMultipart,
    mut see: impl FnMut(&[u8]),
) -> Result<u64, Interrupted>
where
    S: Stream<Item = Result<bytes::Bytes, E>>,
    E: std::fmt::Display,
{
    let mut stream = std::pin::pin!(stream);
    let mut length = 0_u64;
    loop {
        let next = tokio::time::timeout(IDLE_TIMEOUT, stream.next()).await;
        let chunk = match next {
            Err(_) => {
                let problem = format!("nothing came for {IDLE_TIMEOUT:?}");
                return Err(Interrupted::BrokenOff(length, problem));
            }
            Ok(None) => return Ok(length),
            Ok(Some(Err(e))) => return Err(Interrupted::BrokenOff(length, e.to_string())),
            Ok(Some(Ok(chunk))) => chunk,
        };
        length += chunk.len() as u64;
        if length > max_bytes {
            return Err(Interrupted::TooLarge);
        }
        see(&chunk);
        let capacity = upload.wait_for_capacity(UPLOAD_PARTS).await;
        capacity.map_err(Interrupted::Store)?;
        upload.put(chunk);
    }
}

async fn receive_blob<S, E>(
    digest: &Digest,
    stream: S,
    upload: &mut WriteMultipart,
) -> Result<u64, BlobError>
where
    S: Stream<Item = Result<bytes::Bytes, E>>,
    E: std::fmt::Display,
{
    let mut hash = sha2::Sha256::new();
    let received = receive(stream, BLOB_MAX_BYTES, upload, |chunk| hash.update(chunk));
    let length = received.await.map_err(|interrupted| match interrupted {
        Interrupted::TooLarge => BlobError::TooLarge(*digest),
        Interrupted::Store(error) => error.into(),
        Interrupted::BrokenOff(length, problem) => BlobError::BrokenOff {
            digest: *digest,
            length,
            problem,
        },
    })?;
    let got = Digest(hash.finalize().into());
    if got != *digest {
        let expected = *digest;
        return Err(BlobError::Hash {
            expected,
            got,
            length,
        });
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use bytes::Bytes;
    use dunlin_protocol::bundle::Packed;
    use futures_util::stream;

    fn chunks(parts: &[&'static [u8]]) -> impl Stream<Item = Result<Bytes, String>> + use<> {
        stream::iter(
            parts
                .iter()
                .map(|p| Ok(Bytes::from_static(p)))
                .collect::<Vec<_>>(),
        )
    }

    #[tokio::test]
    async fn a_blob_is_there_only_if_its_hash_is_right() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let digest = Digest::of(b"hello world");
        let wrong = blobs.put(&digest, chunks(&[b"hello", b" there"])).await;
        assert!(matches!(wrong, Err(BlobError::Hash { length: 11, .. })));
        assert_eq!(blobs.length(&digest).await.unwrap(), None);
        let broken = stream::iter([Ok(Bytes::from_static(b"he")), Err("cut".to_owned())]);
        assert!(matches!(
            blobs.put(&digest, broken).await,
            Err(BlobError::BrokenOff { length: 2, .. })
        ));
        for _ in 0..2 {
            blobs
                .put(&digest, chunks(&[b"hello ", b"world"]))
                .await
                .unwrap();
        }
        assert_eq!(blobs.length(&digest).await.unwrap(), Some(11));
        let part = blobs.get(&digest, Some(6..99)).await.unwrap();
        assert_eq!((part.length, part.range), (11, 6..11));
        let bytes: Vec<Bytes> = part.stream.map(|c| c.unwrap()).collect().await;
        assert_eq!(bytes.concat(), b"world");
        let files = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(files, 1, "aborted uploads leave nothing");
    }

    #[tokio::test]
    async fn an_empty_blob_is_a_blob() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let digest = Digest::of(b"");
        blobs.put(&digest, chunks(&[])).await.unwrap();
        assert_eq!(blobs.length(&digest).await.unwrap(), Some(0));
    }

    #[tokio::test]
    async fn documents_are_unpacked_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let text = vec![b'x'; 10_000];
        let packed = zstd::bulk::compress(&text, 3).unwrap();
        let sha256 = Digest::of(&packed);
        let length = packed.len() as u64;
        let sent = stream::iter([Ok::<_, String>(Bytes::from(packed))]);
        blobs.put(&sha256, sent).await.unwrap();
        let mut blob = Blob {
            sha256: Digest::of(&text),
            length: 10_000,
            packed: Some(Packed {
                encoding: "zstd".to_owned(),
                sha256,
                length,
            }),
        };
        assert_eq!(blobs.document(&blob).await.unwrap(), text);
        blob.length = 9_999;
        assert!(matches!(
            blobs.document(&blob).await,
            Err(BlobError::Damaged { .. })
        ));
    }
}
