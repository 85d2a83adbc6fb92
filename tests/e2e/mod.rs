//! What a user sees of the real program, with real clients. One set of claims for every store.

#![allow(dead_code, reason = "each target uses a part of it")]

pub(crate) mod bad_days;
pub(crate) mod buckets;
pub(crate) mod clients;
pub(crate) mod clones;
pub(crate) mod control;
pub(crate) mod crash;
pub(crate) mod damage;
pub(crate) mod errors;
pub(crate) mod file_systems;
pub(crate) mod gc;
pub(crate) mod outage;
pub(crate) mod passwords;
pub(crate) mod raw;
pub(crate) mod resize;
pub(crate) mod signals;
pub(crate) mod snapshots;

use crate::support::{
    fixture::{Fixture, Kind},
    host::Host,
};

/// Makes a test of each claim, on one kind of store.
macro_rules! claims {
    ($kind:expr; $($part:ident: $($name:ident),+;)+) => {
        $(mod $part {
            use super::*;
            $(#[test]
            fn $name() {
                e2e::$part::$name($kind);
            })+
        })+
    };
}
pub(crate) use claims;

/// A store, a host, and the name of a volume that nobody has made yet.
pub(crate) fn stage(kind: Kind) -> (Fixture, Host, String) {
    let fixture = Fixture::start(kind);
    let host = Host::new(&fixture);
    let volume = fixture.location("disk");
    (fixture, host, volume)
}
