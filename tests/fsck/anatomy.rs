//! What a volume in a bucket is made of, byte by byte: where damage can be done, and what it hits.

use std::{collections::BTreeSet, ops::Range};

use s3bd::{
    format::{
        ids::{FrameRef, ObjectRef, Sequence},
        index::{Index, MapKind, Run},
        manifest::Manifest,
        names,
        object::{FOOTER_BYTES, HEADER_BYTES, decode_header},
        page::{ObjectInfo, Page, Target},
    },
    map::{delta::Delta, tree::PageAt},
    store::memory::{Contents, Memory},
    volume::{
        bucket::Bucket,
        open::load_delta,
        walk::{Direct, Walk},
    },
};

use crate::volumes::unlock;

/// One object, taken apart.
#[derive(Clone, Debug)]
pub struct Part {
    pub name: String,
    pub object: ObjectRef,
    pub index: Index,
    pub bytes: u64,
    pub sealed_index: Range<usize>,
    /// Of the sealed index.
    pub mirror: Range<usize>,
    /// Frames of data that a read of the newest epoch uses.
    pub visible: BTreeSet<u32>,
    /// Frames that are pages of the newest maps.
    pub pages: BTreeSet<u32>,
    /// Its entry in the object table; none where the newest manifest lists it.
    pub entry: Option<ObjectInfo>,
}

impl Part {
    pub fn frame(&self, number: u32) -> FrameRef {
        self.index.place(self.object, number).unwrap()
    }

    pub fn frame_bytes(&self, number: u32) -> Range<usize> {
        let frame = self.frame(number);
        frame.offset as usize..frame.offset as usize + frame.stored_bytes as usize
    }
}

/// The whole volume.
pub struct Anatomy {
    pub contents: Contents,
    pub newest: Manifest,
    pub objects: Vec<Part>,
    pub pages: Vec<PageAt>,
    /// Visible extents: block, count, frame.
    pub extents: Vec<(Run, FrameRef)>,
}

impl Anatomy {
    pub async fn of(store: &Memory) -> Self {
        let bucket = unlock(store).await;
        let contents = store.snapshot();
        let newest = bucket.newest_manifest().await.unwrap().manifest;
        let delta = load_delta(&bucket, &newest).await.unwrap();
        let direct = Direct::new(bucket.clone());
        let mut anatomy =
            Self { contents, newest, objects: Vec::new(), pages: Vec::new(), extents: Vec::new() };
        for extent in delta.extents.iter() {
            anatomy.extent(extent.block, extent.count, &extent.target);
        }
        let mut entries = Vec::new();
        let roots = anatomy.newest.roots.clone();
        for (map, root) in [(MapKind::Blocks, roots.blocks), (MapKind::Objects, roots.objects)] {
            let mut walk = Walk::new(&direct, map, root.as_ref(), 1, |_, _| true);
            while let Some((at, page)) = walk.next().await {
                anatomy.pages.push(at);
                match &*page.unwrap() {
                    Page::Objects(found) => entries.extend_from_slice(found),
                    Page::Blocks(extents) => {
                        for extent in extents {
                            let run = Run { block: extent.block, count: extent.count };
                            for gap in delta.extents.resolve(&[run], &mut Vec::new()) {
                                anatomy.extent(gap.block, gap.count, &extent.target);
                            }
                        }
                    }
                    _ => {}
                }
            }
        }
        anatomy.take_apart(&bucket, &delta, &entries);
        anatomy
    }

    fn extent(&mut self, block: u64, count: u64, target: &Target) {
        if let Target::Frame(frame, _) = target {
            self.extents.push((Run { block, count }, **frame));
        }
    }

    fn take_apart(&mut self, bucket: &Bucket, delta: &Delta, entries: &[(Sequence, ObjectInfo)]) {
        let listed = delta.listed.iter().map(|listed| (listed.generation, listed.sequence, None));
        let tabled = entries.iter().map(|(sequence, info)| (info.generation, *sequence, Some(*info)));
        for (generation, sequence, entry) in listed.chain(tabled) {
            let name = names::object(generation, sequence);
            let bytes = self.contents.get(&name).unwrap();
            let object = decode_header(bytes).unwrap();
            let index = bucket.open_index(object, bytes, bytes.len() as u64).unwrap();
            let last = index.frames.last();
            let start =
                last.map_or(HEADER_BYTES as u64, |last| last.offset + u64::from(last.stored_bytes)) as usize;
            let of = |frame: &FrameRef| (frame.object == object).then_some(frame.number);
            self.objects.push(Part {
                bytes: bytes.len() as u64,
                sealed_index: (start + bytes.len()) / 2..bytes.len() - FOOTER_BYTES,
                mirror: start..(start + bytes.len()) / 2 - FOOTER_BYTES,
                visible: self.extents.iter().filter_map(|(_, frame)| of(frame)).collect(),
                pages: self.pages.iter().filter_map(|page| of(&page.frame)).collect(),
                name,
                object,
                index,
                entry,
            });
        }
    }

    /// The first object for which `wanted` holds.
    pub fn object(&self, wanted: impl Fn(&Part) -> bool) -> &Part {
        self.objects.iter().find(|part| wanted(part)).expect("the volume has such an object")
    }

    /// The first page for which `wanted` holds, and the object it is in.
    pub fn page(&self, wanted: impl Fn(&PageAt) -> bool) -> (&PageAt, &Part) {
        let page = self.pages.iter().find(|page| wanted(page)).expect("the volume has such a page");
        (page, self.object(|part| part.object == page.frame.object))
    }

    pub fn names(&self, prefix: &str) -> Vec<String> {
        let names = self.contents.iter().map(|(name, _)| name.to_owned());
        names.filter(|name| name.starts_with(prefix)).collect()
    }
}
