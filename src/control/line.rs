//! Lines of bounded length from a stream.

use std::io;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A line, without its end.
    Whole(Vec<u8>),
    /// The end, or a line that the other side did not finish.
    End,
    /// More than the limit without an end of line.
    TooLong,
}

/// Reads a line of at most `bytes_max` bytes. Not cancel safe.
pub(super) async fn read_line(
    source: &mut (impl AsyncBufRead + Unpin),
    bytes_max: usize,
) -> io::Result<Line> {
    let mut line = Vec::new();
    source.take(bytes_max as u64 + 1).read_until(b'\n', &mut line).await?;
    if line.last() == Some(&b'\n') {
        line.pop();
        return Ok(Line::Whole(line));
    }
    Ok(if line.len() > bytes_max { Line::TooLong } else { Line::End })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_ends_where_it_ends_and_never_beyond_the_limit() {
        let mut source = &b"one\n\ntwo\nthree"[..];
        assert_eq!(read_line(&mut source, 3).await.unwrap(), Line::Whole(b"one".to_vec()));
        assert_eq!(read_line(&mut source, 3).await.unwrap(), Line::Whole(Vec::new()));
        assert_eq!(read_line(&mut source, 3).await.unwrap(), Line::Whole(b"two".to_vec()));
        assert_eq!(read_line(&mut source, 3).await.unwrap(), Line::TooLong);
        let mut source = &b"abc"[..];
        assert_eq!(read_line(&mut source, 3).await.unwrap(), Line::End, "cut off in a line");
        assert_eq!(read_line(&mut source, 3).await.unwrap(), Line::End);
    }
}
