//! A layer: what the log holds of one cut, by byte range, the newest write on top.
//!
//! Writes of any offset and length are kept as they came; blocks that are written in part only meet the rest of their
//! content when the cut is packed. So two writes to one block never read and write it against each other.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use super::payload::Payload;

/// What a byte range of a layer holds.
#[derive(Clone, Debug)]
pub enum Content {
    /// Zeros.
    Zero,
    /// Nothing any more: reading it is an error until it is overwritten. Only a repair writes it.
    Lost,
    /// The bytes of a log record's payload from this offset on.
    Data(Arc<Payload>, u64),
}

impl Content {
    fn skip(&self, bytes: u64) -> Self {
        match self {
            Self::Zero => Self::Zero,
            Self::Lost => Self::Lost,
            Self::Data(payload, offset) => Self::Data(Arc::clone(payload), offset + bytes),
        }
    }
}

/// A byte range and what it holds.
#[derive(Clone, Debug)]
pub struct Piece {
    /// First byte.
    pub start: u64,
    /// Byte after the last.
    pub end: u64,
    /// Its content.
    pub content: Content,
}

/// Written byte ranges, apart from each other.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    pieces: BTreeMap<u64, (u64, Content)>,
    data_bytes: u64,
}

impl Layer {
    /// Whether nothing was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Bytes of data in it, zeros not counted.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Puts a write in the place of whatever its range had.
    pub fn insert(&mut self, piece: Piece) {
        let Piece { start, end, content } = piece;
        let mut first = start;
        if let Some((&before, &(before_end, _))) = self.pieces.range(..start).next_back()
            && before_end > start
        {
            first = before;
        }
        while let Some((&old_start, _)) = self.pieces.range(first..end).next() {
            let (old_end, old) = self.pieces.remove(&old_start).expect("just found");
            self.count(&old, old_end - old_start, false);
            if old_start < start {
                self.put(old_start, start, old.clone());
            }
            if old_end > end {
                self.put(end, old_end, old.skip(end - old_start));
            }
            first = start.max(old_start + 1);
        }
        self.put(start, end, content);
    }

    fn put(&mut self, start: u64, end: u64, content: Content) {
        self.count(&content, end - start, true);
        self.pieces.insert(start, (end, content));
    }

    fn count(&mut self, content: &Content, bytes: u64, added: bool) {
        if matches!(content, Content::Data(..)) {
            self.data_bytes = if added { self.data_bytes + bytes } else { self.data_bytes - bytes };
        }
    }

    /// The pieces that touch `range`, clipped to it, ascending.
    pub fn overlapping(&self, range: Range<u64>) -> impl Iterator<Item = Piece> + '_ {
        let first = self
            .pieces
            .range(..range.start)
            .next_back()
            .filter(|(_, (end, _))| *end > range.start)
            .map_or(range.start, |(start, _)| *start);
        self.pieces.range(first..range.end).map(move |(&start, (end, content))| {
            let from = start.max(range.start);
            Piece { start: from, end: (*end).min(range.end), content: content.skip(from - start) }
        })
    }

    /// All pieces, ascending.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + '_ {
        self.pieces.iter().map(|(&start, (end, content))| Piece {
            start,
            end: *end,
            content: content.clone(),
        })
    }

    /// Splits `ranges` into what this layer holds, appended to `found`, and what it does not, which is returned.
    pub fn resolve(&self, ranges: Vec<Range<u64>>, found: &mut Vec<Piece>) -> Vec<Range<u64>> {
        if self.pieces.is_empty() {
            return ranges;
        }
        let mut gaps = Vec::new();
        for range in ranges {
            let mut at = range.start;
            for piece in self.overlapping(range.clone()) {
                if piece.start > at {
                    gaps.push(at..piece.start);
                }
                at = piece.end;
                found.push(piece);
            }
            if at < range.end {
                gaps.push(at..range.end);
            }
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    const SIZE: usize = 100;

    fn value(content: &Content, index: usize) -> u8 {
        match content {
            Content::Zero => 0,
            Content::Lost => panic!("nothing was lost"),
            Content::Data(payload, offset) => payload.in_memory().expect("kept")[*offset as usize + index],
        }
    }

    fn paint(pieces: impl Iterator<Item = Piece>) -> Vec<Option<u8>> {
        let mut bytes = vec![None; SIZE];
        for piece in pieces {
            for (i, at) in (piece.start..piece.end).enumerate() {
                assert!(bytes[at as usize].is_none(), "pieces overlap");
                bytes[at as usize] = Some(value(&piece.content, i));
            }
        }
        bytes
    }

    proptest! {
        #[test]
        fn behaves_as_an_array_of_bytes(
            writes in prop::collection::vec((0..SIZE, 1..SIZE, any::<Option<u8>>()), 0..40),
            from in 0..SIZE,
            length in 1..SIZE,
        ) {
            let mut layer = Layer::default();
            let mut model = vec![None; SIZE];
            for (start, length, fill) in writes {
                let end = (start + length).min(SIZE);
                let data: Vec<u8> = (start..end).map(|at| fill.map_or(0, |fill| fill.wrapping_add(at as u8))).collect();
                for (at, byte) in (start..end).zip(&data) {
                    model[at] = Some(*byte);
                }
                let content = match fill {
                    None => Content::Zero,
                    Some(_) => Content::Data(Payload::detached(Bytes::from(data)), 0),
                };
                layer.insert(Piece { start: start as u64, end: end as u64, content });
            }
            prop_assert_eq!(paint(layer.pieces()), model.clone());
            let data = layer.pieces().filter(|piece| matches!(piece.content, Content::Data(..)));
            prop_assert_eq!(layer.data_bytes(), data.map(|piece| piece.end - piece.start).sum::<u64>());
            let range = from..(from + length).min(SIZE);
            let mut found = Vec::new();
            let gaps = layer.resolve(vec![range.start as u64..range.end as u64], &mut found);
            let known = paint(found.into_iter());
            for at in 0..SIZE {
                let gap = gaps.iter().any(|gap| gap.contains(&(at as u64)));
                prop_assert_eq!(gap, range.contains(&at) && model[at].is_none());
                prop_assert_eq!(known[at], if range.contains(&at) { model[at] } else { None });
            }
        }
    }
}
