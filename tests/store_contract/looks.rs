//! What the contract says of the billing's tables, NAS rows, secrets and statements.

use super::*;

pub(super) async fn every_missing_column_is_named(db: Db) {
    assert_eq!(
        db.store.check_billing().await.unwrap(),
        Vec::<String>::new()
    );
    db.sql("drop view event_params").await;
    db.sql("create view event_params as select id as user_id, nas_id, login as web_password from users").await;
    let missing = db.store.check_billing().await.unwrap();
    assert!(
        missing
            .iter()
            .any(|m| m.contains("event_params.abonent_id")),
        "{missing:?}"
    );
    assert!(
        missing.iter().any(|m| m.contains("web_password")),
        "{missing:?}"
    );
}

pub(super) async fn nas_rows_are_checked_one_by_one(db: Db) {
    fill(&db).await;
    db.sql("update nas set mode = 'maybe' where id = 2").await;
    let rows = db.store.nases().await.unwrap();
    assert_eq!(rows.len(), 3);
    assert_eq!(rows[0].as_ref().unwrap().name, "A");
    assert!(rows[1].as_ref().unwrap_err().reason.contains("maybe"));
    db.sql("insert into nas_secret (nas_id, login, password) values (1, 'admin', 'servicemode')")
        .await;
    let secret = db.store.secret(NasId(1)).await.unwrap();
    assert_eq!(
        (secret.login.as_str(), secret.password.as_str()),
        ("admin", "servicemode")
    );
    assert!(!format!("{secret:?}").contains("servicemode"));
    let mut state = nas_event_daemon::nas::NasState {
        paused_until_ms: Some(i64::MAX),
        pause_reason: "night".into(),
        forks: Some(2),
        ssh_host_key: None,
    };
    db.store.set_nas_state(NasId(1), &state).await.unwrap();
    assert_eq!(db.store.nas_states().await.unwrap()[&NasId(1)], state);
    state.paused_until_ms = None;
    db.store.set_nas_state(NasId(1), &state).await.unwrap();
    assert_eq!(db.store.nas_states().await.unwrap()[&NasId(1)], state);
    host_keys_are_replaced_only_by_who_knows_the_old_one(&db).await;
    let flags = db.store.account_flags(Some(NasId(1)), None).await.unwrap();
    assert_eq!(flags.len(), 9);
    assert!(flags[0].accept && !flags[0].redirect && !flags[0].deleted && flags[0].rated);
}

async fn host_keys_are_replaced_only_by_who_knows_the_old_one(db: &Db) {
    // With a state row and without one.
    for nas in [NasId(1), NasId(2)] {
        for (was, key, done) in [
            (Some("a"), Some("b"), false),
            (None, Some("a"), true),
            (None, Some("b"), false),
            (Some("a"), Some("c"), true),
        ] {
            let told = db.store.set_host_key(nas, was, key).await.unwrap();
            assert_eq!(told, done, "{nas} {was:?} {key:?}");
        }
        let state = db.store.nas_states().await.unwrap().remove(&nas).unwrap();
        assert_eq!(state.ssh_host_key.as_deref(), Some("c"));
        // The operator's settings and the key live side by side.
        db.store.set_nas_state(nas, &state).await.unwrap();
        assert_eq!(db.store.nas_states().await.unwrap()[&nas], state);
        assert!(db.store.set_host_key(nas, Some("c"), None).await.unwrap());
    }
}

pub(super) async fn secrets_are_never_readable_by_statements(db: Db) {
    fill(&db).await;
    db.sql("insert into nas_secret (nas_id, login, password) values (1, 'admin', 'servicemode')")
        .await;
    for statement in [
        "select * from nas_secret",
        "select * from NAS_SECRET",
        "select * from token",
    ] {
        assert!(
            matches!(db.store.sql(statement, false).await, Err(Error::Refused(_))),
            "{statement}"
        );
    }
    let answer = db
        .store
        .sql("select id, login from users order by id limit 2", false)
        .await
        .unwrap();
    assert_eq!(answer.columns, vec!["id", "login"]);
    assert_eq!(
        answer.rows[0],
        vec![Some("1".to_owned()), Some("u1".to_owned())]
    );
    assert!(
        db.store.sql("delete from users", false).await.is_err(),
        "read only without --write"
    );
    assert_eq!(db.store.account_flags(None, None).await.unwrap().len(), 9);
    assert!(
        connect("sqlite:///nonexistent-directory/x.db")
            .await
            .is_err()
    );
}

pub(super) async fn a_statement_that_looks_changes_nothing(db: Db) {
    fill(&db).await;
    for statement in [
        "commit; delete from users; begin",
        "delete from users",
        "with gone as (delete from users returning id) select * from gone",
        "insert into users (id) values (77)",
    ] {
        assert!(db.store.sql(statement, false).await.is_err(), "{statement}");
    }
    assert_eq!(db.store.account_flags(None, None).await.unwrap().len(), 9);
    let changed = db
        .store
        .sql("delete from users where id > 7", true)
        .await
        .unwrap();
    assert_eq!(changed.changed, 2);
    assert_eq!(db.store.account_flags(None, None).await.unwrap().len(), 7);
}

pub(super) async fn a_nul_never_blocks_a_settle(db: Db) {
    let epoch = owned(&db).await;
    let mut ids = Vec::new();
    for user in 1..=3 {
        ids.push(running(&db, epoch, user).await);
    }
    let nul = || "before\0after".to_owned();
    let settles = vec![
        Settle {
            to: SettleTo::Done {
                result: DoneResult::Done,
                answer: Some(nul()),
                scheme_hash: "ab".into(),
            },
            error: Some(nul()),
            ..done(ids[0], 1)
        },
        Settle {
            to: SettleTo::Dead {
                reason: nul(),
                possible_duplicate: false,
            },
            error: Some(nul()),
            ..done(ids[1], 1)
        },
        Settle {
            to: SettleTo::Deferred {
                until_ms: i64::MAX,
                possible_duplicate: false,
            },
            error: Some(nul()),
            ..done(ids[2], 1)
        },
    ];
    let turn = Turn {
        epoch,
        settles,
        ..Turn::default()
    };
    let mut settled = db.store.turn(&turn).await.unwrap().settled;
    settled.sort();
    assert_eq!(settled, ids);
    let row = db.store.event(ids[0]).await.unwrap().unwrap();
    assert!(row.answer.unwrap().starts_with("before"));
    assert!(db.store.drop_event(ids[2], &nul()).await.unwrap());
    db.store.audit("who", "what", &nul()).await.unwrap();
    // What a producer posts is kept as it is, or refused in words.
    let post = CompactEvent {
        nas_ip: Some(nul()),
        ..event("user_add", 1)
    };
    match db.store.post(&[post], None).await {
        Ok(Posted::New(_)) => {}
        Err(Error::Refused(text)) => {
            assert!(text.contains("NUL") && text.contains("nas_ip"), "{text}");
        }
        other => panic!("{other:?}"),
    }
}
