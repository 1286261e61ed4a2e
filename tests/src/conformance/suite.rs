//! The list of all checks.

/// Creates one test for each check, over all subjects of a matrix (the path of a function that returns them).
#[macro_export]
macro_rules! conformance_suite {
    ($matrix:path) => {
        $crate::conformance_suite! { @each $matrix;
entries:
                nothing_passes_without_an_entry,
                an_entry_is_one_requesters,
                a_move_never_opens_anything,
                overwriting_an_entry_never_mixes,
                a_deeper_table_denies_nothing,
                a_silenced_requester_leaves_no_record,
                silencing_leaves_what_is_reached_as_it_is,
                silencing_holds_against_what_was_cached,
                passing_through_is_one_requesters,
                enabling_is_idempotent,
                entries_come_before_translation,;
            pages:
                every_size_at_every_depth,
                permissions_are_what_was_mapped,
                without_invalidation_it_stays,
                ranges_of_any_shape_are_forgotten,
                the_whole_of_a_deep_table_is_unmapped,
                tags_keep_domains_apart,
                a_call_costs_one_invalidation,
                new_pages_show_after_publishing,
                a_large_page_can_be_cut,
                a_large_page_is_forgotten_only_as_a_whole,
                what_is_cut_from_a_large_page_is_forgotten,
                a_run_of_pages_can_be_cut,
                rings_wrap,
                sharers_see_the_same,;
            faults:
                a_record_tells_what_happened,
                records_come_in_order_around_the_ring,
                an_overflow_is_told_and_over,
                a_limit_leaves_the_rest,
                untaken_faults_do_not_hinder,;
            trouble:
                a_stopped_queue_is_an_error,
                a_command_that_never_ends_is_an_error,
                a_dead_unit_is_not_brought_up,
                a_unit_that_dies_is_an_error,
                an_entry_without_memory_changes_nothing,
                a_bring_up_without_memory_is_an_error,
                a_mapping_without_memory_changes_nothing,
                an_undone_unmap_changes_nothing,;
            revival:
                a_stuck_queue_is_started_again,
                a_unit_that_stays_stuck_costs_no_memory,
                a_unit_that_never_came_up_comes_up,;
        }

        #[test]
        fn random_runs_reach_what_was_granted() {
            for subject in $matrix() {
                for seed in 1..=4 {
                    println!("subject: {}, seed {seed}", $crate::conformance::UnderTest::name(&subject));
                    $crate::conformance::random::run_of(&subject, seed * 0x9e37_79b9, 150);
                }
            }
        }
    };
    (@each $matrix:path; $($module:ident: $($check:ident,)*;)*) => {
        $($($crate::conformance_suite! { @one $matrix, $module, $check })*)*
    };
    (@one $matrix:path, $module:ident, $check:ident) => {
        #[test]
        fn $check() {
            for subject in $matrix() {
                println!("subject: {}", $crate::conformance::UnderTest::name(&subject));
                $crate::conformance::$module::$check(&subject);
            }
        }
    };
}
