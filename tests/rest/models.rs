//! The classic models over real databases: the whole chain, look-ups, relations, paging; what
//! belongs to the billing, what moves on meanwhile, and what is malformed.

use axum::body::Body;
use axum::http::Request;
use nas_event_daemon::store::Token;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::fake::{Answer, House, house_on};
use crate::lab::db::{Db, Kind};
use crate::lab::on_each_store;

on_each_store!(
    the_whole_chain_reads,
    lookups_of_every_kind,
    relations_are_followed,
    an_event_is_set_and_saved_while_it_waits,
    deleting_is_dropping,
    the_billing_is_only_read,
    pages_of_models_and_of_rows,
    what_is_malformed_changes_nothing,
);

const COMPACT: &str = "EventsStackCompact";

/// Four accounts of two abonents on two NASes; six events by SQL, of which five are expanded.
pub(crate) async fn house(kind: Kind) -> (Db, House) {
    let db = Db::new(kind).await;
    db.sql(
        "insert into nas (id, name, ip, http_url) values (5, 'bras5', '10.0.0.5', 'https://u:geheim@x/'), (6, 'bras6', '10.0.0.6', null);
         insert into abonents (id, name) values (71, 'Иван'), (72, 'O''Neil');
         insert into users (id, abonent_id, nas_id, login, ip, accept, redirect, ceil_in) values
           (1, 71, 5, 'ivan', '10.1.0.1', 1, 0, 1000), (2, 71, 5, 'ivan2', '10.1.0.2', 1, 1, null),
           (3, 72, 6, 'neil', '10.1.0.3', 0, 0, 3000), (4, null, null, '100%_a', '10.1.0.4', 0, 0, 4000)",
    )
    .await;
    db.sql(
        "insert into events_stack_compact (cmd, user_id, batch_id, params) values
           ('user_add', 1, 'b', '{\"a\": [1]}'), ('user_redirect', 2, 'b', null), ('user_del', 3, null, null),
           ('user_add', 3, null, null), ('user_drop', 1, null, null)",
    )
    .await;
    db.store.expand(100, &[]).await.unwrap();
    db.sql("insert into events_stack_compact (cmd, user_id) values ('user_accept', 4)")
        .await;
    let house = house_of(&db).await;
    (db, house)
}

/// The doors over a database, with a token of each scope that is asked for here.
pub(crate) async fn house_of(db: &Db) -> House {
    for scope in ["viewer", "operator"] {
        let token = Token {
            name: format!("crm-{scope}"),
            scope: scope.to_owned(),
            hash: format!("{:x}", Sha256::digest(format!("t-{scope}"))),
        };
        db.store.add_token(&token).await.unwrap();
    }
    house_on(std::sync::Arc::clone(&db.store))
}

impl House {
    async fn call(&self, model: &str, body: &str) -> Answer {
        self.with("operator", "POST", &format!("/rest_api/v2/{model}/"), body)
            .await
    }

    /// The result of a call that works.
    pub(crate) async fn result(&self, model: &str, body: &str) -> Value {
        let answer = self.call(model, body).await;
        assert_eq!(answer.status, 200, "{body}: {}", answer.text);
        let mut json = answer.json();
        assert!(json.get("error").is_none(), "{json}");
        json["result"].take()
    }

    /// The error of one that does not.
    pub(crate) async fn error(&self, model: &str, body: &str) -> String {
        let answer = self.call(model, body).await;
        assert!(answer.status >= 400, "{body}: {}", answer.text);
        let json = answer.json();
        assert!(json.get("result").is_none(), "{json}");
        json["error"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn pks(&self, model: &str, body: &str) -> Vec<i64> {
        let result = self.result(model, body).await;
        let each = result.as_array().unwrap().iter();
        each.map(|o| o["pk"].as_i64().unwrap()).collect()
    }
}

async fn the_whole_chain_reads(kind: Kind) {
    let (db, h) = house(kind).await;
    let one = h
        .result(
            "EventsStack",
            r#"method1=objects.get&arg1={"id":"1"}&fields=["event_type","user_id","params"]"#,
        )
        .await;
    assert_eq!(one["pk"], 1);
    assert_eq!(one["model"], "EventsStack");
    assert_eq!(one["fields"]["event_type"], "user_add");
    assert_eq!(one["fields"]["params"]["a"], json!([1]));
    assert_eq!(one["fields"].as_object().unwrap().len(), 3);
    let all = h.pks("EventsStack", "method1=objects.all&arg1={}").await;
    assert_eq!(all, [5, 4, 3, 2, 1], "newest first");
    let chain = r#"method1=objects.filter&arg1={"user_id__in":["1",3]}&method2=exclude&arg2={"cmd":"user_del"}&method3=order_by&arg3=["user_id","-id"]"#;
    assert_eq!(h.pks("EventsStack", chain).await, [5, 1, 4]);
    let count = r#"method1=objects.filter&arg1={"user_id":1}&method2=objects.count&arg2={}"#;
    assert_eq!(h.result("EventsStack", count).await, 2);
    assert_eq!(
        h.result("EventsStack", "method1=objects.count&arg1={}")
            .await,
        5
    );
    let get =
        r#"method1=objects.filter&arg1={"user_id":3}&method2=get&arg2={"event_type":"user_del"}"#;
    assert_eq!(h.result("EventsStack", get).await["pk"], 3);
    let encoded =
        "method1=objects.filter&arg1=%7B%22login%22%3A+%22ivan%22%7D&fields=%5B%22id%22%5D";
    let object = json!([{ "pk": 1, "model": "Users", "fields": { "id": 1 } }]);
    assert_eq!(h.result("Users", encoded).await, object);
    let json = r#"{"method1":"objects.filter","arg1":{"login":"ivan"},"fields":["id"]}"#;
    assert_eq!(h.result("Users", json).await, object);
    let whole = h
        .result(COMPACT, r#"method1=objects.get&arg1={"user_id":4}"#)
        .await;
    assert_eq!(whole["fields"]["cmd"], "user_accept");
    assert_eq!(whole["fields"]["params_complete"], false);
    assert_eq!(whole["fields"]["params"], Value::Null);
    let created = whole["fields"]["created_at"].as_str().unwrap();
    assert_eq!(created.len(), "2026-01-02 03:04:05".len(), "{created}");
    drop(db);
}

async fn lookups_of_every_kind(kind: Kind) {
    let (db, h) = house(kind).await;
    db.sql(
        "insert into events_done (id, event_type, user_id, nas_id, event_date, result, error, ms, finished_at) values
           (100, 'user_add', 1, 5, '2024-01-01 00:00:00.500', 'done', null, 5, '2024-01-01 00:00:01.250'),
           (101, 'user_add', 1, 5, '2024-02-01 00:00:00', 'expired', 'too %_ late', 50, '2024-02-01 00:00:00'),
           (102, 'b_negbal', 2, 6, '2024-03-01 00:00:00', 'done', 'Жуть', 500, '2024-03-01 12:00:00')",
    )
    .await;
    for (lookup, wanted) in [
        (r#"{"ms__gt":5}"#, &[102, 101][..]),
        (r#"{"ms__gte":"5"}"#, &[102, 101, 100]),
        (r#"{"ms__lt":50}"#, &[100]),
        (r#"{"ms__lte":50}"#, &[101, 100]),
        (
            r#"{"event_type__exact":"user_add","result":"done"}"#,
            &[100],
        ),
        (r#"{"event_date":"2024-01-01 00:00:00"}"#, &[100]),
        (
            r#"{"event_date__range":["2024-01-15","2024-03-01 00:00:00"]}"#,
            &[102, 101],
        ),
        (r#"{"finished_at__gt":"2024-03-01"}"#, &[102]),
        (r#"{"error__isnull":true}"#, &[100]),
        (r#"{"error__isnull":"0"}"#, &[102, 101]),
        (r#"{"error":null}"#, &[100]),
        (r#"{"error__contains":"%_ l"}"#, &[101]),
        (r#"{"error__contains":"ут"}"#, &[102]),
        (r#"{"error__contains":"%"}"#, &[101]),
        (r#"{"error__startswith":"Ж"}"#, &[102]),
        (r#"{"error__startswith":"too %"}"#, &[101]),
        (r#"{"id__in":[100,"102",7]}"#, &[102, 100]),
        (r#"{"id__in":[]}"#, &[]),
        (r#"{"possible_duplicate":"0","before":102}"#, &[101, 100]),
        (r#"{"state":"expired"}"#, &[101]),
        (r#"{"error":"x' or '1'='1"}"#, &[]),
    ] {
        let body = format!("method1=objects.filter&arg1={lookup}");
        assert_eq!(h.pks("EventsDone", &body).await, wanted, "{lookup}");
    }
    // What is NULL is not equal, so exclude keeps it.
    let body = r#"method1=objects.exclude&arg1={"error__contains":"late"}"#;
    assert_eq!(h.pks("EventsDone", body).await, [102, 100]);
    let body = r#"method1=objects.filter&arg1={"login__startswith":"100%"}"#;
    assert_eq!(h.pks("Users", body).await, [4]);
    let body = r#"method1=objects.filter&arg1={"accept":true,"ceil_in__isnull":false}"#;
    assert_eq!(h.pks("Users", body).await, [1]);
    let body = r#"method1=objects.all&arg1={}&method2=order_by&arg2="-ceil_in""#;
    assert_eq!(h.pks("Users", body).await, [4, 3, 1, 2], "NULL is last");
    drop(db);
}

async fn relations_are_followed(kind: Kind) {
    let (db, h) = house(kind).await;
    let body = r#"method1=objects.filter&arg1={"user__abonent__name":"O'Neil"}"#;
    assert_eq!(h.pks("EventsStack", body).await, [4, 3]);
    let body = r#"method1=objects.filter&arg1={"nas":5,"user__login__startswith":"ivan2"}"#;
    assert_eq!(h.pks("EventsStack", body).await, [2]);
    let body = r#"method1=objects.get&arg1={"id":2}&fields=["event_type","user__login","user__abonent__name","nas"]"#;
    let fields = h.result("EventsStack", body).await["fields"].take();
    assert_eq!(fields["event_type"], "user_redirect");
    assert_eq!(
        fields["user"],
        json!({"pk": 2, "model": "Users", "fields": {"login": "ivan2",
            "abonent": {"pk": 71, "model": "Abonents", "fields": {"name": "Иван"}}}})
    );
    assert_eq!(fields["nas"]["fields"]["name"], "bras5");
    assert!(!fields.to_string().contains("geheim"), "{fields}");
    let body = r#"method1=objects.all&arg1={}&fields=["name","users__login"]"#;
    let abonents = h.result("Abonents", body).await;
    let logins = abonents[0]["fields"]["users"].as_array().unwrap();
    assert_eq!(logins.len(), 2);
    assert_eq!(logins[1]["fields"], json!({"login": "ivan2"}));
    let body = r#"method1=objects.get&arg1={"id":4}&fields=["abonent","abonent_id"]"#;
    let fields = h.result("Users", body).await["fields"].take();
    assert_eq!(fields, json!({"abonent_id": null, "abonent": null}));
    drop(db);
}

async fn an_event_is_set_and_saved_while_it_waits(kind: Kind) {
    let (db, h) = house(kind).await;
    let edit = r#"method1=objects.get&arg1={"user_id":4}&method2=set&arg2={"cmd":"user_del","nas_id":"5","params":{"x":"1"}}&method3=save&arg3={}"#;
    let saved = h.result(COMPACT, edit).await;
    assert_eq!(saved["fields"]["cmd"], "user_del");
    assert_eq!(saved["fields"]["nas_id"], 5);
    assert_eq!(saved["fields"]["user_id"], 4, "what was not set stays");
    assert_eq!(saved["fields"]["params"], json!({"x": "1"}));
    let wrong = edit.replace("user_del", "user_dal");
    assert!(
        h.error(COMPACT, &wrong)
            .await
            .contains("did you mean user_del?")
    );
    let wrong = edit.replace(r#""cmd":"#, r#""id":7,"cmd":"#);
    assert!(
        h.error(COMPACT, &wrong)
            .await
            .contains("number of an event")
    );
    let viewer = h
        .with("viewer", "POST", "/rest_api/v2/EventsStackCompact/", edit)
        .await;
    assert_eq!(viewer.status, 403);
    let audit = db
        .store
        .sql("select detail from audit where what = 'save'", false);
    let rows = audit.await.unwrap().rows;
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0][0].as_deref(), Some("event=6 set=cmd,nas_id,params"));
    db.store.expand(10, &[]).await.unwrap();
    let gone = h.error(COMPACT, edit).await;
    assert!(
        gone.contains("no object of EventsStackCompact fits"),
        "{gone}"
    );
    let late = nas_event_daemon::event::CompactEvent {
        cmd: "user_add".to_owned(),
        ..Default::default()
    };
    let late = db
        .store
        .rewrite(nas_event_daemon::event::EventId(6), &late)
        .await;
    assert!(!late.unwrap(), "an event that moved on is not rewritten");
    let body = r#"method1=objects.get&arg1={"id":6}"#;
    let moved = h.result("EventsStack", body).await;
    assert_eq!(moved["fields"]["event_type"], "user_del");
}

async fn deleting_is_dropping(kind: Kind) {
    let (db, h) = house(kind).await;
    db.sql("update events_stack set state = 'running' where id = 5")
        .await;
    let body = r#"method1=objects.filter&arg1={"user_id":1}&method2=delete&arg2={}"#;
    assert_eq!(
        h.result("EventsStack", body).await,
        json!({"deleted": 1, "kept": [5]})
    );
    let body = r#"method1=objects.get&arg1={"id":1}"#;
    let dropped = h.result("EventsDone", body).await;
    assert_eq!(dropped["fields"]["result"], "dropped");
    let body = r#"method1=objects.get&arg1={"user_id":4}&method2=delete&arg2={}"#;
    let answer = h.result(COMPACT, body).await;
    assert_eq!(answer, json!({"deleted": 1, "kept": []}));
    assert!(h.error(COMPACT, body).await.contains("no object"));
    let body = r#"method1=objects.get&arg1={"user_id":3}&method2=delete"#;
    let several = h.error("EventsStack", body).await;
    assert!(several.contains("more than one"), "{several}");
    assert_eq!(
        h.result("EventsStack", "method1=objects.count").await,
        4,
        "nothing else is gone"
    );
}

async fn the_billing_is_only_read(kind: Kind) {
    let (db, h) = house(kind).await;
    for model in ["Nas", "Users", "Abonents", "Usluga"] {
        for body in [
            r#"method1=objects.create&arg1={"id":9}"#,
            r#"method1=objects.get&arg1={"id":1}&method2=set&arg2={"id":2}&method3=save"#,
            r#"method1=objects.filter&arg1={"id":1}&method2=delete"#,
            r#"method1=objects.delete&arg1={"id":1}"#,
        ] {
            let said = h.error(model, body).await;
            assert!(
                said.contains("this table belongs to your billing"),
                "{model} {body}: {said}"
            );
        }
    }
    // Nothing that may be a secret can be read, or guessed letter by letter.
    let whole = h.call("Nas", "method1=objects.all&arg1={}").await.text;
    assert!(
        !whole.contains("geheim") && whole.contains("bras5"),
        "{whole}"
    );
    for body in [
        r#"method1=objects.filter&arg1={"http_url__contains":"geheim"}"#,
        r#"method1=objects.filter&arg1={"vars__contains":"a"}"#,
        r#"method1=objects.all&arg1={}&fields=["http_url"]"#,
        r#"method1=objects.all&arg1={}&method2=order_by&arg2=["http_url"]"#,
    ] {
        assert!(h.error("Nas", body).await.contains("no field"), "{body}");
    }
    let users = db.store.sql("select count(*) from users", false).await;
    assert_eq!(users.unwrap().rows[0][0].as_deref(), Some("4"));
}

async fn pages_of_models_and_of_rows(kind: Kind) {
    let (_db, h) = house(kind).await;
    let index = h.with("viewer", "GET", "/rest_api/v2/", "").await.json();
    let names: Vec<&str> = index["result"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["model"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            COMPACT,
            "EventsStack",
            "EventsDead",
            "EventsDone",
            "Nas",
            "Users",
            "Abonents",
            "Usluga"
        ]
    );
    let page = h.with("viewer", "GET", "/rest_api/v2/Users/", "").await;
    let page = page.json()["result"].take();
    assert_eq!(page["fields"]["login"], "text");
    assert_eq!(page["fields"]["ceil_in"], "integer");
    assert_eq!(page["relations"]["abonent"], "Abonents");
    assert_eq!(page["belongs_to"], "your billing");
    let methods = page["methods"].to_string();
    assert!(methods.contains("objects.filter") && !methods.contains("create"));
    let page = h.with("viewer", "GET", "/rest_api/v2/Nas", "").await.text;
    assert!(
        !page.contains("http_url") && !page.contains("vars"),
        "{page}"
    );
    let request = Request::get("/rest_api/v2/Users/")
        .body(Body::empty())
        .unwrap();
    assert_eq!(h.send(request).await.status, 401);

    let body = "method1=objects.all&arg1={}&limit=2&offset=1";
    let answer = h.call("Users", body).await.json();
    let pks: Vec<&Value> = answer["result"]
        .as_array()
        .unwrap()
        .iter()
        .map(|o| &o["pk"])
        .collect();
    assert_eq!(pks, [2, 3]);
    assert_eq!(answer["next_offset"], 3);
    let last = h
        .call("Users", "method1=objects.all&limit=2&offset=2")
        .await
        .json();
    assert!(last.get("next_offset").is_none(), "{last}");
    let inside = r#"method1=objects.filter&arg1={"limit":"1","offset":3}"#;
    assert_eq!(h.pks("Users", inside).await, [4]);
}

async fn what_is_malformed_changes_nothing(kind: Kind) {
    let (db, h) = house(kind).await;
    for (model, body, text) in [
        (COMPACT, "", "method1 is missing"),
        (
            COMPACT,
            "method1=set&arg1={}",
            "a chain begins with objects.",
        ),
        (
            COMPACT,
            r#"method1=objects.filter&arg1={"user_id":"#,
            "arg1 is not JSON",
        ),
        (
            COMPACT,
            r#"method1=objects.filter&arg1={"user_id__like":1}"#,
            "after user_id may follow exact, in",
        ),
        (
            COMPACT,
            r#"method1=objects.filter&arg1={"idempotency_key":"a"}"#,
            "no field idempotency_key",
        ),
        (
            COMPACT,
            r#"method1=objects.filter&arg1={"user_id":"1 or 1"}"#,
            "expected a whole number",
        ),
        (COMPACT, r#"method1=objects.delete&arg1={}"#, "every event"),
        (
            COMPACT,
            r#"method1=objects.all&arg1={}&method2=delete"#,
            "every event",
        ),
        (
            COMPACT,
            r#"method1=objects.all&arg1={}&fields=["user__pasport"]"#,
            "no field pasport",
        ),
        (
            COMPACT,
            "method1=objects.all&arg1={}&limit=0",
            "limit is outside",
        ),
        (
            COMPACT,
            "method1=objects.all&arg1={}&limit=x",
            "limit is not JSON",
        ),
        (
            COMPACT,
            "method1=objects.all&arg1={}&offset=99999999",
            "offset is above",
        ),
        (
            COMPACT,
            "method1=objects.count&arg1={}&limit=5",
            "are for lists",
        ),
        (
            COMPACT,
            r#"method1=objects.get&arg1={"user_id":4}&method2=set&arg2={"cmd":"user_del"}"#,
            "without save",
        ),
        (
            COMPACT,
            r#"method1=objects.get&arg1={"user_id":4}&method2=set&arg2={"cmd":"user_del"}&method3=save&arg3={"x":1}"#,
            "takes no argument",
        ),
        (
            COMPACT,
            r#"method1=objects.get&arg1={"user_id":4}&method2=set&arg2={"speed":1}&method3=save"#,
            "speed is not a field",
        ),
        (
            "Users",
            r#"method1=objects.filter&arg1={"login__in":"x"}"#,
            "is not a list",
        ),
        (
            "EventsDone",
            r#"method1=objects.filter&arg1={"finished_at__gt":"yesterday"}"#,
            "YYYY-MM-DD",
        ),
        ("EventsDead", "method1=objects.get&arg1={}", "no object"),
    ] {
        let said = h.error(model, body).await;
        assert!(said.contains(text), "{body}: {said}");
    }
    let kept = h
        .result(COMPACT, r#"method1=objects.get&arg1={"user_id":4}"#)
        .await;
    assert_eq!(kept["fields"]["cmd"], "user_accept");
    let audits = db.store.sql("select count(*) from audit", false).await;
    assert_eq!(audits.unwrap().rows[0][0].as_deref(), Some("0"));
}
