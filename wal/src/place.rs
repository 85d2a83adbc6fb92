//! Where the next record goes: pure arithmetic, on which the appending threads and the log thread agree
//! without talking.

use crate::{
    Lsn,
    format::{DATA_OFFSET, record_bytes},
};

/// The place after the last record that has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// First LSN of the segment.
    pub(crate) first: Lsn,
    /// LSN after the last record.
    pub(crate) next: Lsn,
    pub(crate) segment_bytes: u64,
}

/// The place of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) lsn: Lsn,
    pub(crate) end: Lsn,
    /// Whether it begins another segment.
    pub(crate) begins_segment: bool,
}

impl Cursor {
    /// The place a record with so many bytes of payload would take. It must fit a segment.
    pub(crate) fn place(&self, payload_bytes: u64) -> Placed {
        let bytes = record_bytes(payload_bytes);
        let end = self.next.plus(bytes);
        if end <= self.segment_end() {
            return Placed { lsn: self.next, end, begins_segment: false };
        }
        let lsn = self.segment_end().plus(DATA_OFFSET);
        Placed { lsn, end: lsn.plus(bytes), begins_segment: true }
    }

    /// Gives the place away.
    pub(crate) fn take(&mut self, placed: Placed) {
        if placed.begins_segment {
            self.first = self.segment_end();
        }
        self.next = placed.end;
        assert!(self.next <= self.segment_end(), "records never straddle segments");
    }

    fn segment_end(&self) -> Lsn {
        self.first.plus(self.segment_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_does_not_fit_begins_the_next_segment() {
        let mut cursor = Cursor { first: Lsn(8192), next: Lsn(8192 + 1024), segment_bytes: 4096 };
        let fits = cursor.place(3072 - 32);
        assert_eq!(fits, Placed { lsn: Lsn(9216), end: Lsn(12288), begins_segment: false });
        cursor.take(fits);
        let next = cursor.place(1);
        assert_eq!(
            next,
            Placed { lsn: Lsn(12288 + 1024), end: Lsn(12288 + 1024 + 48), begins_segment: true }
        );
        cursor.take(next);
        assert_eq!(cursor.first, Lsn(12288));
    }
}
