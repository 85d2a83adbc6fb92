//! Whole hosts in one deterministic world: engines over simulated disks, one bucket, one clock, everything from one seed.
//!
//! A history is short and there are many: each seed decides the volume, the settings, the kind of store, what hosts do and
//! what happens to them. How to repeat one, and how to run for hours: `docs/testing.md`.

#[path = "../engine/host.rs"]
#[allow(dead_code, reason = "shared with the engine's tests")]
mod host;
#[path = "../engine/rig.rs"]
#[allow(dead_code, reason = "shared with the engine's tests")]
mod rig;

mod act;
mod alone;
mod bucket;
mod clones;
mod end;
mod family;
mod journal;
mod line;
mod machine;
mod promises;
mod runner;
mod snapshots;
mod without_manifests;
mod world;

use crate::runner::{Seeds, run, run_seed};

/// Takes about a minute on two cores.
const SEEDS: u64 = 2000;

#[test]
#[allow(clippy::print_stdout, reason = "what was covered, for those who run it for hours")]
fn every_history_of_hosts_keeps_what_was_promised() {
    let counts = run(Seeds::from_environment(SEEDS));
    // What never happens is not tested.
    if counts.histories >= SEEDS {
        for event in journal::EVENTS {
            assert!(counts.events.get(event).is_some_and(|count| *count > 0), "never: {event}\n{counts}");
        }
    }
    println!("{counts}");
}

#[test]
fn a_seed_run_twice_gives_the_same_history() {
    for seed in 0..20 {
        let (first, second) = (run_seed(seed), run_seed(seed));
        assert_eq!(first.trace, second.trace, "seed {seed}");
    }
}
