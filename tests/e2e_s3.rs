//! The program with real clients, on the S3 server within the test.

mod e2e;
mod support;

use support::fixture::Kind;

e2e::claims! {
    Kind::OurS3 { conditional: true };
    clients:
        nbdinfo_and_qemu_img_see_the_volume_by_name_and_by_default,
        an_image_copied_in_comes_out_equal_on_any_host,
        qemu_img_converts_in_and_out,
        qemu_io_reads_what_it_wrote_at_odd_places,
        fio_verifies_what_it_wrote_under_load,
        two_clients_with_several_connections_keep_out_of_each_others_way,
        a_reader_beside_a_writer_sees_a_published_cut,
        a_volume_of_16_terabytes_is_formatted_and_mounted,
        an_exabyte_is_made_trimmed_and_written_at_both_ends;
    file_systems:
        a_tree_copied_to_ext4_is_whole_on_any_host,
        a_tree_copied_to_btrfs_is_whole_on_any_host;
    crash:
        writes_survive_three_kills,
        remote_flushes_survive_the_loss_of_the_host,
        what_fio_flushed_survives_three_kills,
        ext4_survives_three_kills_and_the_loss_of_the_host,
        btrfs_survives_two_kills_and_the_loss_of_the_host;
    snapshots:
        snapshots_are_taken_read_renamed_and_deleted_online_and_offline;
    signals:
        a_signal_uploads_everything_and_closes_clean,
        a_signal_that_comes_twice_at_once_is_one,
        an_idle_client_does_not_hold_up_the_close,
        recover_uploads_what_a_killed_server_left,
        recover_elsewhere_changes_nothing_without_takeover,
        a_host_that_was_overtaken_stops_and_keeps_its_log,
        an_older_copy_of_the_state_directory_is_refused,
        a_signal_ends_an_opening_that_waits_for_the_store;
    control:
        status_says_how_far_behind_the_bucket_is_and_sync_brings_it_up,
        a_killed_servers_control_socket_is_nobody_and_the_next_one_answers,
        a_fenced_server_says_by_whom_and_cannot_sync,
        whoever_waits_for_the_server_is_told_that_the_store_is_away,
        of_two_stores_with_a_bucket_of_one_name_the_right_server_is_asked;
    clones:
        a_clone_shares_what_its_origin_holds_and_each_goes_its_own_way,
        a_flattened_clone_outlives_its_origin,
        a_full_clone_depends_on_nothing,
        what_cannot_be_cloned_is_named_and_leaves_nothing;
    gc:
        gc_gives_back_what_was_overwritten_online_and_offline,
        gc_lets_go_of_clones_that_are_gone;
    resize:
        a_volume_is_resized_while_clients_write,
        ext4_goes_on_while_its_volume_grows_and_shrinks_with_it;
    passwords:
        a_password_comes_from_a_file_a_command_or_the_environment,
        a_terminal_is_asked_and_shows_nothing,
        neither_plaintext_nor_password_is_stored_or_logged,
        keys_are_added_listed_changed_and_removed;
    buckets:
        a_bucket_is_listed_with_what_each_may_know,
        a_snapshot_comes_back_and_what_changed_since_is_listed,
        a_volume_is_removed_from_bucket_and_host;
    errors:
        a_wrong_or_missing_password_is_refused,
        a_volume_without_a_password_says_so,
        what_is_not_there_is_named,
        a_second_init_changes_nothing,
        open_makes_a_volume_when_told,
        wrong_usage_is_exit_code_two_and_touches_nothing,
        a_taken_port_or_socket_costs_nothing,
        a_killed_servers_addresses_are_free_again,
        a_volume_in_use_is_refused_here_and_elsewhere,
        a_store_that_cannot_be_reached_or_refuses_is_named,
        a_store_that_refuses_one_kind_of_call_for_good_ends_a_command;
    outage:
        ten_seconds_without_the_store_lose_nothing,
        a_store_that_dies_and_comes_back_loses_nothing,
        reads_without_the_store_wait_or_fail_as_asked,
        closing_without_the_store_waits_and_a_second_signal_leaves;
}
