//! Where a whole store can come from: one that is looked at, or an archive.

use std::io::Read;

use super::archive::{ArchiveError, Reader};
use super::digest::Digest;
use super::image::{Image, walk};
use crate::model::chunk::Chunk;
use crate::model::id::TopicId;
use crate::model::snapshot::Snapshot;

/// All that a store holds, to be read once.
pub enum Source {
    /// A store that is looked at, or an image of one that is served.
    Image(Box<dyn Image>),
    /// An archive.
    Archive(Box<Reader<Box<dyn Read>>>),
}

impl Source {
    /// The state.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        match self {
            Self::Image(image) => image.snapshot(),
            Self::Archive(reader) => reader.snapshot(),
        }
    }

    /// Hands all messages to `take`, in the order of [`course`](super::course). When it answers, the source was whole,
    /// and what it had is in the digest.
    ///
    /// # Errors
    /// Where the source cannot be read or is damaged, or that of `take`.
    pub fn read<E: From<ArchiveError>>(
        self,
        mut take: impl FnMut(TopicId, &Chunk) -> Result<(), E>,
    ) -> Result<Digest, E> {
        match self {
            Self::Image(mut image) => {
                let mut digest = Digest::begin(image.snapshot()).map_err(ArchiveError::from)?;
                walk(image.as_mut(), |topic, chunk| {
                    digest.add(topic, chunk);
                    take(topic, chunk).map_err(Taken::Own)
                })
                .map_err(|error| match error {
                    Taken::Store(error) => ArchiveError::from(error).into(),
                    Taken::Own(error) => error,
                })?;
                Ok(digest)
            }
            Self::Archive(mut reader) => {
                while let Some((topic, chunk)) = reader.next_messages()? {
                    take(topic, &chunk)?;
                }
                Ok(reader.digest().clone())
            }
        }
    }
}

/// What ends a walk.
enum Taken<E> {
    Store(super::StoreError),
    Own(E),
}

impl<E> From<super::StoreError> for Taken<E> {
    fn from(error: super::StoreError) -> Self {
        Self::Store(error)
    }
}
