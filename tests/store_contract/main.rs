//! Every promise of `Store`, on each database alike: one body per promise, run on SQLite and on
//! PostgreSQL (`NED_TEST_PG` names a throw-away server, see `scripts/test`).

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed step fails the test"
)]

use std::sync::Arc;

use nas_event_daemon::attempt::DoneResult;
use nas_event_daemon::event::{Class, Cmd, CompactEvent, EventId, UserId};
use nas_event_daemon::nas::NasId;
use nas_event_daemon::store::{
    After, Error, Filter, Idempotency, Post, Posted, Settle, SettleTo, Store, Turn, WhereIs,
    audit_rows, connect,
};
use serde_json::json;

#[path = "../lab/mod.rs"]
mod lab;

mod expansion;
mod keys;
mod looks;
mod odd;
mod pages;
mod posts;
mod retries;
mod turns;
mod twin;

use expansion::*;
use keys::*;
use looks::*;
use pages::*;
use posts::*;
use retries::*;
use turns::*;
use twin::*;

use lab::db::{Db, Kind};

/// Writes one test per promise and database.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(super::Db::new(super::Kind::Sqlite).await).await; })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(super::Db::new(super::Kind::Postgres).await).await; })*
        }
    };
}

on_both!(
    ids_never_repeat_and_posts_are_all_or_nothing,
    posts_share_a_transaction_and_nothing_else,
    a_lasting_key_is_kept_until_it_is_confirmed,
    a_key_is_known_for_a_day_and_then_forgotten,
    a_row_that_the_database_refuses_is_named_as_such,
    expansion_moves_with_the_same_id_and_canonical_params,
    own_params_overlay_and_bad_names_are_told,
    the_nas_is_chosen_by_id_then_address_then_account,
    unexpandable_rows_never_stand_in_the_way,
    a_row_that_cannot_be_expanded_is_tried_more_and_more_seldom,
    an_overtaken_row_goes_to_dead,
    a_turn_settles_and_starts_in_one_transaction,
    a_turn_of_many_does_each_of_them_once,
    every_transition_is_a_compare_and_set,
    a_second_owner_is_refused_and_a_late_one_fenced,
    a_dead_owner_is_followed_by_one,
    what_a_dead_owner_left_running_comes_back_flagged,
    deferred_events_load_with_their_time,
    lanes_are_refilled_together,
    dead_events_are_retried_at_the_tail,
    a_retry_of_what_may_have_been_applied_says_so,
    dropping_needs_a_waiting_event,
    a_drop_by_state_leaves_what_has_gone_on,
    every_missing_column_is_named,
    nas_rows_are_checked_one_by_one,
    secrets_are_never_readable_by_statements,
    params_are_read_again_but_for_what_the_event_brought,
    a_deposed_daemon_expands_nothing,
    a_statement_returns_so_many_rows_at_most,
    a_statement_that_looks_changes_nothing,
    many_posts_keep_their_order,
    one_bad_row_of_the_view_stops_only_itself,
    a_view_may_have_many_columns,
    a_nul_never_blocks_a_settle,
    two_daemons_expand_each_event_once,
    an_expiring_command_carries_its_time,
    above_the_mark_payers_come_first_and_in_order,
    old_audit_rows_are_deleted_in_pieces,
    lists_of_a_crowded_database_are_read_by_index,
    pieces_of_a_list_are_what_one_look_gives,
    a_look_whose_time_is_over_says_where_to_go_on,
    ways_in_and_numbers_of_each_nas,
    an_event_on_its_way_is_always_found,
    retries_are_dated_and_moved_in_pieces,
    an_old_order_does_not_move_a_new_one,
    of_a_lane_only_the_newest_dead_event_is_dated,
    what_is_refused_keeps_no_other_retry_from_its_turn,
    the_model_of_the_simulation_is_this_database,
    a_model_that_differs_is_found,
);

fn event(cmd: &str, user: i64) -> CompactEvent {
    CompactEvent {
        cmd: cmd.into(),
        user_id: Some(user),
        ..CompactEvent::default()
    }
}

async fn posted(store: &Arc<dyn Store>, events: &[CompactEvent]) -> Vec<EventId> {
    match store.post(events, None).await.unwrap() {
        Posted::New(ids) => ids,
        other => panic!("{other:?}"),
    }
}

async fn fill(db: &Db) {
    db.sql("insert into nas (id, name, ip, forks) values (1, 'A', '10.0.0.1', 5), (2, 'B', '10.0.0.2', 5), (3, 'C', '10.0.0.2', 5)").await;
    db.sql("insert into abonents (id, name) values (70, 'Ann')")
        .await;
    for user in 1..=9 {
        db.sql(&format!(
            "insert into users (id, abonent_id, nas_id, login, ip, rate_in, ceil_in) values ({user}, 70, 1, 'u{user}', '10.88.0.{user}', 1024, 2048)"
        ))
        .await;
    }
}

async fn owned(db: &Db) -> i64 {
    fill(db).await;
    db.store
        .own("test pid=1", After::Silence(10_000))
        .await
        .unwrap()
}

/// Posts, expands and starts one event; returns it as started.
async fn running(db: &Db, epoch: i64, user: i64) -> EventId {
    let ids = posted(&db.store, &[event("user_add", user)]).await;
    db.store.expand(100, &[]).await.unwrap();
    let turn = Turn {
        epoch,
        starts: ids.clone(),
        ..Turn::default()
    };
    assert_eq!(db.store.turn(&turn).await.unwrap().started.len(), 1);
    ids[0]
}

fn done(id: EventId, try_count: u32) -> Settle {
    Settle {
        id,
        try_count: Some(try_count),
        to: SettleTo::Done {
            result: DoneResult::Done,
            answer: Some("yes".into()),
            scheme_hash: "ab".into(),
        },
        code: 0,
        ms: 12,
        error: None,
    }
}

async fn place(db: &Db, id: EventId) -> Option<(WhereIs, String)> {
    db.store
        .event(id)
        .await
        .unwrap()
        .map(|e| (e.place, e.state))
}
