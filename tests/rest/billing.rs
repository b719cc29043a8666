//! The classic models where they touch a billing: services, dead events with their relations, and
//! views in place of all of its tables.

use serde_json::{Value, json};

use crate::lab::db::{Db, Kind};
use crate::lab::on_each_store;
use crate::models::{house, house_of};

on_each_store!(
    dead_events_and_services_are_read,
    views_stand_in_for_every_table_of_the_billing,
);

async fn dead_events_and_services_are_read(kind: Kind) {
    let (db, h) = house(kind).await;
    db.sql(
        "insert into usluga (id, name, policy, lists) values
           (1, 'Интернет', 'gold', '[\"social\"]'), (2, 'IPTV', null, null);
         insert into events_dead (id, event_type, user_id, abonent_id, nas_id, usluga_id, class,
             event_date, died_at, reason, last_code, try_count, params, retried_as) values
           (200, 'usluga_add', 1, 71, 5, 1, 4, '2026-01-01 00:00:00', '2026-01-01 00:01:00',
             'refused: no such list', 3, 2, '{\"login\": \"ivan\"}', null),
           (201, 'user_add', 3, 72, 6, null, 1, '2026-01-02 00:00:00', '2026-01-02 00:00:00',
             'no scheme', null, 0, null, 300)",
    )
    .await;
    let dead = "EventsDead";
    assert_eq!(h.result(dead, "method1=objects.count").await, 2);
    assert_eq!(h.pks(dead, "method1=objects.all").await, [201, 200]);
    for (lookup, wanted) in [
        (r#"{"reason__startswith":"refused"}"#, &[200][..]),
        (r#"{"error__contains":"scheme"}"#, &[201]),
        (r#"{"retried_as__isnull":true}"#, &[200]),
        (r#"{"last_code":"3","state":"dead"}"#, &[200]),
        (r#"{"died_at__gte":"2026-01-02"}"#, &[201]),
        (r#"{"usluga__name":"Интернет"}"#, &[200]),
        (r#"{"usluga__policy__isnull":false,"nas":5}"#, &[200]),
        (r#"{"usluga":2}"#, &[]),
    ] {
        let body = format!("method1=objects.filter&arg1={lookup}");
        assert_eq!(h.pks(dead, &body).await, wanted, "{lookup}");
    }
    let body = r#"method1=objects.get&arg1={"id":200}&fields=["cmd","try_count","params","usluga__name","user__login"]"#;
    let fields = h.result(dead, body).await["fields"].take();
    assert_eq!(
        fields,
        json!({"cmd": "usluga_add", "try_count": 2, "params": {"login": "ivan"},
            "usluga": {"pk": 1, "model": "Usluga", "fields": {"name": "Интернет"}},
            "user": {"pk": 1, "model": "Users", "fields": {"login": "ivan"}}})
    );
    let body = r#"method1=objects.get&arg1={"id":201}&fields=["usluga","retried_as"]"#;
    let fields = h.result(dead, body).await["fields"].take();
    assert_eq!(fields, json!({"usluga": null, "retried_as": 300}));

    let all = r#"method1=objects.all&arg1={}&method2=order_by&arg2="-name""#;
    assert_eq!(h.pks("Usluga", all).await, [1, 2]);
    let one = r#"method1=objects.get&arg1={"name__startswith":"Интер"}"#;
    let fields = h.result("Usluga", one).await["fields"].take();
    assert_eq!(
        fields,
        json!({"id": 1, "name": "Интернет", "policy": "gold", "lists": ["social"]})
    );
    let none = r#"method1=objects.filter&arg1={"policy__isnull":true}&fields=["name"]"#;
    let rest = h.result("Usluga", none).await;
    assert_eq!(
        rest,
        json!([{"pk": 2, "model": "Usluga", "fields": {"name": "IPTV"}}])
    );
}

/// The billing's own tables have other names; what we read are views of them, with columns that it
/// reckons.
const VIEWS: &str = "
    alter table users rename to subscribers;
    alter table abonents rename to contracts;
    alter table usluga rename to services;
    alter table nas rename to devices;
    create view users as select id, abonent_id, nas_id, 'L-' || login as login, ip, accept, redirect,
      deleted, rate_in, rate_out, ceil_in, ceil_out from subscribers where deleted = 0;
    create view abonents as select id, upper(name) as name from contracts;
    create view usluga as select id, name, policy from services;
    create view nas as select id, name, ip, mode, forks, oss_path, script_name, http_url, vars from devices";

async fn views_stand_in_for_every_table_of_the_billing(kind: Kind) {
    let first = Db::new(kind).await;
    first.sql(VIEWS).await;
    // The shape of the billing is read at the start.
    let db = Db::at(first.url.clone(), kind).await;
    assert_eq!(
        db.store.check_billing().await.unwrap(),
        Vec::<String>::new()
    );
    db.sql(
        "insert into devices (id, name, ip, http_url) values (5, 'bras5', '10.0.0.5', 'https://u:geheim@x/');
         insert into contracts (id, name) values (71, 'ann');
         insert into services (id, name, policy) values (9, 'IPTV', 'gold');
         insert into subscribers (id, abonent_id, nas_id, login, ip, accept, ceil_in, deleted) values
           (1, 71, 5, 'ann', '10.1.0.1', 1, 1000, 0), (2, 71, 5, 'ann2', '10.1.0.2', 0, null, 0),
           (3, 71, 5, 'gone', '10.1.0.3', 1, 1000, 1);
         insert into events_stack_compact (cmd, user_id, usluga_id) values ('usluga_add', 1, 9)",
    )
    .await;
    db.store.expand(10, &[]).await.unwrap();
    let h = house_of(&db).await;
    assert_eq!(h.pks("Users", "method1=objects.all").await, [1, 2]);
    assert_eq!(h.pks("Nas", "method1=objects.all").await, [5]);
    assert_eq!(h.result("Abonents", "method1=objects.count").await, 1);
    for (lookup, wanted) in [
        (r#"{"id__in":["1",3]}"#, &[1][..]),
        (r#"{"login":"L-ann2"}"#, &[2]),
        (r#"{"login__startswith":"L-"}"#, &[1, 2]),
        (r#"{"ceil_in__gt":"999"}"#, &[1]),
        (r#"{"ceil_in__isnull":true}"#, &[2]),
        (r#"{"accept":true}"#, &[1]),
        (
            r#"{"abonent__name":"ANN","nas__name__contains":"ras"}"#,
            &[1, 2],
        ),
    ] {
        let body = format!("method1=objects.filter&arg1={lookup}");
        assert_eq!(h.pks("Users", &body).await, wanted, "{lookup}");
    }
    let ordered = r#"method1=objects.all&arg1={}&method2=order_by&arg2=["-login"]"#;
    assert_eq!(h.pks("Users", ordered).await, [2, 1]);
    // What the billing has is what an event of ours leads to.
    let event = r#"method1=objects.get&arg1={"user__login":"L-ann"}&fields=["cmd","usluga__name","user__abonent__name"]"#;
    let fields = h.result("EventsStack", event).await["fields"].take();
    assert_eq!(fields["usluga"]["fields"], json!({"name": "IPTV"}));
    assert_eq!(
        fields["user"]["fields"]["abonent"]["fields"],
        json!({"name": "ANN"})
    );
    let users = r#"method1=objects.get&arg1={"id":71}&fields=["users__login"]"#;
    let users = h.result("Abonents", users).await["fields"]["users"].take();
    let logins: Vec<&Value> = users
        .as_array()
        .unwrap()
        .iter()
        .map(|user| &user["fields"]["login"])
        .collect();
    assert_eq!(logins, ["L-ann", "L-ann2"]);
    for (model, body) in [
        ("Users", r#"method1=objects.create&arg1={"id":9}"#),
        (
            "Nas",
            r#"method1=objects.filter&arg1={"id":5}&method2=delete"#,
        ),
        (
            "Usluga",
            r#"method1=objects.get&arg1={"id":9}&method2=set&arg2={"name":"x"}&method3=save"#,
        ),
    ] {
        let said = h.error(model, body).await;
        assert!(
            said.contains("this table belongs to your billing"),
            "{model}: {said}"
        );
    }
    let whole = h.result("Nas", "method1=objects.all").await.to_string();
    assert!(!whole.contains("geheim"), "{whole}");
}
