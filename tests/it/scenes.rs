//! Scenes: what becomes of a few nodes when things go wrong, a step a line. Each is a file in `scenes/`; the words are
//! those of `scenes/scene.rs`.

mod links;
mod parse;
mod scene;
mod stage;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

pub use links::Links;
pub use scene::Part;

/// A test for each scene, of its name.
macro_rules! scenes {
    ($($name:ident)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                let file = concat!("tests/it/scenes/", stringify!($name), ".scene");
                play(file, include_str!(concat!("scenes/", stringify!($name), ".scene"))).await;
            }
        )*

        const PLAYED: &[&str] = &[$(stringify!($name)),*];
    };
}

scenes! {
    a_candidate_that_dies_after_the_commit_is_the_primary
    a_candidate_that_dies_after_the_votes_runs_again
    a_candidate_that_dies_for_good_leaves_the_place_to_another
    a_candidate_that_does_not_hear_the_primary_is_refused
    a_candidate_whose_disk_is_full_is_refused
    a_cascade_is_handed_over_to_its_end
    a_chain_loses_its_head
    a_clock_that_is_wrong_proves_nothing
    a_failed_election_harms_nobody
    a_frozen_primary_is_superseded_when_it_wakes
    a_lone_standby_in_the_minority_is_refused
    a_node_that_is_wiped_before_it_votes_joins_anew
    a_primary_cut_off_from_all_is_replaced
    a_primary_restored_from_a_snapshot_is_told
    a_primary_that_was_down_is_not_started_by_a_failed_election
    a_primary_whose_postgresql_hangs_is_not_replaced
    a_rejoin_waits_while_only_an_older_primary_answers
    a_relay_is_promoted
    a_relay_that_hangs_keeps_nobody_from_a_switchover
    a_returning_primary_hears_of_it_from_anyone
    a_returning_primary_is_stopped
    a_sidecar_that_hung_stops_what_went_on
    a_standby_below_a_relay_is_promoted
    a_standby_whose_disk_is_full_does_not_vote
    a_switchover_is_refused_while_the_target_is_cut_off
    a_switchover_under_load_loses_nothing
    a_vote_that_came_to_nothing_keeps_nobody_from_being_made_equal
    a_voter_dies_with_its_promise
    a_wiped_node_comes_back
    an_old_primary_does_not_vote_for_an_epoch_that_left_it_behind
    forced_a_primary_that_writes_is_stopped
    of_two_nodes_the_fence_decides
    of_two_promotions_at_once_one_wins
    the_right_one_is_elected_from_anywhere
    too_few_are_heard_to_be_sure
    two_that_both_fence_do_not_both_win
    two_timelines_of_one_number
    what_another_standby_has_is_pulled
    what_only_a_dead_primary_has_is_pulled_from_its_pg_wal
    whoever_asks_a_node_to_rejoin_that_does_so_already_is_answered
}

async fn play(file: &str, text: &str) {
    let scene = parse::parse(file, text).unwrap_or_else(|wrong| panic!("{wrong}"));
    stage::play(file, &scene).await;
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/scenes")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "scene")).collect()
}

#[test]
fn every_scene_is_played() {
    let there = files(&folder());
    let there: BTreeSet<&str> =
        there.iter().map(|path| path.file_stem().unwrap().to_str().unwrap()).collect();
    assert_eq!(there, PLAYED.iter().copied().collect());
}
