//! Patches between models, by the SHA-256 of both, in the blobs' object store under `patches/`.
//!
//! A patch is not signed and nobody trusts it: a device checks what it gives against the signed
//! hash. So bytes are kept as they come; what counts here is that they are few and go when their
//! models go.

use crate::blobs::{BlobPart, Blobs, Interrupted, receive};
use dunlin_protocol::id::Digest;
use futures_util::{Stream, TryStreamExt as _};
use object_store::path::Path as ObjectPath;
use object_store::{
    GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt as _, PutPayload, WriteMultipart,
};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

const FOLDER: &str = "patches";

/// The old and the new model of a patch, by the SHA-256 of the unpacked files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    /// The old one.
    pub from: Digest,
    /// The new one.
    pub to: Digest,
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "patch from {} to {}", self.from, self.to)
    }
}

/// Why a patch was not stored or given.
#[derive(Debug, thiserror::Error)]
pub enum PatchStoreError {
    /// The store itself.
    #[error("patch store: {0}")]
    Store(#[from] object_store::Error),
    /// No smaller than what it would spare.
    #[error("{pair}: longer than {max_bytes} bytes: the whole model is not longer")]
    TooLarge {
        /// Which.
        pair: Pair,
        /// Limit in bytes.
        max_bytes: u64,
    },
    /// The sender stopped.
    #[error("{pair}: the upload broke off after {length} bytes: {problem}")]
    BrokenOff {
        /// Which.
        pair: Pair,
        /// Bytes that came.
        length: u64,
        /// Why.
        problem: String,
    },
    /// Not there.
    #[error("{0} is not stored here")]
    Missing(Pair),
}

/// A patch that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPatch {
    /// Its length in bytes.
    pub length: u64,
    /// Entity tag, with quotes: another one for other bytes.
    pub tag: String,
}

/// The patches.
#[derive(Debug, Clone)]
pub struct Patches {
    store: Arc<dyn ObjectStore>,
}

fn place(pair: &Pair) -> ObjectPath {
    ObjectPath::from(format!("{FOLDER}/{}/{}", pair.to, pair.from))
}

fn pair_at(place: &ObjectPath) -> Option<Pair> {
    let mut parts = place.parts().skip(1);
    let mut digest = || parts.next()?.as_ref().parse().ok();
    let (to, from) = (digest()?, digest()?);
    Some(Pair { from, to })
}

impl Patches {
    /// The patches beside these blobs.
    #[must_use]
    pub fn beside(blobs: &Blobs) -> Self {
        Self {
            store: blobs.store().clone(),
        }
    }

    /// What is known of a patch without reading it, if it is here.
    ///
    /// # Errors
    /// The store failed.
    pub async fn stored(&self, pair: &Pair) -> Result<Option<StoredPatch>, PatchStoreError> {
        match self.store.head(&place(pair)).await {
            Ok(ObjectMeta { size, e_tag, .. }) => Ok(Some(StoredPatch {
                length: size,
                tag: format!("\"{}\"", e_tag.unwrap_or_default().replace('"', "")),
            })),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Stores a patch of at most `max_bytes` from a stream; it is there only once all of it came.
    ///
    /// # Errors
    /// Too long, broken off, or the store failed; nothing is kept then.
    pub async fn put<S, E>(
        &self,
        pair: &Pair,
        max_bytes: u64,
        stream: S,
    ) -> Result<u64, PatchStoreError>
    where
        S: Stream<Item = Result<bytes::Bytes, E>>,
        E: fmt::Display,
    {
        let place = place(pair);
        let mut upload = WriteMultipart::new(self.store.put_multipart(&place).await?);
        match receive(stream, max_bytes, &mut upload, |_| {}).await {
            Ok(0) => {
                upload.abort().await?;
                self.store.put(&place, PutPayload::new()).await?;
                Ok(0)
            }
            Ok(length) => {
                upload.finish().await?;
                Ok(length)
            }
            Err(interrupted) => {
                if let Err(error) = upload.abort().await {
                    tracing::warn!(%pair, %error, "patch store: an upload was not cleaned up");
                }
                let pair = *pair;
                Err(match interrupted {
                    Interrupted::TooLarge => PatchStoreError::TooLarge { pair, max_bytes },
                    Interrupted::Store(error) => error.into(),
                    Interrupted::BrokenOff(length, problem) => PatchStoreError::BrokenOff {
                        pair,
                        length,
                        problem,
                    },
                })
            }
        }
    }

    /// A patch, or a part of it, as [`Blobs::get`].
    ///
    /// # Errors
    /// [`PatchStoreError::Missing`], a range that begins beyond the end, or the store failed.
    pub async fn get(
        &self,
        pair: &Pair,
        range: Option<Range<u64>>,
    ) -> Result<BlobPart, PatchStoreError> {
        let mut options = GetOptions::new();
        options.range = range.map(GetRange::Bounded);
        match self.store.get_opts(&place(pair), options).await {
            Ok(found) => Ok(BlobPart {
                length: found.meta.size,
                range: found.range.clone(),
                stream: found.into_stream(),
            }),
            Err(object_store::Error::NotFound { .. }) => Err(PatchStoreError::Missing(*pair)),
            Err(e) => Err(e.into()),
        }
    }

    /// Deletes every patch that is not to be kept, and whatever else lies among them; how many.
    ///
    /// # Errors
    /// The store failed; those deleted by then are gone.
    pub async fn retain(&self, keep: impl Fn(&Pair) -> bool) -> Result<usize, PatchStoreError> {
        let all: Vec<ObjectMeta> = self
            .store
            .list(Some(&ObjectPath::from(FOLDER)))
            .try_collect()
            .await?;
        let mut deleted = 0;
        for object in all {
            if !pair_at(&object.location).is_some_and(|pair| keep(&pair)) {
                self.store.delete(&object.location).await?;
                deleted += 1;
            }
        }
        Ok(deleted)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use bytes::Bytes;
    use futures_util::stream;

    fn pair(from: &str, to: &str) -> Pair {
        Pair {
            from: Digest::of(from.as_bytes()),
            to: Digest::of(to.as_bytes()),
        }
    }

    fn one(bytes: &'static [u8]) -> impl Stream<Item = Result<Bytes, String>> {
        stream::iter([Ok(Bytes::from_static(bytes))])
    }

    #[tokio::test]
    async fn a_patch_is_kept_whole_and_short_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let patches = Patches::beside(&Blobs::open(dir.path()).unwrap());
        let a = pair("1", "2");
        let long = patches.put(&a, 4, one(b"patch")).await;
        assert!(matches!(
            long,
            Err(PatchStoreError::TooLarge { max_bytes: 4, .. })
        ));
        let cut = stream::iter([Ok(Bytes::from_static(b"pa")), Err("cut".to_owned())]);
        assert!(matches!(
            patches.put(&a, 5, cut).await,
            Err(PatchStoreError::BrokenOff { length: 2, .. })
        ));
        assert_eq!(patches.stored(&a).await.unwrap(), None);
        assert_eq!(patches.put(&a, 5, one(b"patch")).await.unwrap(), 5);
        assert_eq!(patches.stored(&a).await.unwrap().unwrap().length, 5);
        let part = patches.get(&a, Some(2..99)).await.unwrap();
        assert_eq!((part.length, part.range), (5, 2..5));
        let missing = patches.get(&pair("2", "1"), None).await;
        assert!(matches!(missing, Err(PatchStoreError::Missing(_))));
    }

    #[tokio::test]
    async fn patches_go_with_their_models_and_blobs_stay() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let digest = Digest::of(b"blob");
        blobs.put(&digest, one(b"blob")).await.unwrap();
        let patches = Patches::beside(&blobs);
        for (from, to) in [("1", "2"), ("1", "3"), ("2", "3")] {
            patches.put(&pair(from, to), 9, one(b"x")).await.unwrap();
        }
        let kept = Digest::of(b"3");
        assert_eq!(patches.retain(|pair| pair.to == kept).await.unwrap(), 1);
        assert_eq!(patches.stored(&pair("1", "2")).await.unwrap(), None);
        assert!(patches.stored(&pair("2", "3")).await.unwrap().is_some());
        assert_eq!(blobs.length(&digest).await.unwrap(), Some(4));
    }
}
