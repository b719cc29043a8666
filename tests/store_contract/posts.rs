//! What the contract says of posts: ids, all or nothing, keys, shared transactions.

use super::*;

pub(super) async fn ids_never_repeat_and_posts_are_all_or_nothing(db: Db) {
    fill(&db).await;
    let guard = Idempotency {
        key: "k1".into(),
        body_hash: "h".into(),
        lasting: false,
    };
    let first = db
        .store
        .post(&[event("user_add", 1)], Some(&guard))
        .await
        .unwrap();
    let Posted::New(ids) = &first else {
        panic!("{first:?}")
    };
    assert_eq!(
        db.store
            .post(&[event("user_add", 1)], Some(&guard))
            .await
            .unwrap(),
        Posted::Again(ids.clone())
    );
    let other = Idempotency {
        key: "k1".into(),
        body_hash: "other".into(),
        lasting: false,
    };
    assert_eq!(
        db.store
            .post(&[event("user_add", 1)], Some(&other))
            .await
            .unwrap(),
        Posted::Conflict
    );
    db.store.expand(10, &[]).await.unwrap();
    db.sql("delete from events_stack").await;
    let again = posted(&db.store, &[event("user_add", 1)]).await;
    assert!(again[0] > ids[0], "{again:?} after {ids:?}");
}

pub(super) async fn posts_share_a_transaction_and_nothing_else(db: Db) {
    fill(&db).await;
    let guard = |key: &str, hash: &str| Idempotency {
        key: key.into(),
        body_hash: hash.into(),
        lasting: false,
    };
    let (a, b, a_other) = (guard("a", "1"), guard("b", "1"), guard("a", "2"));
    let one = [event("user_add", 1)];
    let two = [event("user_add", 2), event("user_edit", 2)];
    let mut nul = [event("user_add", 3)];
    nul[0].owner_script = Some("\0".into());
    let post = |events, guard| Post {
        events,
        guard,
        who: Some("crm"),
    };
    assert_eq!(db.store.posted_before(&a).await.unwrap(), None);
    let posts = [
        post(&one, None),
        post(&two, Some(&a)),
        post(&nul, Some(&b)),
        post(&one, Some(&a)),
        post(&one, Some(&a_other)),
        post(&one, None),
    ];
    let mut done = db.store.post_all(&posts).await.unwrap();
    assert_eq!(done.len(), posts.len());
    // What is refused takes neither its key nor the others with it.
    let third = done.remove(2).unwrap_err();
    assert!(third.to_string().contains("owner_script"), "{third}");
    assert_eq!(db.store.posted_before(&b).await.unwrap(), None);
    let done: Vec<Posted> = done.into_iter().map(Result::unwrap).collect();
    let [
        Posted::New(first),
        Posted::New(pair),
        Posted::Again(again),
        Posted::Conflict,
        Posted::New(last),
    ] = done.as_slice()
    else {
        panic!("{done:?}")
    };
    assert_eq!((first.len(), pair.len(), last.len()), (1, 2, 1));
    assert_eq!(pair, again);
    assert!(first[0] < pair[0] && pair[0] < pair[1] && pair[1] < last[0]);
    // Later ones are told what the first was told.
    let known = db.store.posted_before(&a).await.unwrap();
    assert_eq!(known, Some(Posted::Again(pair.clone())));
    let known = db.store.posted_before(&a_other).await.unwrap();
    assert_eq!(known, Some(Posted::Conflict));
    let posts = [post(&two, Some(&a)), post(&one, None)];
    let later = db.store.post_all(&posts).await.unwrap();
    assert_eq!(later[0].as_ref().unwrap(), &Posted::Again(pair.clone()));
    let Ok(Posted::New(new)) = &later[1] else {
        panic!("{later:?}")
    };
    let rows = db.store.expand(100, &[]).await.unwrap().moved;
    assert_eq!(rows.len(), 5, "{rows:?}");
    assert_eq!(rows.last().unwrap().id, new[0]);
    // The audit names what was written, one row per transaction.
    let rows = audit_rows(db.store.as_ref(), None, 10).await.unwrap();
    let told: Vec<(&str, &str)> = rows.iter().map(|r| (r.who.as_str(), &*r.detail)).collect();
    let ([one], [two, three], [last], [new]) = (&first[..], &pair[..], &last[..], &new[..]) else {
        panic!("{first:?} {pair:?} {last:?} {new:?}")
    };
    let earlier =
        format!("event={one} cmd=user_add; events={two}..{three} n=2; event={last} cmd=user_add");
    let later = format!("event={new} cmd=user_add");
    assert_eq!(told, [("crm", later.as_str()), ("crm", earlier.as_str())]);
}

pub(super) async fn a_lasting_key_is_kept_until_it_is_confirmed(db: Db) {
    fill(&db).await;
    let key = |key: &str, lasting| Idempotency {
        key: key.into(),
        body_hash: "h".into(),
        lasting,
    };
    let (short, long) = (key("short", false), key("long", true));
    let one = [event("user_edit", 1)];
    for guard in [&short, &long] {
        db.store.post(&one, Some(guard)).await.unwrap();
    }
    let age = |days: u32| {
        if db.url.starts_with("postgres") {
            format!("update idempotency set created_at = now() - interval '{days} days'")
        } else {
            format!(
                "update idempotency set created_at = strftime('%Y-%m-%d %H:%M:%f', 'now', '-{days} days')"
            )
        }
    };
    db.sql(&age(2)).await;
    assert_eq!(db.store.posted_before(&short).await.unwrap(), None);
    let known = db.store.post(&one, Some(&long)).await.unwrap();
    assert!(matches!(known, Posted::Again(_)), "{known:?}");
    let new = db.store.post(&one, Some(&short)).await.unwrap();
    assert!(matches!(new, Posted::New(_)), "{new:?}");
    db.sql(&age(364)).await;
    assert!(db.store.posted_before(&long).await.unwrap().is_some());
    db.sql(&age(366)).await;
    assert_eq!(db.store.posted_before(&long).await.unwrap(), None);
    // What the source has confirmed is a key like any other.
    db.sql(&age(0)).await;
    db.store.confirm_keys(&["long".to_owned()]).await.unwrap();
    assert!(db.store.posted_before(&long).await.unwrap().is_some());
    db.sql(&age(2)).await;
    assert_eq!(db.store.posted_before(&long).await.unwrap(), None);
}

pub(super) async fn a_row_that_the_database_refuses_is_named_as_such(db: Db) {
    fill(&db).await;
    let refuse = if db.url.starts_with("postgres") {
        "alter table events_stack_compact add check (cmd <> 'user_del')"
    } else {
        "create trigger no_del before insert on events_stack_compact when new.cmd = 'user_del'
         begin select raise(abort, 'not that'); end"
    };
    db.sql(refuse).await;
    let posts = [[event("user_add", 1)], [event("user_del", 2)]];
    let both = posts.each_ref().map(|events| Post {
        events,
        guard: None,
        who: None,
    });
    let error = db.store.post_all(&both).await.unwrap_err();
    assert!(error.blames_a_row(), "{error:?}");
    assert_eq!(db.store.backlog(5).await.unwrap().compact, 0);
    db.sql("drop table events_stack_compact").await;
    let error = db.store.post_all(&both).await.unwrap_err();
    assert_eq!(
        error.blames_a_row(),
        db.url.starts_with("sqlite"),
        "SQLite has one code for a missing table and a function that refuses: {error:?}"
    );
}

pub(super) async fn many_posts_keep_their_order(db: Db) {
    fill(&db).await;
    let many: Vec<_> = (0..300)
        .map(|n| CompactEvent {
            acct_session_id: Some(format!("S{n}")),
            ..event("user_add", n % 9 + 1)
        })
        .collect();
    let ids = posted(&db.store, &many).await;
    assert!(ids.is_sorted() && ids.len() == 300, "{ids:?}");
    let mut moved = Vec::new();
    loop {
        let out = db.store.expand(64, &[]).await.unwrap();
        moved.extend(out.moved);
        if !out.full {
            break;
        }
    }
    assert_eq!(moved.iter().map(|w| w.id).collect::<Vec<_>>(), ids);
    for n in [0, 150, 299] {
        let row = db.store.event(ids[n]).await.unwrap().unwrap();
        assert_eq!(row.params.unwrap().text("acct_session_id"), format!("S{n}"));
    }
}
