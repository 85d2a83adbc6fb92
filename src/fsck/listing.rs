//! The listing of a bucket's objects, a piece at a time.

use std::{sync::Arc, vec::IntoIter};

use crate::{
    format::names,
    store::{Listed, Store},
    volume::error::VolumeError,
};

/// Names asked for at once: ten requests of S3's, so that few waits are left and memory is no matter.
pub(super) const NAMES_MAX: usize = 10_000;

/// All objects below `objects/`, in byte order of their names.
pub(super) struct Listing {
    store: Arc<dyn Store>,
    piece: IntoIter<Listed>,
    next: Option<Listed>,
    after: Option<String>,
    names_max: usize,
    is_complete: bool,
}

impl Listing {
    /// In pieces of `names_max` names.
    pub(super) fn new(store: Arc<dyn Store>, names_max: usize) -> Self {
        let piece = Vec::new().into_iter();
        Self { store, piece, next: None, after: None, names_max, is_complete: false }
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
            let piece = self.store.list(names::OBJECTS, self.after.as_deref(), Some(self.names_max)).await?;
            self.is_complete = piece.len() < self.names_max;
            self.after = piece.last().map(|line| line.key.clone());
            self.piece = piece.into_iter();
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        format::ids::{Generation, Sequence},
        store::{PutMode, memory::Memory},
    };

    #[tokio::test]
    async fn every_name_comes_once_and_in_order_whatever_the_pieces() {
        let store = Memory::new();
        let names: Vec<String> = (0..7).map(|i| names::object(Generation(i / 3), Sequence(i))).collect();
        for name in names.iter().rev().map(String::as_str).chain(["manifests/x", "volume"]) {
            store.put(name, &[Bytes::from_static(b"x")], PutMode::Create).await.unwrap();
        }
        for names_max in 1..10 {
            let mut listing = Listing::new(Arc::new(store.clone()), names_max);
            let mut found = Vec::new();
            assert_eq!(listing.next_if(|_| false).await.unwrap(), None);
            while let Some(line) = listing.next_if(|_| true).await.unwrap() {
                found.push(line.key);
            }
            assert_eq!(found, names, "{names_max} at once");
        }
    }
}
