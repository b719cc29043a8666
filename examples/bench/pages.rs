//! Lists, pages, look-ups and verbs beside a million done events: each is answered within a
//! second, or refused by the bound of look-ups within it.

use std::process::Command;
use std::time::Instant;

use nas_event_daemon::clock;
use tokio::net::TcpStream;

use crate::daemon::{Bench, Kind, numbers};
use crate::doors::{call, pause, token};
use crate::parts::kinds;

/// What an answer may take, ms.
const MAX_MS: f64 = 1_000.0;
/// Seconds between the first done event and now.
const AGO_S: i64 = 1_300_000;
/// How the bound of look-ups calls itself, and how a list says that there was no time for all of it.
const ENDED: [&str; 3] = [
    "look-up took longer than",
    "were not looked at",
    "\"time_is_up\":true",
];

/// What the bound may end: to hold each error against a regular expression.
const MAY_BE_REFUSED: [&str; 1] = ["event list --state done --error ^nothing"];

/// What one call gave: how long the slowest of three took, ms, and whether the bound ended it.
struct Took {
    ms: f64,
    refused: bool,
}

/// Lists and pages beside 1,000,000 done, 200,000 dead and 50,000 ready events; fails above 1 s, and
/// where anything else than [`MAY_BE_REFUSED`] is refused.
pub async fn pages() {
    println!(
        "### Lists and pages\n\nBeside 1,000,000 done, 200,000 dead and 50,000 ready events of 50,000 accounts on 40 NASes (paused); the slowest of three calls each, ms. *refused*: ended by the bound of look-ups, with an error that says so, or with what was found and where to go on.\n"
    );
    println!("| page, look-up or verb | SQLite | PostgreSQL |\n|---|---|---|");
    let mut table: Vec<(String, Vec<String>)> = Vec::new();
    let mut worst = (0.0_f64, String::new());
    for kind in kinds() {
        let mut bench = Bench::new(kind, "Record", 40, 10, 50_000).await;
        fill(&mut bench, kind).await;
        pause(&mut bench).await;
        token(&bench).await;
        keep_history(&bench);
        long_log(&bench);
        let daemon = bench.start();
        bench.up().await;
        let mut all = Vec::new();
        for path in PAGES {
            all.push(((*path).to_owned(), page(&bench, &dated(path)).await));
        }
        for (model, chain) in LOOK_UPS {
            let path = format!("/rest_api/v2/{model}/ {chain}");
            let name = chain.replace("method1=", "").replace("&arg1=", " ");
            let name = name.replace("&method2=", ", ").replace("&arg2=", " ");
            all.push((format!("{model} {name}"), page(&bench, &dated(&path)).await));
        }
        for words in VERBS {
            all.push(((*words).to_owned(), verb(&bench, &dated(words))));
        }
        for (name, took) in all {
            if took.ms > worst.0 {
                worst = (took.ms, format!("{name} on {}", kind.name()));
            }
            assert!(
                !took.refused || MAY_BE_REFUSED.contains(&name.as_str()),
                "{name} was refused on {}",
                kind.name()
            );
            let refused = if took.refused { " *refused*" } else { "" };
            let cell = format!("{:.0}{refused}", took.ms);
            match table.iter_mut().find(|(known, _)| *known == name) {
                Some((_, cells)) => cells.push(cell),
                None => table.push((name, vec![cell])),
            }
        }
        daemon.stop();
    }
    for (name, cells) in table {
        println!("| `{name}` | {} |", cells.join(" | "));
    }
    println!();
    assert!(worst.0 < MAX_MS, "{:.0} ms: {}", worst.0, worst.1);
}

/// The done events are as far apart as in a week of a large network, and all are kept.
fn keep_history(bench: &Bench) {
    let path = bench.dir.path().join("c.toml");
    let mut text = std::fs::read_to_string(&path).unwrap();
    text.push_str("[history]\nkeep = \"90d\"\n");
    std::fs::write(&path, text).unwrap();
}

/// A log of one account that is as long as some become.
fn long_log(bench: &Bench) {
    let dir = bench.dir.path().join("log/abonents/777");
    std::fs::create_dir_all(&dir).unwrap();
    let lines: String = (0..100_000)
        .map(|n| format!("2026-11-30 12:00:00 bench nas_event_daemon[7]: event={n} cmd=user_rate_set nasid=18 router answered !done\n"))
        .collect();
    std::fs::write(dir.join("event_777.log"), lines).unwrap();
}

/// `@9` becomes the day nine days ago.
fn dated(text: &str) -> String {
    let mut text = text.to_owned();
    for days in [8, 9] {
        let day = clock::utc_text(clock::wall_ms() - days * 86_400_000);
        text = text.replace(&format!("@{days}"), &day[..10]);
    }
    text
}

async fn page(bench: &Bench, path: &str) -> Took {
    let mut all = Took {
        ms: 0.0,
        refused: false,
    };
    for _ in 0..3 {
        let mut stream = TcpStream::connect(("127.0.0.1", bench.port)).await.unwrap();
        let began = Instant::now();
        let (method, path, body) = match path.split_once(' ') {
            Some((path, body)) => ("POST", path, body),
            None => ("GET", path, ""),
        };
        let answer = call(&mut stream, method, path, body).await;
        all.ms = all.ms.max(began.elapsed().as_secs_f64() * 1e3);
        let refused = ENDED.iter().any(|text| answer.contains(text));
        assert!(
            answer.starts_with("HTTP/1.1 200") || refused,
            "{path}: {answer}"
        );
        all.refused |= refused;
    }
    all
}

/// A verb as people type it: a process of its own, its start and its end included.
fn verb(bench: &Bench, words: &str) -> Took {
    let bin = std::env::var("NED_BENCH_BIN").expect("NED_BENCH_BIN");
    let mut all = Took {
        ms: 0.0,
        refused: false,
    };
    for _ in 0..3 {
        let began = Instant::now();
        let output = Command::new(&bin)
            .arg("--config")
            .arg(bench.dir.path().join("c.toml"))
            .args(words.split(' '))
            .output()
            .unwrap();
        all.ms = all.ms.max(began.elapsed().as_secs_f64() * 1e3);
        let said = String::from_utf8_lossy(&output.stderr);
        let refused = ENDED.iter().any(|text| said.contains(text));
        // These say by their code that something is wrong, and dead events are.
        let judges = ["check", "doctor"].contains(&words);
        let well = output.status.success() || judges || refused;
        assert!(well, "{words}: {:?} {said}", output.status);
        all.refused |= refused;
    }
    all
}

const PAGES: &[&str] = &[
    "/api/v1/status",
    "/metrics",
    "/api/v1/events",
    "/api/v1/events?state=all",
    "/api/v1/events?state=done",
    "/api/v1/events?state=done&before=500000",
    "/api/v1/events?state=done&nas=7",
    "/api/v1/events?state=done&nas=99",
    "/api/v1/events?state=done&cmd=user_del",
    "/api/v1/events?state=done&nas=99&cmd=user_del&before=900000",
    "/api/v1/events?state=all&cmd=user_del",
    "/api/v1/events?state=all&user=777",
    "/api/v1/events?state=all&batch=none",
    "/api/v1/events?state=dead",
    "/api/v1/events?state=dead&nas=7&limit=1000",
    "/api/v1/events?state=dead&cmd=user_del",
    "/api/v1/events?state=dead&error=nothing",
    "/api/v1/events?state=all&error=nothing",
    "/api/v1/events?state=all&abonent=777",
    "/api/v1/events?state=held",
    "/api/v1/events/500",
    "/api/v1/batches/b3",
    "/api/v1/accounts/777",
    "/api/v1/accounts/777/history",
    "/api/v1/accounts/777/history?from=@9&to=@8",
    "/api/v1/nas",
    "/api/v1/nas/7",
    "/api/v1/audit",
    "/api/v1/events/retry {\"state\":\"dead\",\"nas\":7,\"dry_run\":true}",
    "/api/v1/events/retry {\"state\":\"dead\",\"cmd\":\"user_del\",\"dry_run\":true}",
    "/rest_api/v2/EventsDone/ method1=objects.filter&arg1={\"user_id\":777}",
    "/rest_api/v2/EventsDone/ method1=objects.count&arg1={}",
    "/rest_api/v2/EventsDead/ method1=objects.filter&arg1={\"nas_id\":7}&limit=100",
    "/rest_api/v2/EventsStack/ method1=objects.all&arg1={}&limit=100",
];

/// What no index helps, or only half.
const LOOK_UPS: &[(&str, &str)] = &[
    (
        "EventsDone",
        "method1=objects.filter&arg1={\"answer__contains\":\"no such thing\"}",
    ),
    (
        "EventsDone",
        "method1=objects.filter&arg1={\"error__startswith\":\"no such thing\"}",
    ),
    (
        "EventsDone",
        "method1=objects.filter&arg1={\"user__login\":\"user777\"}",
    ),
    (
        "EventsDone",
        "method1=objects.filter&arg1={\"user__login__contains\":\"r77\"}",
    ),
    (
        "EventsDone",
        "method1=objects.filter&arg1={\"user__abonent__name__startswith\":\"Nobody\"}",
    ),
    (
        "EventsDone",
        "method1=objects.filter&arg1={\"nas__name\":\"nas7\"}&limit=1000",
    ),
    (
        "EventsDone",
        "method1=objects.exclude&arg1={\"user_id\":777}",
    ),
    (
        "EventsDone",
        "method1=objects.exclude&arg1={\"answer__contains\":\"o\"}",
    ),
    (
        "EventsDone",
        "method1=objects.all&arg1={}&method2=order_by&arg2=[\"finished_at\"]&limit=100",
    ),
    (
        "EventsDone",
        "method1=objects.all&arg1={}&method2=order_by&arg2=[\"-answer\",\"cmd\"]&limit=1000",
    ),
    (
        "EventsDone",
        "method1=objects.all&arg1={}&limit=1000&offset=900000",
    ),
    (
        "EventsDone",
        "method1=objects.all&arg1={}&method2=order_by&arg2=[\"user_id\"]&limit=1000&offset=900000",
    ),
    (
        "EventsDone",
        "method1=objects.filter&arg1={\"finished_at__range\":[\"@9\",\"@8\"]}",
    ),
    (
        "EventsDone",
        "method1=objects.filter&arg1={\"event_date__gte\":\"2027-01-01\"}",
    ),
    (
        "EventsDone",
        "method1=objects.count&arg1={\"answer__contains\":\"no such thing\"}",
    ),
    (
        "EventsDone",
        "method1=objects.count&arg1={\"ended_at__gte\":\"@9\",\"code\":0,\"nas_id\":7}",
    ),
    (
        "EventsDone",
        "method1=objects.count&arg1={\"user__login__startswith\":\"user7\"}",
    ),
    ("EventsDead", "method1=objects.count&arg1={}"),
    (
        "EventsDead",
        "method1=objects.filter&arg1={\"error__contains\":\"no such thing\"}",
    ),
    (
        "EventsDead",
        "method1=objects.filter&arg1={\"params__contains\":\"no such thing\"}",
    ),
    (
        "EventsDead",
        "method1=objects.filter&arg1={\"user__login\":\"user777\"}",
    ),
    (
        "EventsDead",
        "method1=objects.all&arg1={}&method2=order_by&arg2=[\"died_at\"]&limit=1000",
    ),
    (
        "EventsDead",
        "method1=objects.all&arg1={}&limit=1000&offset=190000",
    ),
    (
        "EventsStack",
        "method1=objects.filter&arg1={\"params__contains\":\"no such thing\"}",
    ),
    (
        "EventsStack",
        "method1=objects.filter&arg1={\"user__login\":\"user777\"}",
    ),
    (
        "EventsStack",
        "method1=objects.exclude&arg1={\"class\":3}&method2=order_by&arg2=[\"event_date\"]",
    ),
    (
        "Users",
        "method1=objects.filter&arg1={\"login__contains\":\"nobody\"}",
    ),
    (
        "Users",
        "method1=objects.all&arg1={}&method2=order_by&arg2=[\"-login\"]&limit=1000&offset=40000",
    ),
];

const VERBS: &[&str] = &[
    "status",
    "check",
    "event list",
    "event list --state all --limit 1000",
    "event list --state done --user 777",
    "event list --state done --nas 7",
    "event list --state done --cmd user_del",
    "event list --state dead --error nothing",
    "event list --state done --error nothing",
    "event list --state done --error ^nothing",
    "event list --state done --abonent 777 --limit 5",
    "event list --state done --since 2099-01-01",
    "event show 500",
    "account show 777",
    "account history 777",
    "account history 777 --from @9 --to @8",
    "account log 777",
    "why 777",
    "stack count",
    "nas list",
    "audit",
    "doctor",
];

async fn fill(bench: &mut Bench, kind: Kind) {
    // A second apart, as the daemon writes times.
    let began = clock::wall_ms() / 1_000 - AGO_S;
    let at = |i: &str| match kind {
        Kind::Sqlite => format!("strftime('%Y-%m-%d %H:%M:%f', {began} + {i}, 'unixepoch')"),
        Kind::Postgres => format!("to_timestamp({began} + {i})"),
    };
    // In no order that the rows are in.
    let shuffled = "(cast(i as bigint) * 7919 % 1000003)";
    let done = numbers(kind, 1_000_000);
    let (date, end) = (at("i"), at("i + 1"));
    bench.sql.run(&format!(
        "insert into events_done (id, event_type, user_id, abonent_id, nas_id, event_date, started_at, finished_at, result, batch_id, answer, ms, attempts) {done}
         select i, 'user_rate_set', 1 + i % 50000, 1 + i % 50000, 1 + i % 40, {date}, {date}, {end}, 'done',
           case when i <= 100000 then 'b3' end, 'router answered !done to sentence ' || {shuffled}, 12, 1 from n"
    )).await;
    let dead = numbers(kind, 200_000);
    let (date, end) = (at("5 * i"), at("5 * i + 60"));
    bench.sql.run(&format!(
        "insert into events_dead (id, event_type, user_id, abonent_id, nas_id, params, event_date, died_at, reason) {dead}
         select 1000000 + i, 'user_rate_set', 1 + i % 50000, 1 + i % 50000, 1 + i % 40,
           '{{\"login\": \"user\", \"ip\": \"10.0.0.1\", \"rate_in\": \"1024\", \"rate_out\": \"1024\"}}', {date}, {end},
           'no such command: ' || {shuffled} from n"
    )).await;
    let ready = numbers(kind, 50_000);
    let date = at("1000000 + i");
    bench.sql.run(&format!(
        "insert into events_stack (id, event_type, user_id, nas_id, params, class, event_date) {ready}
         select 1200000 + i, 'user_rate_set', 1 + i % 50000, 1 + i % 40, '{{\"login\": \"user\"}}', 3, {date} from n"
    )).await;
    bench.sql.run("analyze").await;
}
