//! The database that the simulation believes in (`tests/simulation/model.rs`) beside the real ones:
//! the same random operations on both, of owners in force and of deposed ones, give the same answers
//! and leave the same rows. Two differences are known and never met, since the daemon writes neither: an
//! empty turn or expansion of a deposed daemon is refused by the model only, and an event that is
//! settled to `deferred` and started in one turn is started by the model, not by SQLite.

use std::collections::BTreeSet;

use super::*;
use crate::lab::dice::Dice;
use nas_event_daemon::event::Waiting;

#[expect(unreachable_pub, reason = "the simulation has it in the open")]
#[path = "../simulation/model.rs"]
mod model;

use model::{End, Model, Row, State};

/// What the model may be made to do wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Planted {
    Nothing,
    UnflaggedRecovery,
    NoFence,
    /// The real database forgets a try.
    ForgottenTry,
}

/// Sequences on each database, and operations of one.
const SEQUENCES: u64 = 20;
const STEPS: usize = 60;
/// Deaths after which an event is buried with the next.
const DEATHS: u32 = 3;
/// Every class that changes something, and what expires.
const CMDS: [&str; 5] = [
    "user_redirect_cancel",
    "user_redirect",
    "user_rate_set",
    "user_add",
    "user_edit",
];
const USERS: u64 = 9;
/// Every row of every table, as numbers.
const ALL: &str = "
    select 0 as a, id, user_id as b, 0 as c, 0 as d, 0 as e, 0 as f, 0 as g, 0 as h
    from events_stack_compact
    union all select 1, id, nas_id, user_id, try_count, deaths,
      case when possible_duplicate then 1 else 0 end,
      case state when 'ready' then 0 when 'deferred' then 1 else 2 end,
      case when state = 'running' then epoch else 0 end
    from events_stack
    union all select 2, id, case result when 'done' then 0 else 1 end, nas_id, user_id, 0, 0, 0, 0
    from events_done
    union all select 2, id, 2, nas_id, user_id, case when possible_duplicate then 1 else 0 end,
      case when retried_as is null then 0 else 1 end, 0, 0
    from events_dead
    order by 1, 2";
/// A wall time in whole seconds, which both databases keep exactly.
const LATER_MS: i64 = 1_900_000_000_000;

pub(super) async fn the_model_of_the_simulation_is_this_database(db: Db) {
    let daemons = prepare(&db).await;
    for seed in 0..SEQUENCES {
        if let Err(difference) = differs(&db, &daemons, seed, Planted::Nothing).await {
            panic!("seed {seed}: {difference}");
        }
    }
}

/// The negative control: a model that is wrong in one thing is found.
pub(super) async fn a_model_that_differs_is_found(db: Db) {
    let daemons = prepare(&db).await;
    for planted in [
        Planted::UnflaggedRecovery,
        Planted::NoFence,
        Planted::ForgottenTry,
    ] {
        let mut seed = 0;
        while differs(&db, &daemons, seed, planted).await.is_ok() {
            seed += 1;
            assert!(seed < SEQUENCES, "{planted:?} is not found");
        }
    }
}

/// Two daemons, each over connections of its own.
async fn prepare(db: &Db) -> [Arc<dyn Store>; 2] {
    fill(db).await;
    db.sql("update users set nas_id = 2 where id > 5").await;
    [
        connect(&db.url).await.unwrap(),
        connect(&db.url).await.unwrap(),
    ]
}

/// One owner, or one that was.
struct Owner {
    store: Arc<dyn Store>,
    epoch: i64,
}

struct Pair<'a> {
    db: &'a Db,
    dice: Dice,
    model: Model,
    /// Two, which take the database from each other.
    owners: Vec<Owner>,
}

/// What is the same in both, as text.
fn same<T: std::fmt::Debug + PartialEq>(what: &str, real: T, model: T) -> Result<(), String> {
    if real == model {
        return Ok(());
    }
    Err(format!(
        "{what}: the database says {real:?}, the model {model:?}"
    ))
}

/// Without what the model cannot know: when it was posted.
fn timeless(rows: Vec<Waiting>) -> Vec<Waiting> {
    let without = |row: Waiting| Waiting { since_ms: 0, ..row };
    let mut rows: Vec<Waiting> = rows.into_iter().map(without).collect();
    rows.sort_by_key(|row| row.id);
    rows
}

async fn differs(
    db: &Db,
    daemons: &[Arc<dyn Store>],
    seed: u64,
    planted: Planted,
) -> Result<(), String> {
    db.sql(
        "delete from events_stack_compact; delete from events_stack;
         delete from events_done; delete from events_dead",
    )
    .await;
    let owner = |store: &Arc<dyn Store>| Owner {
        store: Arc::clone(store),
        epoch: 0,
    };
    let owners = daemons.iter().map(owner).collect();
    let mut pair = Pair {
        db,
        dice: Dice(seed),
        model: Model::new(planted),
        owners,
    };
    pair.own(0).await;
    pair.own(1).await;
    for _ in 0..STEPS {
        let owner = usize::try_from(pair.dice.roll(2)).unwrap();
        match pair.dice.roll(20) {
            0..5 => pair.post().await,
            5..9 => pair.expand(owner).await?,
            9..17 => pair.turn(owner).await?,
            17 => pair.own(owner).await,
            18 => pair.drop_one().await?,
            _ => pair.retry_one().await?,
        }
        if planted == Planted::ForgottenTry {
            db.sql("update events_stack set try_count = 0 where state = 'deferred'")
                .await;
        }
        pair.compare().await?;
    }
    Ok(())
}

impl Pair<'_> {
    /// Takes the database over, as a daemon that starts does.
    async fn own(&mut self, owner: usize) {
        let owner = &mut self.owners[owner];
        let silent = After::Silence(-1);
        owner.epoch = owner.store.own("test pid=1", silent).await.unwrap();
        owner.store.recover(owner.epoch, DEATHS).await.unwrap();
        // The database counts on over all sequences.
        self.model.epoch = owner.epoch - 1;
        assert_eq!(self.model.own(), owner.epoch);
    }

    async fn post(&mut self) {
        for _ in 0..=self.dice.roll(4) {
            let user = 1 + i64::try_from(self.dice.roll(USERS)).unwrap();
            let cmd = self.dice.one(&CMDS);
            let id = posted(&self.db.store, &[event(cmd, user)]).await[0];
            let class = Cmd::parse(cmd).unwrap().class();
            let nas = if user > 5 { 2 } else { 1 };
            let row = Row::new(nas, user, class, 0);
            self.model.compact.insert(id.0, row);
        }
    }

    async fn expand(&mut self, owner: usize) -> Result<(), String> {
        let limit = 1 + usize::try_from(self.dice.roll(6)).unwrap();
        // Where there is nothing to write, nobody is refused.
        if self.model.compact.is_empty() {
            return Ok(());
        }
        let Owner { store, epoch } = &self.owners[owner];
        let real = match store.expand(limit, &[]).await {
            Ok(expansion) => Some(timeless(expansion.moved)),
            Err(Error::Fenced { .. }) => None,
            Err(other) => return Err(other.to_string()),
        };
        let model = self.model.expand(*epoch, limit).ok().map(timeless);
        same("expansion", real, model)
    }

    /// Settles and starts of any row, mostly right ones.
    fn any_turn(&mut self, epoch: i64) -> Turn {
        let mut turn = Turn {
            epoch,
            again: self.dice.roll(6) == 0,
            ..Turn::default()
        };
        let rows: Vec<(i64, Row)> = self.model.stack.iter().map(|(id, r)| (*id, *r)).collect();
        for (id, row) in rows {
            let id = EventId(id);
            let possible_duplicate = self.dice.roll(2) == 0;
            let to = match self.dice.roll(5) {
                0 | 1 => SettleTo::Done {
                    result: DoneResult::Done,
                    answer: None,
                    scheme_hash: "h".into(),
                },
                2 => SettleTo::Dead {
                    reason: "gave up".into(),
                    possible_duplicate,
                },
                3 => SettleTo::Deferred {
                    until_ms: LATER_MS + 1_000 * i64::try_from(self.dice.roll(9)).unwrap(),
                    possible_duplicate,
                },
                _ => SettleTo::Ready { possible_duplicate },
            };
            let ran = row.state == State::Running;
            // Now and then another try than the one that was claimed, or none.
            let try_count = match self.dice.roll(12) {
                0 => Some(row.tries + 1),
                1 => (!ran).then_some(row.tries.max(1)),
                _ => ran.then_some(row.tries),
            };
            let often = if ran { 2 } else { 10 };
            // The daemon does not start what it settles in the same turn, and the stores need not.
            if self.dice.roll(often) == 0 {
                turn.settles.push(Settle {
                    to,
                    try_count,
                    ..done(id, 1)
                });
            } else if self.dice.roll(3) == 0 {
                turn.starts.push(id);
            }
        }
        turn
    }

    async fn turn(&mut self, owner: usize) -> Result<(), String> {
        let turn = self.any_turn(self.owners[owner].epoch);
        if turn.settles.is_empty() && turn.starts.is_empty() {
            return Ok(());
        }
        let answer = |turned: nas_event_daemon::store::Turned| {
            let mut settled = turned.settled;
            settled.sort();
            let of = turned.started.iter();
            let mut started: Vec<_> = of
                .map(|s| (s.id, s.user, s.try_count, s.possible_duplicate))
                .collect();
            started.sort();
            (settled, started)
        };
        let real = match self.owners[owner].store.turn(&turn).await {
            Ok(turned) => Some(answer(turned)),
            Err(Error::Fenced { .. }) => None,
            Err(other) => return Err(other.to_string()),
        };
        let model = self.model.turn(&turn).ok().map(answer);
        same(&format!("turn {turn:?}"), real, model)
    }

    async fn drop_one(&mut self) -> Result<(), String> {
        let known: Vec<i64> = self.model.stack.keys().copied().collect();
        if known.is_empty() {
            return Ok(());
        }
        let id = self.dice.one(&known);
        let real = self
            .db
            .store
            .drop_event(EventId(id), None, "x")
            .await
            .unwrap();
        same("drop", real, self.model.drop_event(id))
    }

    async fn retry_one(&mut self) -> Result<(), String> {
        let known: Vec<i64> = self.model.ended.keys().copied().collect();
        if known.is_empty() {
            return Ok(());
        }
        let id = self.dice.one(&known);
        let new = self.db.store.retry_dead(EventId(id)).await.unwrap();
        same("retry", new.is_some(), self.model.may_retry(id))?;
        if let Some(new) = new {
            self.model.retry(id, new.0, 0);
        }
        Ok(())
    }

    /// Every row stands where the model has it, and is read as it reads it.
    async fn compare(&mut self) -> Result<(), String> {
        let answer = self.db.store.sql(ALL, false).await.unwrap();
        let number = |cell: Option<String>| cell.unwrap().parse::<i64>().unwrap();
        let row = |cells: Vec<Option<String>>| cells.into_iter().map(number).collect();
        let real: Vec<Vec<i64>> = answer.rows.into_iter().map(row).collect();
        let flags = |row: &Row| [row.tries, row.deaths, u32::from(row.dup)].map(i64::from);
        let stack = self.model.stack.iter().map(|(id, row)| {
            let (state, epoch) = match row.state {
                State::Ready => (0, 0),
                State::Deferred => (1, 0),
                State::Running => (2, row.epoch),
            };
            let places = [1, *id, row.nas, row.user];
            [&places[..], &flags(row), &[state, epoch]].concat()
        });
        let compact = self.model.compact.iter();
        let compact = compact.map(|(id, row)| vec![0, *id, row.user, 0, 0, 0, 0, 0, 0]);
        let ends = self.model.ended.iter().map(|(id, end)| {
            let row = &self.model.past[id];
            let how = match end {
                End::Done(DoneResult::Done) => 0,
                End::Done(_) => 1,
                End::Dead => 2,
            };
            let dup = i64::from(row.dup && *end == End::Dead);
            let again = i64::from(self.model.retried.contains(id));
            vec![2, *id, how, row.nas, row.user, dup, again, 0, 0]
        });
        let model: Vec<Vec<i64>> = compact.chain(stack).chain(ends).collect();
        same("rows", real, model)?;
        let nas = NasId(1 + i64::try_from(self.dice.roll(2)).unwrap());
        let limit = 1 + usize::try_from(self.dice.roll(8)).unwrap();
        let first = self.model.stack.keys().next().copied().unwrap_or_default();
        let from = EventId(first + i64::try_from(self.dice.roll(4)).unwrap());
        let real = self.db.store.load(nas, from, limit).await.unwrap();
        same(
            "page",
            timeless(real),
            timeless(self.model.load(nas, from, limit)),
        )?;
        let lanes =
            [self.dice.roll(USERS), self.dice.roll(USERS)].map(|n| 1 + i64::try_from(n).unwrap());
        let users = BTreeSet::from(lanes);
        let wanted: Vec<_> = users
            .iter()
            .map(|user| (nas, Some(UserId(*user))))
            .collect();
        let real = self.db.store.refill(&wanted, limit).await.unwrap();
        let lane = |user: &i64| self.model.refill(nas, *user, limit);
        same(
            "lanes",
            timeless(real),
            timeless(users.iter().flat_map(lane).collect()),
        )
    }
}
