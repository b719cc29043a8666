//! Canaries wherever a secret can stand: after a run with every kind of failure, at the level
//! `debug`, none is found in a log, an argument list, an environment of somebody else, a table,
//! an answer, a metric or an error.

use std::collections::BTreeMap;

use serde_json::json;

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::lab::sim::{LOGIN, Router};
use nas_event_daemon::sim::mikrotik::Faults;

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
    for path in [
        "/metrics",
        "/readyz",
        "/api/v1/status",
        "/api/v1/nas",
        "/rest_api/v2/",
        "/api/v1/events?state=all&limit=1000",
        "/api/openapi.json",
    ] {
        places.insert(path.to_owned(), lab.get(path).await);
    }
    for id in ids {
        let path = format!("/api/v1/events/{id}");
        let text = lab.get(&path).await;
        places.insert(path, text);
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
         update nas set name = '{secret}'"
    ))
    .await;
    for log in ["nas_event_daemon.log", "nas_event_daemon/planted.log"] {
        let file = lab.path("log").join(log);
        let mut file = std::fs::File::options()
            .append(true)
            .create(true)
            .open(file)
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
    for place in [
        "nas_event_daemon.log",
        "planted.log",
        "/api/v1/nas",
        "/api/v1/events?state=all&limit=1000",
        &format!("/api/v1/events/{id}"),
        "events_done",
        "audit",
    ] {
        let found = told
            .iter()
            .any(|t| t.split(" tells a secret").next().unwrap().ends_with(place));
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
