//! Annotated hexadecimal as `docs/format.md` shows it: lines of bytes, each with a comment.

/// Bytes on one line at most.
const LINE_BYTES_MAX: usize = 32;

/// Bytes in pieces, and what each piece is.
#[derive(Clone, Debug, Default)]
pub struct Lines(Vec<(Vec<u8>, String)>);

impl Lines {
    /// `bytes` in pieces of these lengths, which add up to all of them.
    pub fn cut(bytes: &[u8], fields: &[(usize, &str)]) -> Self {
        let mut lines = Self::default();
        let mut rest = bytes;
        for (length, comment) in fields {
            let (field, after) = rest.split_at(*length);
            lines.put(field, *comment);
            rest = after;
        }
        assert!(rest.is_empty(), "{} bytes are not described", rest.len());
        lines
    }

    /// Appends a piece.
    pub fn put(&mut self, bytes: &[u8], comment: impl Into<String>) {
        self.0.push((bytes.to_vec(), comment.into()));
    }

    /// Appends the pieces of another.
    pub fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Number of pieces.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Makes one piece of those from `first` on, if each is a single byte.
    pub fn join_single_bytes(&mut self, first: usize, comment: String) {
        if self.0[first..].iter().all(|(bytes, _)| bytes.len() == 1) {
            let joined = self.0.drain(first..).flat_map(|(bytes, _)| bytes).collect();
            self.0.push((joined, comment));
        }
    }

    /// All bytes.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|(bytes, _)| bytes).copied().collect()
    }

    /// The text of a block.
    pub fn text(&self) -> String {
        let widest = self.0.iter().map(|(bytes, _)| bytes.len().min(LINE_BYTES_MAX)).max().unwrap_or(0);
        let mut text = String::new();
        for (bytes, comment) in &self.0 {
            for (at, line) in bytes.chunks(LINE_BYTES_MAX).enumerate() {
                let hex: String = line.iter().map(|byte| format!("{byte:02x}")).collect();
                let line = match at {
                    0 => format!("{hex:width$}  ; {comment}", width = 2 * widest),
                    _ => hex,
                };
                text.push_str(&line);
                text.push('\n');
            }
        }
        text
    }
}

/// The bytes in the text of a block.
pub fn parse(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in text.lines() {
        let digits = line.split(';').next().unwrap_or_default().trim();
        assert!(digits.len().is_multiple_of(2), "half a byte: {line}");
        for at in (0..digits.len()).step_by(2) {
            bytes.push(
                u8::from_str_radix(&digits[at..at + 2], 16).unwrap_or_else(|_| panic!("no hex: {line}")),
            );
        }
    }
    bytes
}
