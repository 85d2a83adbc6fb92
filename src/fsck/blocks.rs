//! The blocks that some damage hits: a bounded list of runs, and their exact number.

use std::fmt;

use serde::Serialize;

use crate::format::index::Run;

/// Runs kept by one finding: more than anyone reads, and no burden where much is damaged.
const RUNS_MAX: usize = 1000;
/// Runs that a line of text names.
const RUNS_SHOWN_MAX: usize = 8;

/// Blocks of the volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Blocks {
    /// Their number.
    pub count: u64,
    /// Where they are, in the order in which they were found; the first thousand runs.
    pub runs: Vec<Run>,
    /// Whether there are more runs than `runs` has.
    pub more: bool,
}

impl Blocks {
    /// Adds a run that was not added before.
    pub fn add(&mut self, run: Run) {
        self.count = self.count.saturating_add(run.count);
        let has_room = self.runs.len() < RUNS_MAX;
        match self.runs.last_mut() {
            Some(last) if last.end() == Some(run.block) => last.count += run.count,
            _ if has_room => self.runs.push(run),
            _ => self.more = true,
        }
    }

    /// Adds all of `other`'s.
    pub fn extend(&mut self, other: &Self) {
        let known: u64 = other.runs.iter().map(|run| run.count).sum();
        other.runs.iter().for_each(|run| self.add(*run));
        self.count = self.count.saturating_add(other.count.saturating_sub(known));
        self.more |= other.more;
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl fmt::Display for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return write!(f, "no block");
        }
        write!(f, "{}", if self.count == 1 { "block " } else { "blocks " })?;
        for (i, run) in self.runs.iter().take(RUNS_SHOWN_MAX).enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            match run.count {
                1 => write!(f, "{comma}{}", run.block)?,
                count => write!(f, "{comma}{} to {}", run.block, run.block.saturating_add(count - 1))?,
            }
        }
        if self.more || self.runs.len() > RUNS_SHOWN_MAX {
            write!(f, " and more, {} blocks in all", self.count)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_one_run_and_text_stays_short() {
        let mut blocks = Blocks::default();
        assert_eq!(blocks.to_string(), "no block");
        blocks.add(Run { block: 3, count: 1 });
        assert_eq!(blocks.to_string(), "block 3");
        blocks.add(Run { block: 4, count: 2 });
        blocks.add(Run { block: 9, count: 1 });
        assert_eq!(blocks.to_string(), "blocks 3 to 5, 9");
        for i in 0..2000 {
            blocks.add(Run { block: 100 + 2 * i, count: 1 });
        }
        assert_eq!((blocks.count, blocks.runs.len(), blocks.more), (2004, RUNS_MAX, true));
        assert!(blocks.to_string().ends_with(" and more, 2004 blocks in all"));
        let mut sum = Blocks::default();
        sum.extend(&blocks);
        assert_eq!(sum, blocks);
    }
}
