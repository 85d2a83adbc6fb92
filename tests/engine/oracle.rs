//! What a volume may contain: every write in order, and how far the promises reach.

use std::ops::Range;

use s3bd::{
    nbd::{Device, DeviceError},
    volume::Volume,
};
use wal::Lsn;

/// The byte ranges that histories touch, and that are compared. An image of them ends with the volume's size.
#[derive(Clone, Debug)]
pub struct Windows(Vec<Range<u64>>);

const SIZE_BYTES: usize = size_of::<u64>();

impl Windows {
    pub fn new(windows: Vec<Range<u64>>) -> Self {
        assert!(windows.is_sorted_by(|a, b| a.end <= b.start));
        Self(windows)
    }

    pub fn ranges(&self) -> &[Range<u64>] {
        &self.0
    }

    /// Length of an image.
    pub fn len(&self) -> usize {
        SIZE_BYTES + self.0.iter().map(|window| (window.end - window.start) as usize).sum::<usize>()
    }

    /// Lays what `offset..offset + length` holds onto an image of the windows; `None`: zeros.
    pub fn paint(&self, image: &mut [u8], offset: u64, length: u64, data: Option<&[u8]>) {
        let mut at = 0;
        for window in &self.0 {
            let (from, to) = (offset.max(window.start), (offset + length).min(window.end));
            if from < to {
                let cells = &mut image[at + (from - window.start) as usize..][..(to - from) as usize];
                match data {
                    Some(data) => cells.copy_from_slice(&data[(from - offset) as usize..][..cells.len()]),
                    None => cells.fill(0),
                }
            }
            at += (window.end - window.start) as usize;
        }
    }

    /// Gives an image another size of the volume: what lies between the two is zeros.
    pub fn resize(&self, image: &mut [u8], size_bytes: u64) {
        let at = image.len() - SIZE_BYTES;
        let before = u64::from_le_bytes(image[at..].try_into().unwrap());
        self.paint(image, before.min(size_bytes), before.abs_diff(size_bytes), None);
        image[at..].copy_from_slice(&size_bytes.to_le_bytes());
    }

    /// The bytes of the windows, one after the other, zeros beyond the volume's end, and its size.
    pub async fn read(&self, volume: &Volume) -> Vec<u8> {
        self.try_read(volume).await.expect("every byte can be read")
    }

    /// The same, where a disk may be dead: what is not published is read from the log.
    pub async fn try_read(&self, volume: &Volume) -> Result<Vec<u8>, DeviceError> {
        let mut image = Vec::with_capacity(self.len());
        let size_bytes = volume.info().size_bytes;
        for window in &self.0 {
            let full = image.len() + (window.end - window.start) as usize;
            let end = window.end.min(size_bytes);
            if window.start < end {
                let length = (end - window.start) as u32;
                let parts = volume.read(window.start, length).await?;
                parts.iter().for_each(|part| image.extend_from_slice(part));
            }
            image.resize(full, 0);
        }
        image.extend_from_slice(&size_bytes.to_le_bytes());
        assert_eq!(image.len(), self.len());
        Ok(image)
    }

    /// Where a byte of an image is in the volume.
    pub fn place(&self, mut at: usize) -> u64 {
        for window in &self.0 {
            let length = (window.end - window.start) as usize;
            if at < length {
                return window.start + at as u64;
            }
            at -= length;
        }
        u64::MAX
    }
}

#[derive(Clone, Debug)]
enum What {
    /// A write (`Some` data) or a range of zeros.
    Bytes {
        offset: u64,
        length: u64,
        data: Option<Vec<u8>>,
    },
    Size(u64),
}

#[derive(Clone, Debug)]
struct Change {
    what: What,
    /// Where it ends in the log that is open.
    end: Option<Lsn>,
}

impl Change {
    fn paint(&self, windows: &Windows, image: &mut [u8]) {
        match &self.what {
            What::Bytes { offset, length, data } => windows.paint(image, *offset, *length, data.as_deref()),
            What::Size(size_bytes) => windows.resize(image, *size_bytes),
        }
    }
}

/// Changes in order. Those below `published` are in `base` alone.
#[derive(Clone, Debug)]
pub struct Oracle {
    pub windows: Windows,
    base: Vec<u8>,
    changes: Vec<Change>,
    acknowledged: usize,
    flushed: usize,
}

impl Oracle {
    /// Of a volume of zeros.
    pub fn new(windows: Windows, size_bytes: u64) -> Self {
        let mut base = vec![0; windows.len()];
        windows.resize(&mut base, size_bytes);
        Self { windows, base, changes: Vec::new(), acknowledged: 0, flushed: 0 }
    }

    /// A change is sent off.
    pub fn send(&mut self, offset: u64, length: u64, data: Option<Vec<u8>>) {
        self.changes.push(Change { what: What::Bytes { offset, length, data }, end: None });
    }

    /// A change of the size is sent off.
    pub fn send_size(&mut self, size_bytes: u64) {
        self.changes.push(Change { what: What::Size(size_bytes), end: None });
    }

    /// Everything sent was answered with success.
    pub fn acknowledge(&mut self, volume: &Volume) {
        self.acknowledged = self.changes.len();
        if let Some(last) = self.changes.last_mut() {
            last.end = Some(volume.core().state().end);
        }
    }

    /// Everything acknowledged is on the local disk.
    pub fn flushed(&mut self) {
        self.flushed = self.acknowledged;
    }

    /// Everything acknowledged is in the bucket.
    pub fn published(&mut self) {
        self.publish_first(self.acknowledged);
    }

    /// Everything that ends at or below `lsn` in the open log is in the bucket.
    pub fn published_to(&mut self, lsn: Lsn) {
        let known = self.changes.iter().rposition(|change| change.end.is_some_and(|end| end <= lsn));
        self.publish_first(known.map_or(0, |last| last + 1));
    }

    fn publish_first(&mut self, count: usize) {
        for change in self.changes.drain(..count) {
            change.paint(&self.windows, &mut self.base);
        }
        self.acknowledged = self.acknowledged.saturating_sub(count);
        self.flushed = self.flushed.saturating_sub(count);
    }

    /// Another log is open now: what its positions say has nothing to do with earlier ones.
    pub fn reopened(&mut self) {
        self.changes.iter_mut().for_each(|change| change.end = None);
    }

    /// Changes that are not known to be published.
    pub fn pending(&self) -> usize {
        self.changes.len()
    }

    /// What reads see now.
    pub fn image(&self) -> Vec<u8> {
        self.image_of(self.changes.len())
    }

    fn image_of(&self, count: usize) -> Vec<u8> {
        let mut image = self.base.clone();
        for change in &self.changes[..count] {
            change.paint(&self.windows, &mut image);
        }
        image
    }

    /// The most changes whose content this is, at least `floor`; says what is wrong where it is no prefix at all.
    fn prefix(&self, found: &[u8], floor: usize) -> Result<usize, String> {
        let mut image = self.image_of(floor);
        let mut longest = (image == found).then_some(floor);
        for (at, change) in self.changes.iter().enumerate().skip(floor) {
            change.paint(&self.windows, &mut image);
            if image == found {
                longest = Some(at + 1);
            }
        }
        longest.ok_or_else(|| self.difference(found, floor))
    }

    fn difference(&self, found: &[u8], floor: usize) -> String {
        let mut closest = (usize::MAX, 0, 0);
        for count in 0..=self.changes.len() {
            let image = self.image_of(count);
            let wrong = image.iter().zip(found).filter(|(a, b)| a != b).count();
            let first = image.iter().zip(found).position(|(a, b)| a != b).unwrap_or(0);
            closest = closest.min((wrong, count, first));
        }
        let (wrong, count, first) = closest;
        format!(
            "no prefix of {} changes with at least {floor}: nearest are the first {count}, but for {wrong} bytes from {:#x} on",
            self.changes.len(),
            self.windows.place(first),
        )
    }

    fn cut(&mut self, count: usize) {
        self.changes.truncate(count);
        self.acknowledged = count;
        self.flushed = self.flushed.min(count);
    }

    /// Reads see everything, in order.
    pub fn check(&self, found: &[u8]) -> Result<(), String> {
        if self.image() == found { Ok(()) } else { Err(self.difference(found, self.changes.len())) }
    }

    /// The process died, its files are as they were: everything acknowledged is there.
    pub fn survived_kill(&mut self, found: &[u8]) -> Result<(), String> {
        let count = self.prefix(found, self.acknowledged)?;
        self.cut(count);
        Ok(())
    }

    /// The power failed: everything flushed is there, and of the rest a prefix.
    pub fn survived_power_cut(&mut self, found: &[u8]) -> Result<(), String> {
        let count = self.prefix(found, self.flushed)?;
        self.cut(count);
        Ok(())
    }

    /// The disk is gone, or another host goes on: everything published is there, and of the rest a prefix.
    pub fn survived_loss(&mut self, found: &[u8]) -> Result<usize, String> {
        let count = self.prefix(found, 0)?;
        let lost = self.changes.len() - count;
        self.cut(count);
        self.flushed = 0;
        Ok(lost)
    }
}
