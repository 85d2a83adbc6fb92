//! The listing of a bucket's objects, a piece at a time.

use std::{sync::Arc, vec::IntoIter};

use crate::{
    format::names,
    store::{Listed, Store},
    volume::error::VolumeError,
};

/// Names asked for at once: ten requests of S3's, so that few waits are left and memory is no matter.
const NAMES_MAX: usize = 10_000;

/// All objects below `objects/`, in byte order of their names.
pub(super) struct Listing {
    store: Arc<dyn Store>,
    piece: IntoIter<Listed>,
    next: Option<Listed>,
    after: Option<String>,
    is_complete: bool,
}

impl Listing {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, piece: Vec::new().into_iter(), next: None, after: None, is_complete: false }
    }

    /// The next line, if `wanted` holds for it.
    pub(super) async fn next_if(
        &mut self,
        wanted: impl Fn(&Listed) -> bool,
    ) -> Result<Option<Listed>, VolumeError> {
        if self.next.is_none() {
            self.next = self.load().await?;
        }
        Ok(self.next.take_if(|line| wanted(line)))
    }

    async fn load(&mut self) -> Result<Option<Listed>, VolumeError> {
        loop {
            if let Some(line) = self.piece.next() {
                return Ok(Some(line));
            }
            if self.is_complete {
                return Ok(None);
            }
            let piece = self.store.list(names::OBJECTS, self.after.as_deref(), Some(NAMES_MAX)).await?;
            self.is_complete = piece.len() < NAMES_MAX;
            self.after = piece.last().map(|line| line.key.clone());
            self.piece = piece.into_iter();
        }
    }
}
