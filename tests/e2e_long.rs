//! The long runs: many files, many kills, a long outage, on a real Garage.

mod e2e;
mod support;

use support::fixture::Kind;

e2e::claims! {
    Kind::Garage;
    file_systems:
        fifty_thousand_files_copied_to_ext4_are_whole,
        fifty_thousand_files_copied_to_btrfs_are_whole;
    crash:
        writes_survive_twenty_kills,
        what_fio_flushed_survives_twenty_kills,
        ext4_survives_twenty_kills_and_the_loss_of_the_host,
        btrfs_survives_ten_kills_and_the_loss_of_the_host;
    outage:
        two_minutes_without_the_store_lose_nothing;
}
