//! Canaries wherever a secret can stand: after a run with every kind of failure, at the level
//! `debug`, none is found in a log, an argument list, an environment of somebody else, a table,
//! an answer, a metric or an error.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::lab::sim::{LOGIN, Router};
use nas_event_daemon::sim::mikrotik::Faults;
use nas_event_daemon::store::query::Model;

on_each_store!(no_secret_is_told, what_is_planted_is_told);

/// Columns of `nas_secret` that are secret.
const COLUMNS: [&str; 4] = ["password", "enable_password", "coa_secret", "ssh_key"];

pub(crate) fn canary(nas: i64, column: &str) -> String {
    format!("canary-{nas}-{column}-q7Zp")
}

/// What every canary has, and nothing else.
pub(crate) const MARK: &str = "-q7Zp";

fn texts_below(dir: &std::path::Path, found: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            texts_below(&path, found);
        } else if let Ok(bytes) = std::fs::read(&path) {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            found.insert(path.display().to_string(), text);
        }
    }
}

async fn no_secret_is_told(kind: Kind) {
    let lab = Lab::new(
        kind,
        "retry_base = \"50ms\"\nmax_tries = 2\nscript_timeout = \"1s\"",
    )
    .await;
    lab.debug();
    let seen = lab.path("seen");
    std::fs::create_dir(&seen).unwrap();
    // A scheme that says all it knows, and fails in every way.
    let tell = format!(
        "env > {}/env.$nas_id.$event_id; env; set; echo \"$telnet_password\" >&2",
        seen.display()
    );
    lab.session(
        "Loud",
        &format!(
            "user_add() {{ {tell}; }}
             user_redirect() {{ {tell}; exit 3; }}
             user_drop() {{ {tell}; exit 254; }}
             user_edit() {{ {tell}; sleep 100; }}
             user_info() {{ {tell}; }}"
        ),
    );
    // One router that refuses the password, one that is not there, two script NASes.
    let router = Router::start(lab.root(), "router", Faults::default());
    let port = router.sim.addr().port().to_string();
    lab.nas(1, "Mikrotik-Simple", 2, &[("api_port", port)])
        .await;
    lab.nas(2, "Mikrotik-Simple", 2, &[("api_port", "1".to_owned())])
        .await;
    lab.nas(3, "Loud", 2, &[]).await;
    lab.nas(4, "Loud", 2, &[]).await;
    for nas in 1..=4 {
        let values: Vec<String> = COLUMNS
            .iter()
            .map(|c| format!("'{}'", canary(nas, c)))
            .collect();
        lab.sql(&format!(
            "insert into nas_secret (nas_id, login, {}) values ({nas}, '{LOGIN}', {})",
            COLUMNS.join(", "),
            values.join(", ")
        ))
        .await;
        lab.accounts(nas, nas * 100..nas * 100 + 5).await;
    }
    let daemon = lab.start().await;
    let mut events = Vec::new();
    for nas in 1..=4 {
        for (n, cmd) in (0..).zip([
            "user_add",
            "user_redirect",
            "user_drop",
            "user_edit",
            "user_info",
        ]) {
            events.push(json!({"cmd": cmd, "user_id": nas * 100 + n}));
        }
    }
    let ids = lab.post(json!({ "events": events })).await;
    // Those of the script NASes end, one way or another; argument lists are looked at meanwhile.
    let mut arguments = String::new();
    for id in &ids[10..] {
        lab.until("a script's event ends", async || {
            arguments.push_str(&argument_lists());
            let ended = format!(
                "select (select count(*) from events_done where id = {id}) + (select count(*) from events_dead where id = {id})"
            );
            (lab.number(&ended).await == 1).then_some(())
        })
        .await;
    }
    lab.said("nasid=1").await;
    lab.until("both routers have failed", async || {
        let tried = |nas| lab.nas_log(nas).iter().any(|l| l.contains("end result="));
        (tried(1) && tried(2)).then_some(())
    })
    .await;

    let told = BTreeMap::from([("argument lists".to_owned(), arguments)]);
    no_place_tells(&lab, &ids, told, &[MARK]).await;

    // Scripts have the credentials of their own NAS, and of no other.
    let mut environments = BTreeMap::new();
    texts_below(&seen, &mut environments);
    assert!(environments.len() >= 10);
    for (path, text) in &environments {
        let nas: i64 = path
            .rsplit("env.")
            .next()
            .unwrap()
            .split('.')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        assert!(
            text.contains(&canary(nas, "password")),
            "{path}: the test proves nothing"
        );
        for other in (1..=4).filter(|n| *n != nas) {
            assert!(
                !text.contains(&format!("canary-{other}-")),
                "{path} has NAS {other}'s"
            );
        }
    }
    daemon.stop().await;
}

/// Looks for `marks` in all that a daemon tells of itself and these events, and in `places`.
pub(crate) async fn no_place_tells(
    lab: &Lab,
    ids: &[i64],
    places: BTreeMap<String, String>,
    marks: &[&str],
) {
    let places = gathered(lab, ids, places).await;
    assert!(places.len() > 20, "{:?}", places.keys());
    for (place, text) in &places {
        assert!(
            !text.is_empty() || place.contains("event_") || place == "stderr",
            "{place} is empty"
        );
    }
    let marks = [marks, &["token-of-the-lab"]].concat();
    let told = told(&places, &marks);
    assert!(told.is_empty(), "{told:#?}");
}

/// `places`, and all that a daemon tells of itself and of these events.
async fn gathered(
    lab: &Lab,
    ids: &[i64],
    mut places: BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    texts_below(&lab.path("log"), &mut places);
    places.insert("stderr".to_owned(), lab.stderr());
    for path in readable(lab, ids).await {
        let text = lab.get(&path).await;
        places.insert(path, text);
    }
    let nases = lab.rows("select id from nas order by id").await;
    let tested = nases.iter().map(async |row| {
        let path = format!("/api/v1/nas/{}/test", row[0]);
        let answer = lab.try_post(&path, &json!({}), None).await.unwrap();
        (format!("POST {path}"), format!("{answer:?}"))
    });
    places.extend(join_all(tested).await);
    for model in Model::ALL.map(Model::name) {
        let path = format!("/rest_api/v2/{model}/");
        let all = json!({"method1": "objects.all", "arg1": {}});
        let answer = lab.try_post(&path, &all, None).await.unwrap();
        places.insert(format!("all of {model}"), format!("{answer:?}"));
        // What there is instead is told, and not what it holds.
        for column in COLUMNS {
            let unknown = json!({"method1": "objects.filter", "arg1": {column: "x"}});
            let (status, answer) = lab.try_post(&path, &unknown, None).await.unwrap();
            assert_eq!(status, 400, "{model} by {column}: {answer}");
            places.insert(format!("{model} by {column}"), answer.to_string());
        }
    }
    for table in [
        "events_stack_compact",
        "events_stack",
        "events_dead",
        "events_done",
        "nas_state",
        "owner",
        "audit",
        "idempotency",
        "guard_order",
    ] {
        let rows = lab.rows(&format!("select * from {table}")).await;
        places.insert(table.to_owned(), format!("{rows:?}"));
    }
    for statement in ["select * from nas_secret", "select * from token"] {
        let refused = lab.db.store.sql(statement, false).await;
        places.insert(statement.to_owned(), format!("{refused:?}"));
    }
    places
}

/// Every path that can be read, by the document of the API, for each event of these, each NAS,
/// account and batch of the lab.
async fn readable(lab: &Lab, ids: &[i64]) -> Vec<String> {
    let of = async |statement: &str| -> Vec<String> {
        let rows = lab.rows(statement).await;
        rows.into_iter().map(|mut row| row.remove(0)).collect()
    };
    let nases = of("select id from nas").await;
    let accounts = of("select id from users").await;
    let batches = "select distinct batch_id from events_done where batch_id is not null";
    let mut batches = of(batches).await;
    batches.push("none".to_owned());
    let events: Vec<String> = ids.iter().map(i64::to_string).collect();
    let models = Model::ALL.map(|m| m.name().to_owned()).to_vec();
    let document: Value = serde_json::from_str(&lab.get("/api/openapi.json").await).unwrap();
    let mut paths = vec!["/api/v1/events?state=all&limit=1000".to_owned()];
    for (path, verbs) in document["paths"].as_object().unwrap() {
        if verbs.get("get").is_none() {
            continue;
        }
        let Some((begin, rest)) = path.split_once('{') else {
            paths.push(path.clone());
            continue;
        };
        let (name, end) = rest.split_once('}').unwrap();
        let values = match (
            name,
            begin.trim_end_matches('/').rsplit('/').next().unwrap(),
        ) {
            ("model", _) => &models,
            ("batch", _) => &batches,
            ("id", "events") => &events,
            ("id", "nas") => &nases,
            ("id", "accounts") => &accounts,
            _ => panic!("{path} is not looked into: what stands for {name}?"),
        };
        paths.extend(values.iter().map(|value| format!("{begin}{value}{end}")));
    }
    paths
}

/// The places that hold one of `marks`, each with what stands before it.
fn told(places: &BTreeMap<String, String>, marks: &[&str]) -> Vec<String> {
    let found = |(place, text): (&String, &String)| {
        let mark = marks.iter().find(|mark| text.contains(**mark))?;
        let at = text.find(mark)?;
        let from = text.floor_char_boundary(at.saturating_sub(200));
        Some(format!(
            "{place} tells a secret: …{}",
            &text[from..at + mark.len()]
        ))
    };
    places.iter().filter_map(found).collect()
}

/// The negative control: one secret in each kind of place, where a careless daemon would put it.
async fn what_is_planted_is_told(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.nas(1, "Record", 1, &[]).await;
    lab.accounts(1, [100]).await;
    let daemon = lab.start().await;
    let id = lab.event(100, "user_redirect").await;
    assert_eq!(lab.ended(id).await.1, "done");
    no_place_tells(&lab, &[id], BTreeMap::new(), &[MARK]).await;
    let secret = canary(1, "password");
    lab.sql(&format!(
        "update events_done set batch_id = '{secret}';
         insert into audit (who, what, detail) values ('x', 'y', '{secret}');
         update users set login = '{secret}';
         update abonents set name = '{secret}';
         update nas set name = '{secret}'"
    ))
    .await;
    let mut logs = BTreeMap::new();
    texts_below(&lab.path("log"), &mut logs);
    // The log of a NAS has its name.
    let of_nas = lab.path(&format!("log/nas_event_daemon/{secret}_127.0.0.1.log"));
    logs.insert(of_nas.display().to_string(), String::new());
    for log in logs.keys() {
        let mut file = std::fs::File::options()
            .append(true)
            .create(true)
            .open(log)
            .unwrap();
        std::io::Write::write_all(&mut file, format!("{secret}\n").as_bytes()).unwrap();
    }
    lab.reload(&daemon).await;
    lab.until("the name is known", async || {
        lab.get("/api/v1/nas").await.contains(&secret).then_some(())
    })
    .await;
    let places = gathered(&lab, &[id], BTreeMap::new()).await;
    let told = told(&places, &[MARK]);
    let told: Vec<&str> = told
        .iter()
        .map(|t| t.split(" tells a secret").next().unwrap())
        .collect();
    for place in [
        "/nas_event_daemon.log",
        "/event_100.log",
        "/api/v1/nas",
        "/api/v1/nas/1",
        "/api/v1/accounts/100",
        "/api/v1/accounts/100/history",
        "/api/v1/audit",
        "/api/v1/logs/daemon",
        "/api/v1/logs/nas/1",
        "/api/v1/logs/accounts/100",
        "/api/v1/events?state=all&limit=1000",
        &format!("/api/v1/batches/{secret}"),
        &format!("/api/v1/events/{id}"),
        "all of Nas",
        "all of Users",
        "all of Abonents",
        "all of EventsDone",
        "events_done",
        "audit",
    ] {
        let found = told.iter().any(|told| match place.starts_with('/') {
            true => told.ends_with(place),
            false => *told == place,
        });
        assert!(found, "{place} is not looked into: {told:#?}");
    }
    daemon.stop().await;
}

/// The argument lists of all processes, as any user sees them.
pub(crate) fn argument_lists() -> String {
    let mut all = String::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let bytes = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        all.push_str(&String::from_utf8_lossy(&bytes).replace('\0', " "));
        all.push('\n');
    }
    all
}
