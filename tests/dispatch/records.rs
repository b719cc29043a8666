//! Whatever becomes of an event, the log of its NAS and the log of its account end with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use nas_event_daemon::attempt::{Job, Report, Transcript};
use nas_event_daemon::dispatch::plan::Step;
use nas_event_daemon::dispatch::pool::Served;
use nas_event_daemon::dispatch::scheduler::Scheduler;
use nas_event_daemon::dispatch::{Message, parent::Settings};
use nas_event_daemon::event::Cmd;
use nas_event_daemon::logs::Logs;
use nas_event_daemon::nas::NasId;
use nas_event_daemon::scheme::{Execute, ExitPolicy, Identity};
use nas_event_daemon::store::After;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::outcomes::ends_in_both_logs;

on_each_store!(
    a_diagnostic_of_a_paused_nas_is_told,
    an_event_whose_command_is_no_command_is_told,
    an_attempt_that_breaks_is_told,
);

async fn a_diagnostic_of_a_paused_nas_is_told(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.session("Mine", "user_info() { :; }");
    lab.nas(1, "Mine", 1, &[]).await;
    lab.accounts(1, [10]).await;
    lab.sql("insert into nas_state (nas_id, paused_until) values (1, '2999-01-01 00:00:00.000')")
        .await;
    let daemon = lab.start().await;
    let id = lab.event(10, "user_info").await;
    let (_, reason) = lab.ended(id).await;
    let record = format!(
        "event={id} user=10 cmd=user_info try=0 end result=dead code=0 ms=0 error=\"{reason}\""
    );
    ends_in_both_logs(&lab, 1, 10, &record).await;
    daemon.stop().await;
}

async fn an_event_whose_command_is_no_command_is_told(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.session("Mine", "user_add() { :; }");
    lab.nas(1, "Mine", 1, &[]).await;
    lab.accounts(1, [10]).await;
    lab.sql("insert into events_stack_compact (cmd, user_id) values ('user_add', 10)")
        .await;
    lab.db.store.expand(10, &[]).await.unwrap();
    lab.sql("update events_stack set event_type = 'User Add'")
        .await;
    let daemon = lab.start().await;
    lab.drained().await;
    let rows = lab.rows("select id, reason from events_dead").await;
    let record = format!(
        "event={} user=10 cmd=User Add try=1 end result=dead code=1 ms=0 error=\"{}\"",
        rows[0][0],
        rows[0][1].replace('"', "\\\"")
    );
    ends_in_both_logs(&lab, 1, 10, &record).await;
    daemon.stop().await;
}

/// An executor with a bug.
struct Breaks(Identity, ExitPolicy);

#[async_trait]
impl Execute for Breaks {
    async fn run(&self, _: &Job, transcript: &mut Transcript) -> Report {
        transcript.command("what was sent");
        let nothing: [u8; 0] = [];
        let _ = nothing[self.0.hash.len()];
        unreachable!()
    }
    fn policy(&self) -> &ExitPolicy {
        &self.1
    }
    fn identity(&self) -> &Identity {
        &self.0
    }
    fn has(&self, _: &Cmd) -> bool {
        true
    }
    fn own_cmds(&self) -> BTreeSet<Cmd> {
        BTreeSet::new()
    }
}

async fn an_attempt_that_breaks_is_told(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.nas(1, "Record", 1, &[]).await;
    lab.accounts(1, [10]).await;
    let store = Arc::clone(&lab.db.store);
    let epoch = store.own("test pid=1", After::Silence(0)).await.unwrap();
    lab.sql("insert into events_stack_compact (cmd, user_id) values ('user_add', 10)")
        .await;
    let moved = store.expand(10, &[]).await.unwrap().moved;
    let id = moved[0].id;
    let nas = store.nases().await.unwrap().remove(0).unwrap();
    let served = Served {
        secret: Arc::default(),
        execute: Arc::new(Breaks(Identity::default(), ExitPolicy::default())),
        scheme_hash: String::new(),
        log_name: "bras1_127.0.0.1.log".to_owned(),
        paused_from_ms: None,
        paused_until_ms: None,
        nas: Arc::new(nas),
    };
    let (sender, inbox) = mpsc::channel(8);
    let (status, _status) = watch::channel(nas_event_daemon::dispatch::status::Status::default());
    let logs = Logs::open(lab.path("log"), "here", 1).unwrap();
    logs.echo(false);
    let scheduler = Scheduler {
        store,
        logs,
        config: Arc::default(),
        result_dir: None,
        epoch,
        status,
        sender: sender.clone(),
    };
    let stop = CancellationToken::new();
    let mut running = JoinSet::new();
    running.spawn(scheduler.run(inbox, stop.clone(), CancellationToken::new()));
    let settings = Settings {
        steps: vec![Step::Start(NasId(1), served)],
        skipped: BTreeMap::new(),
    };
    sender.send(Message::Settings(settings)).await.unwrap();
    let (place, reason) = lab.ended(id.0).await;
    assert_eq!(place, "dead");
    assert!(reason.contains("panic"), "{reason}");
    let record = format!(
        "event={id} user=10 cmd=user_add try=1 end result=dead code=70 ms=0 error=\"{reason}\""
    );
    ends_in_both_logs(&lab, 1, 10, &record).await;
    let log = lab.account_log(10);
    assert!(log[0].ends_with("try=1 start"), "{log:?}");
    assert!(log[1].ends_with("try=1 > what was sent"), "{log:?}");
    let row = lab.rows("select possible_duplicate from events_dead").await;
    assert!(["1", "true", "t"].contains(&row[0][0].as_str()), "{row:?}");
    stop.cancel();
    running.join_next().await.unwrap().unwrap().unwrap();
}
