//! The block map: every page and every extent, against the object table, and under the delta of the newest list.

use std::sync::Arc;

use super::{Check, Stage, data::Reader, table::Ledger};
use crate::{
    format::{
        index::{MapKind, Run},
        manifest::Manifest,
        page::{Extent, Page, Target},
    },
    map::{delta::Delta, tree::PageAt},
    volume::{error::VolumeError, walk::Walk},
};

impl Check<'_> {
    /// Walks the block map. What the delta hides is counted as the table counts it, and not as data of the volume.
    pub(super) async fn check_map(
        &mut self,
        manifest: &Manifest,
        delta: &Delta,
        ledger: &mut Ledger,
        reader: &mut Reader,
    ) -> Result<(), VolumeError> {
        let block_bytes = u64::from(self.bucket().block_bytes());
        self.lost.size_blocks = manifest.size_bytes.div_ceil(block_bytes);
        let brought = delta.extents.iter().filter(|extent| extent.target != Target::Hole);
        let total =
            brought.fold(manifest.totals.mapped_blocks, |sum, extent| sum.saturating_add(extent.count));
        self.progress.begin(Stage::Blocks, Some(total));
        self.look_for_others(delta.extents.iter().map(|extent| extent.target)).await?;
        for extent in delta.extents.iter() {
            self.visible(extent, reader).await?;
        }
        let direct = self.direct.clone();
        let root = manifest.roots.blocks.as_ref();
        let mut walk = Walk::new(&direct, MapKind::Blocks, root, self.loads_max(), |_, _| true);
        while let Some((at, page)) = walk.next().await {
            ledger.take_page(&at.frame);
            match self.take_page(at, page)?.as_deref() {
                None => ledger.map_whole = false,
                Some(Page::Blocks(extents)) => {
                    self.look_for_others(extents.iter().map(|extent| extent.target.clone())).await?;
                    for extent in extents {
                        self.check_extent(extent, delta, ledger, reader).await?;
                    }
                }
                Some(_) => {}
            }
        }
        reader.flush(self).await
    }

    async fn check_extent(
        &mut self,
        extent: &Extent,
        delta: &Delta,
        ledger: &mut Ledger,
        reader: &mut Reader,
    ) -> Result<(), VolumeError> {
        let run = Run { block: extent.block, count: extent.count };
        ledger.mapped_blocks = ledger.mapped_blocks.saturating_add(extent.count);
        if let Target::Frame(frame, _) = &extent.target {
            ledger.take_run(frame, run, self.bucket().block_bytes().into());
        }
        for Run { block, count } in delta.extents.resolve(&[run], &mut Vec::new()) {
            let target = extent.target.skip(block - extent.block);
            self.visible(Extent { block, count, target }, reader).await?;
        }
        Ok(())
    }

    /// An extent that a read of the volume would find.
    async fn visible(&mut self, extent: Extent, reader: &mut Reader) -> Result<(), VolumeError> {
        let Extent { block, count, target } = extent;
        let run = Run { block, count };
        match target {
            Target::Hole => return Ok(()),
            Target::Lost => self.lost.marked.add(run),
            Target::Frame(frame, _) => {
                let bytes = count.saturating_mul(self.bucket().block_bytes().into());
                self.report.counts.mapped_bytes = self.report.counts.mapped_bytes.saturating_add(bytes);
                if !self.lost.hits(&frame, run) {
                    return reader.add(self, frame, run).await;
                }
            }
        }
        self.progress.advance(count);
        Ok(())
    }

    /// A page that was read, counted; one that is damaged or missing is noted.
    pub(super) fn take_page(
        &mut self,
        at: PageAt,
        page: Result<Arc<Page>, VolumeError>,
    ) -> Result<Option<Arc<Page>>, VolumeError> {
        match page {
            Ok(page) => {
                self.report.counts.pages += 1;
                Ok(Some(page))
            }
            Err(VolumeError::DamagedFrame { error, .. }) => {
                self.lost.page(at, error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
