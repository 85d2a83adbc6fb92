//! How far back anybody may read: by the manifests that are kept, and by the time that readers elsewhere are given.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use crate::format::ids::Epoch;

/// The line of manifests, as far as it says what is garbage. Times are spans since any one moment.
#[derive(Clone, Debug)]
pub struct Line {
    /// Epoch of a manifest, and of its roots, which rise with it: where they changed, and what was found out.
    roots: BTreeMap<Epoch, Epoch>,
    oldest_kept: Epoch,
    /// Roots that are not older than the grace time, and when they were published.
    fresh: VecDeque<(Duration, Epoch)>,
    graced: Epoch,
}

impl Line {
    /// The line whose newest manifest is of `epoch`, with roots of `roots`, published at `at`, and keeps manifests from
    /// `oldest_kept` on.
    #[must_use]
    pub fn new(epoch: Epoch, roots: Epoch, oldest_kept: Epoch, at: Duration) -> Self {
        Self {
            roots: BTreeMap::from([(epoch, roots)]),
            oldest_kept,
            fresh: VecDeque::from([(at, roots)]),
            graced: Epoch(0),
        }
    }

    /// A manifest was published.
    pub fn publish(&mut self, epoch: Epoch, roots: Epoch, oldest_kept: Epoch, at: Duration) {
        if self.newest() < roots {
            self.roots.insert(epoch, roots);
            self.fresh.push_back((at, roots));
        }
        self.oldest_kept = self.oldest_kept.max(oldest_kept);
        if let Some((floor, _)) = self.roots.range(..=self.oldest_kept).next_back() {
            self.roots = self.roots.split_off(&floor.clone());
        }
    }

    /// A manifest of before the tenure was found to have these roots.
    pub fn learn(&mut self, epoch: Epoch, roots: Epoch) {
        self.roots.insert(epoch, roots);
    }

    /// Roots of the newest manifest.
    #[must_use]
    pub fn newest(&self) -> Epoch {
        self.roots.last_key_value().map_or(Epoch(0), |(_, roots)| *roots)
    }

    /// The oldest manifest that is kept.
    #[must_use]
    pub fn oldest_kept(&self) -> Epoch {
        self.oldest_kept
    }

    /// Roots that no manifest which is kept has older ones than; `None` where that is not known.
    #[must_use]
    pub fn kept(&self) -> Option<Epoch> {
        self.roots.range(..=self.oldest_kept).next_back().map(|(_, roots)| *roots)
    }

    /// What died up to here is needed by no manifest that is kept, nor, unless it is `pressed`, by a reader who read the
    /// newest one less than `grace` ago.
    pub fn horizon(&mut self, now: Duration, grace: Duration, pressed: bool) -> Epoch {
        while let Some((_, roots)) = self.fresh.pop_front_if(|(at, _)| *at + grace <= now) {
            self.graced = roots;
        }
        let kept = self.kept().unwrap_or_default();
        if pressed { kept } else { kept.min(self.graced) }
    }

    /// When the grace time of the next roots ends.
    #[must_use]
    pub fn next_graced(&self, grace: Duration) -> Option<Duration> {
        self.fresh.front().map(|(at, _)| *at + grace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(300);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_horizon_is_that_of_the_oldest_manifest_and_of_the_grace_time() {
        let mut line = Line::new(Epoch(10), Epoch(4), Epoch(10), at(0));
        assert_eq!(line.horizon(at(299), GRACE, false), Epoch(0));
        assert_eq!(line.horizon(at(300), GRACE, false), Epoch(4));
        line.publish(Epoch(11), Epoch(9), Epoch(10), at(400));
        line.publish(Epoch(12), Epoch(9), Epoch(10), at(500));
        assert_eq!(line.horizon(at(1000), GRACE, false), Epoch(4), "the manifest of epoch 10 is kept");
        line.publish(Epoch(13), Epoch(9), Epoch(11), at(1000));
        assert_eq!(line.horizon(at(1000), GRACE, false), Epoch(9), "epoch 11 had these roots, long ago");
    }

    #[test]
    fn under_pressure_nobody_is_waited_for_but_manifests_count() {
        let mut line = Line::new(Epoch(10), Epoch(4), Epoch(10), at(0));
        line.publish(Epoch(11), Epoch(9), Epoch(10), at(1));
        assert_eq!(line.horizon(at(1), GRACE, true), Epoch(4));
        line.publish(Epoch(12), Epoch(9), Epoch(11), at(2));
        assert_eq!(line.horizon(at(2), GRACE, true), Epoch(9));
        assert_eq!(line.next_graced(GRACE), Some(at(300)));
    }

    #[test]
    fn nothing_is_garbage_before_the_oldest_manifest_is_known() {
        let mut line = Line::new(Epoch(10), Epoch(9), Epoch(3), at(0));
        assert_eq!((line.kept(), line.horizon(at(1000), GRACE, true)), (None, Epoch(0)));
        line.learn(Epoch(3), Epoch(2));
        assert_eq!(line.horizon(at(1000), GRACE, true), Epoch(2));
        line.publish(Epoch(11), Epoch(9), Epoch(5), at(1000));
        assert_eq!(line.kept(), Some(Epoch(2)), "not known better");
        line.publish(Epoch(12), Epoch(9), Epoch(10), at(1000));
        assert_eq!(line.kept(), Some(Epoch(9)));
    }
}
