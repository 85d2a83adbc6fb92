//! Checking volumes that the real engine made: silence on whole ones, and for each kind of damage its own finding.

#[path = "../engine/host.rs"]
#[allow(dead_code, reason = "shared with the engine's tests")]
mod host;

mod anatomy;
mod claims;
mod clean;
mod damage;
mod forged;
mod hits;
mod info;
mod put_back;
mod repair;
mod seen;
mod volumes;
