//! Lists that no index helps: read in pieces they are what one look gives, and where there is no time
//! for all of it, what was found and from where to go on.

use nas_event_daemon::store::walk::{self, Looked};
use nas_event_daemon::store::{Error, EventRow, Filter};

use crate::lab::db::Db;

/// Rows that are seen to be slow to look at: in 900 ms nobody has looked at all of them.
const SLOW_ROWS: u32 = 12_000;

fn ids(rows: &[EventRow]) -> Vec<i64> {
    rows.iter().map(|row| row.id.0).collect()
}

/// Every page of a list, one after the other; how many of them were short for want of time.
async fn pages(db: &Db, filter: &Filter) -> (Vec<i64>, usize) {
    let (mut all, mut short) = (Vec::new(), 0);
    let mut filter = filter.clone();
    loop {
        let Looked { rows, down_to } = walk::look(db.store.as_ref(), &filter).await.unwrap();
        assert!(rows.len() <= filter.limit);
        all.extend(ids(&rows));
        short += usize::from(down_to.is_some());
        let last = rows.last().filter(|_| rows.len() >= filter.limit);
        let next = down_to.or(last.map(|row| row.id)).map(|id| id.0);
        if next.is_none() {
            return (all, short);
        }
        assert!(
            next < filter.before.or(Some(i64::MAX)),
            "{next:?} gets no further than {:?}",
            filter.before
        );
        filter.before = next;
    }
}

/// Rows of each table whose ids lie between and far from those of the others.
async fn crowd(db: &Db) {
    let numbers = "with recursive n (i) as (select 1 union all select i + 1 from n where i < 6000)";
    let of = "i % 300, i % 7, i % 5, '2026-01-01 00:00:00'";
    let cmd = "case when i % 11 = 0 then 'user_del' else 'user_add' end";
    let error = "case when i % 13 = 0 then 'Login 50% refused_' || i else 'no route' end";
    for into in [
        format!(
            "insert into events_done (id, event_type, user_id, abonent_id, nas_id, event_date, result, error)
             {numbers} select 4 * i, {cmd}, {of},
               case when i % 17 = 0 then 'dropped' else 'done' end, {error} from n"
        ),
        format!(
            "insert into events_dead (id, event_type, user_id, abonent_id, nas_id, event_date, reason)
             {numbers} select 4 * i + 1 + case when i > 3000 then 900000000 else 0 end, {cmd}, {of}, {error} from n"
        ),
        format!(
            "insert into events_stack (id, event_type, user_id, abonent_id, nas_id, event_date, params, class, state, last_error)
             {numbers} select 4 * i + 2, {cmd}, {of}, '{{}}', 1,
               case when i % 19 = 0 then 'held' else 'ready' end, {error} from n"
        ),
        format!(
            "insert into events_stack_compact (id, cmd, user_id, abonent_id, nas_id, created_at, error)
             {numbers} select 8 * i + 3, {cmd}, {of}, {error} from n where i <= 700"
        ),
    ] {
        db.sql(&into).await;
    }
}

pub(super) async fn pieces_of_a_list_are_what_one_look_gives(db: Db) {
    crowd(&db).await;
    let of = |state: &str| Filter {
        state: (!state.is_empty()).then(|| state.to_owned()),
        limit: 1_000,
        ..Filter::default()
    };
    let error = |state: &str, text: &str| Filter {
        error: Some(text.to_owned()),
        ..of(state)
    };
    let mut seen = 0;
    for filter in [
        of("held"),
        of("dropped"),
        error("dead", "Login"),
        // In the same letter case, and no sign of it stands for another.
        error("dead", "login"),
        error("all", "50% refused_13"),
        error("all", "0%refused"),
        error("", "refused_"),
        error("done", "no such thing"),
        Filter {
            nas: Some(3),
            ..error("all", "route")
        },
        Filter {
            abonent: Some(3),
            before: Some(900_010_000),
            limit: 7,
            ..of("dead")
        },
        Filter {
            abonent: Some(3),
            cmd: Some("user_del".to_owned()),
            ..of("")
        },
        Filter {
            user: Some(77),
            ..error("all", "Login")
        },
        Filter {
            nas: Some(99),
            ..of("done")
        },
        Filter {
            from: None,
            before: Some(4_000),
            limit: 3,
            ..error("all", "Login")
        },
    ] {
        let (walked, _) = pages(&db, &filter).await;
        let mut whole: Vec<i64> = Vec::new();
        let mut one = Filter {
            unbounded: true,
            limit: 1_000,
            ..filter.clone()
        };
        loop {
            let rows = ids(&db.store.events(&one).await.unwrap());
            whole.extend(&rows);
            match rows.last().filter(|_| rows.len() >= one.limit) {
                Some(last) => one.before = Some(*last),
                None => break,
            }
        }
        assert_eq!(walked, whole, "{filter:?}");
        seen += whole.len();
    }
    assert!(seen > 5_000, "{seen}");
}

pub(super) async fn a_look_whose_time_is_over_says_where_to_go_on(db: Db) {
    db.slow_dead(SLOW_ROWS).await;
    let refused = Filter {
        state: Some("dead".to_owned()),
        error: Some("refused 50%".to_owned()),
        limit: 1_000,
        ..Filter::default()
    };
    // The control: one look at all of them has no answer.
    let one = db.store.events(&refused).await;
    assert!(matches!(one, Err(Error::TooLong)), "{one:?}");
    let (found, short) = pages(&db, &refused).await;
    let wanted: Vec<i64> = (1..=i64::from(SLOW_ROWS) / 500)
        .rev()
        .map(|n| n * 500)
        .collect();
    assert_eq!(found, wanted);
    assert!(short > 0, "there was time for all");
    // A page that is full is no short one.
    let full = Filter {
        limit: 1,
        ..refused
    };
    let Looked { rows, down_to } = walk::look(db.store.as_ref(), &full).await.unwrap();
    assert_eq!((ids(&rows), down_to), (vec![i64::from(SLOW_ROWS)], None));
}
