//! Random appends, syncs, trims, crashes and restarts against a model: what was synced is there, what is
//! there was appended, in order, without a hole.

mod support;

use proptest::{prelude::*, test_runner::FileFailurePersistence};
use support::Model;
use wal::{AppendError, Writer, disk::sim::SimDisk};

#[derive(Clone, Debug)]
enum Step {
    Append {
        bytes: usize,
    },
    Sync,
    Trim {
        hundredths: usize,
    },
    Close,
    /// The process ends; the page cache stays.
    Kill,
    /// Power is lost.
    Crash {
        seed: u64,
    },
    /// The disk dies some operations from now; power is lost when it is noticed.
    DieSoon {
        operations: u64,
        seed: u64,
    },
    /// An operation some way from now fails.
    FailSoon {
        operations: u64,
    },
    /// The disk has no more room than it uses now.
    DiskFull,
    DiskFree,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        30 => (0..2900_usize).prop_map(|bytes| Step::Append { bytes }),
        10 => Just(Step::Sync),
        5 => (0..=100_usize).prop_map(|hundredths| Step::Trim { hundredths }),
        1 => Just(Step::Close),
        2 => Just(Step::Kill),
        3 => any::<u64>().prop_map(|seed| Step::Crash { seed }),
        3 => (1..20_u64, any::<u64>()).prop_map(|(operations, seed)| Step::DieSoon { operations, seed }),
        1 => (1..20_u64).prop_map(|operations| Step::FailSoon { operations }),
        1 => Just(Step::DiskFull),
        2 => Just(Step::DiskFree),
    ]
}

struct World {
    disk: SimDisk,
    model: Model,
    writer: Option<Writer>,
    tag: u8,
    death_seed: u64,
}

impl World {
    fn new() -> World {
        let mut world =
            World { disk: SimDisk::new(), model: Model::default(), writer: None, tag: 0, death_seed: 0 };
        world.restart();
        world
    }

    /// Ends the process and starts another one on what the disk holds.
    fn restart(&mut self) {
        if let Some(writer) = self.writer.take() {
            self.model.note(&writer);
        }
        if self.disk.is_dead() {
            self.disk = self.disk.crash(self.death_seed);
        }
        self.disk.set_capacity(None);
        self.tag = self.tag.wrapping_add(1);
        // Opening may meet the failure or the death that was ordered before.
        let opened = support::open_log(&self.disk, self.tag, self.model.trimmed);
        if opened.is_err() || self.disk.is_dead() {
            self.disk = self.disk.crash(self.death_seed);
        } else {
            self.disk.disarm();
        }
        self.tag = self.tag.wrapping_add(1);
        self.writer = Some(self.model.reopen(&self.disk, self.tag));
    }

    fn apply(&mut self, step: &Step) {
        let Some(writer) = &self.writer else { return };
        match *step {
            Step::Append { bytes } => match self.model.append(writer, bytes) {
                Ok(()) | Err(AppendError::Full { .. }) => {}
                Err(_) => self.restart(),
            },
            Step::Sync => self.model.sync(writer),
            Step::Trim { hundredths } => self.model.trim(writer, hundredths),
            Step::Close => {
                let _ = writer.close();
                self.restart();
            }
            Step::Kill => self.restart(),
            Step::Crash { seed } => {
                self.model.note(writer);
                self.writer = None;
                self.disk = self.disk.crash(seed);
                self.restart();
            }
            Step::DieSoon { operations, seed } => {
                self.death_seed = seed;
                self.disk.die_at(self.disk.operations() + operations);
            }
            Step::FailSoon { operations } => self.disk.fail_at(self.disk.operations() + operations),
            Step::DiskFull => self.disk.set_capacity(Some(self.disk.used_bytes())),
            Step::DiskFree => {
                self.disk.set_capacity(None);
                writer.retry();
            }
        }
        if let Some(writer) = &self.writer {
            self.model.note(writer);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(400),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct("proptest-regressions/model.txt"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn what_was_synced_is_there_and_what_is_there_is_a_prefix(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        for step in &steps {
            world.apply(step);
        }
        world.restart();
        let end = world.model.synced;
        let found = wal::scan(&world.disk).unwrap();
        prop_assert_eq!(found.damage, None);
        prop_assert!(found.end >= end || found.records == 0);
    }
}
