//! Devices that misbehave: bounded time and memory, the right scope and class. And one that has
//! a single session: a thousand events wait for it and none is deferred.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nas_event_daemon::attempt::{Failure, FailureClass, Scope};
use nas_event_daemon::clock;
use nas_event_daemon::driver::telnet::Telnet;
use nas_event_daemon::driver::waits::Waits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::lab::daemon::{Lab, wait_for};
use crate::lab::db::Kind;
use crate::lab::queue::{Queue, all_done};
use crate::lab::vty::{Device, let_in, line};
use crate::lab::{on_each_store, rss_kib};
use crate::peers::telnet;

on_each_store!(
    a_queue_for_the_only_session_defers_nothing,
    a_queue_of_scripts_for_the_only_session_defers_nothing,
    a_rate_is_kept,
    scripts_ride_on_the_daemons_session,
    a_line_that_may_have_been_carried_out_is_unknown,
    a_refused_login_is_seen_in_the_status,
);

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(700);
/// What a device may make this process grow by, KiB: an answer has 1 MiB at most, and is copied.
const GROWTH_MAX: u64 = 32 * 1024;

async fn flood(stream: &mut TcpStream, chunk: &[u8]) {
    let many = chunk.repeat(1000);
    while stream.write_all(&many).await.is_ok() {}
}

async fn refused(telnet: &Telnet, limit: Duration) -> Failure {
    let leased = tokio::time::timeout(LONG, telnet.lease(&Waits::up_to(LONG), limit)).await;
    let failure = leased.unwrap().err().unwrap();
    assert_eq!(failure.scope, Scope::Nas, "{failure}");
    failure
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_the_prompt_it_is_the_nas_that_failed() {
    for chunk in [
        &b"banner\r\n"[..],
        b"\xff\xfb\x01",
        b"\x00\x1b[\xfe",
        b"xxxxxxxx",
    ] {
        let device = Device::start(move |mut s, _| async move { flood(&mut s, chunk).await }).await;
        let before = rss_kib();
        let failure = refused(&telnet(device.port, "ned", "servicemode"), LONG / 10).await;
        assert_eq!(
            (failure.class, failure.parks),
            (FailureClass::Transport, false),
            "{failure}"
        );
        let grown = rss_kib().saturating_sub(before);
        assert!(grown < GROWTH_MAX, "{grown} KiB more: {failure}");
    }
    // Silence, one byte a moment, a closed door, a banner and a closed door.
    let silent = Device::start(|s, _| async move {
        let _open = s;
        std::future::pending::<()>().await;
    })
    .await;
    let drip = Device::start(|mut s, _| async move {
        while s.write_all(b"L").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let closed = Device::start(|s, _| async move { drop(s) });
    let busy = Device::start(|mut s, _| async move {
        let _ = s.write_all(b"Sorry, all vty lines are in use\r\n").await;
    });
    let never = Device::start(|mut s, _| async move {
        let _ = s.write_all(b"Username: ").await;
        line(&mut s).await;
        std::future::pending::<()>().await;
    });
    for device in [silent, drip.await, closed.await, busy.await, never.await] {
        let failure = refused(&telnet(device.port, "ned", "servicemode"), SHORT).await;
        assert_eq!(
            (failure.class, failure.parks),
            (FailureClass::Transport, false),
            "{failure}"
        );
    }
    let wrong = Device::start(|mut s, _| async move {
        let _ = let_in(&mut s).await;
        let _ = s.write_all(b"\r\n% Login invalid\r\nUsername: ").await;
        std::future::pending::<()>().await;
    });
    let wrong = wrong.await;
    let failure = refused(&telnet(wrong.port, "ned", "servicemode"), LONG).await;
    assert_eq!(
        (failure.class, failure.parks),
        (FailureClass::Refused, true),
        "{failure}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_fails_now_and_then_is_tried_again() {
    let device = Device::start(|mut s, number| async move {
        if number < 2 {
            let _ = s.write_all(b"Too many sessions\r\n").await;
            return;
        }
        let _ = let_in(&mut s).await;
        while line(&mut s).await.is_some() {
            let _ = s.write_all(b"\r\nsw#").await;
        }
    })
    .await;
    let telnet = telnet(device.port, "ned", "servicemode");
    assert!(
        telnet
            .lease(&Waits::up_to(LONG), LONG)
            .await
            .unwrap()
            .is_new
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_line_it_may_have_been_carried_out() {
    for (kind, code) in [
        ("endless", 254),
        ("binary", 254),
        ("close", 254),
        ("never", 143),
        ("drip", 143),
    ] {
        let device = Device::start(move |mut s, _| async move {
            let _ = let_in(&mut s).await;
            // The proof of the prompt.
            line(&mut s).await;
            let _ = s.write_all(b"\r\nsw#").await;
            line(&mut s).await;
            match kind {
                "endless" => flood(&mut s, b"10.0.0.0/8 via 10.0.0.1\r\n").await,
                "binary" => flood(&mut s, b"\x00\xff\xff\x1b[9999C\x1b]\xfe").await,
                "close" => {
                    let _ = s.write_all(b"show x\r\nhalf of an an").await;
                }
                "drip" => {
                    while s.write_all(b"s").await.is_ok() {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
                _ => std::future::pending().await,
            }
        })
        .await;
        let telnet = telnet(device.port, "ned", "servicemode");
        let mut leased = telnet.lease(&Waits::up_to(LONG), LONG).await.unwrap();
        let limit = if code == 143 { SHORT } else { LONG };
        let before = rss_kib();
        let failure = leased.run("show x", &[], limit).await.unwrap_err();
        assert_eq!(
            (failure.scope, failure.class, failure.code),
            (Scope::Event, FailureClass::Unknown, code),
            "{kind}: {failure}"
        );
        let grown = rss_kib().saturating_sub(before);
        assert!(grown < GROWTH_MAX, "{grown} KiB more: {kind}");
        assert!(
            telnet.give_back(leased).is_some(),
            "{kind}: such a session is not used again"
        );
        assert_eq!(telnet.seen().idle, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_died_while_idle_costs_no_event() {
    let died = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&died);
    let device = Device::start(move |mut s, _| {
        let died = Arc::clone(&count);
        async move {
            let _ = let_in(&mut s).await;
            for _ in 0..2 {
                line(&mut s).await;
                let _ = s.write_all(b"\r\nsw#").await;
            }
            drop(s);
            died.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    let telnet = telnet(device.port, "ned", "servicemode");
    for n in 1..=3 {
        let mut leased = telnet.lease(&Waits::up_to(LONG), LONG).await.unwrap();
        assert!(leased.is_new);
        leased.run("show x", &[], LONG).await.unwrap();
        telnet.give_back(leased);
        so_many(&died, n).await;
    }
}

async fn so_many(count: &AtomicUsize, wanted: usize) {
    let come = wait_for(async || (count.load(Ordering::SeqCst) == wanted).then_some(()));
    assert!(come.await.is_some(), "{count:?}, not {wanted}");
}

/// Connections of a device that closes one direction only.
#[derive(Default)]
struct Halves {
    /// All of them.
    came: AtomicUsize,
    /// Those on which it says no more.
    shut: AtomicUsize,
    /// Those on which the other side has gone, too.
    left: AtomicUsize,
}

impl Halves {
    /// Says `words` and no more, and goes on reading for as long as there is anybody.
    async fn close_half(&self, mut stream: TcpStream, words: &[u8]) {
        self.came.fetch_add(1, Ordering::SeqCst);
        let _ = stream.write_all(words).await;
        let _ = stream.shutdown().await;
        self.shut.fetch_add(1, Ordering::SeqCst);
        let _ = stream.read_to_end(&mut Vec::new()).await;
        self.left.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_closed_line_before_the_prompt_is_a_failure_of_the_nas() {
    for words in [
        &b"Welcome\r\n"[..],
        b"Welcome\r\nUsername: ",
        b"Welcome\r\nsw#",
    ] {
        let halves = Arc::new(Halves::default());
        let own = Arc::clone(&halves);
        let device = Device::start(move |s, _| {
            let halves = Arc::clone(&own);
            async move { halves.close_half(s, words).await }
        })
        .await;
        let began = clock::tick_ms();
        let failure = refused(&telnet(device.port, "ned", "servicemode"), SHORT).await;
        assert_eq!(
            (failure.class, failure.parks),
            (FailureClass::Transport, false),
            "{failure}"
        );
        assert!(failure.text.contains("closed by the device"), "{failure}");
        let took = clock::tick_ms() - began;
        assert!(took < 10_000, "{took} ms: {failure}");
        // Nothing of ours stays open.
        so_many(&halves.left, halves.came.load(Ordering::SeqCst)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_closed_line_keeps_a_whole_answer_and_leaves_half_of_one_unknown() {
    for (words, whole) in [
        (&b"show x\r\nwell\r\nsw#"[..], true),
        (b"show x\r\nwell\r\n", false),
        (b"show x\r\nhalf of an an", false),
        (b"show x\r\nhalf\r\n --More-- ", false),
    ] {
        let halves = Arc::new(Halves::default());
        let own = Arc::clone(&halves);
        let device = Device::start(move |mut s, _| {
            let halves = Arc::clone(&own);
            async move {
                let _ = let_in(&mut s).await;
                // The proof of the prompt.
                line(&mut s).await;
                let _ = s.write_all(b"\r\nsw#").await;
                line(&mut s).await;
                halves.close_half(s, words).await;
            }
        })
        .await;
        let telnet = telnet(device.port, "ned", "servicemode");
        let mut leased = telnet.lease(&Waits::up_to(LONG), LONG).await.unwrap();
        let began = clock::tick_ms();
        let answered = leased.run("show x", &[], LONG).await;
        let took = clock::tick_ms() - began;
        assert!(took < 10_000, "{took} ms: {answered:?}");
        so_many(&halves.shut, 1).await;
        if whole {
            assert_eq!(answered.unwrap().text, "well");
            assert_eq!(telnet.give_back(leased), None);
            // The next attempt does not send a line into it.
            let next = telnet.lease(&Waits::up_to(LONG), LONG).await.unwrap();
            assert!(next.is_new);
            so_many(&halves.left, 1).await;
        } else {
            let failure = answered.unwrap_err();
            assert_eq!(
                (failure.scope, failure.class, failure.code),
                (Scope::Event, FailureClass::Unknown, 254),
                "{failure}"
            );
            assert!(failure.text.contains("closed by the device"), "{failure}");
            assert!(telnet.give_back(leased).is_some(), "{failure}");
            so_many(&halves.left, 1).await;
        }
    }
}

/// Just below what is too much, before the name is asked for and again before the prompt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_banner_of_900_kib_is_read_to_its_end() {
    let device = Device::start(|mut s, _| async move {
        let row = b"Access is for those who may; the others are asked to leave.\r\n";
        let banner = row.repeat(900 * 1024 / row.len());
        let ask = [&banner[..], b"\r\nUsername: ", b"\r\nPassword: ", &banner];
        for words in ask {
            let _ = s.write_all(words).await;
            if words.ends_with(b": ") {
                line(&mut s).await;
            }
        }
        let _ = s.write_all(b"\r\nsw#").await;
        while let Some(text) = line(&mut s).await {
            let answer = format!("{text}\r\nwell\r\nsw#");
            let _ = s.write_all(answer.as_bytes()).await;
        }
    })
    .await;
    let telnet = telnet(device.port, "ned", "servicemode");
    let before = rss_kib();
    let mut leased = telnet.lease(&Waits::up_to(LONG), LONG).await.unwrap();
    assert_eq!(leased.prompt(), "sw#");
    assert_eq!(leased.run("show x", &[], LONG).await.unwrap().text, "well");
    let grown = rss_kib().saturating_sub(before);
    assert!(grown < GROWTH_MAX, "{grown} KiB more");
    assert_eq!(telnet.give_back(leased), None);
    assert_eq!(telnet.seen().logins, 1);
}

/// A vty with one session that takes `ms` for each line, and counts lines and sessions.
async fn slow(ms: u64, peak: Arc<AtomicUsize>) -> Device {
    let open = Arc::new(AtomicUsize::new(0));
    Device::start(move |mut s, _| {
        let (open, peak) = (Arc::clone(&open), Arc::clone(&peak));
        async move {
            let now = open.fetch_add(1, Ordering::SeqCst) + 1;
            peak.fetch_max(now, Ordering::SeqCst);
            let _ = let_in(&mut s).await;
            while let Some(text) = line(&mut s).await {
                if !text.is_empty() {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                }
                let answer = format!("{text}\r\nsw#");
                if s.write_all(answer.as_bytes()).await.is_err() {
                    break;
                }
            }
            open.fetch_sub(1, Ordering::SeqCst);
        }
    })
    .await
}

const SCHEME: &str = "driver = \"telnet\"\n[[on.user_drop]]\nexec = [\"block {{ ip }}\"]\n";

async fn nas_of(lab: &Lab, device: &Device, forks: i64, more: &[(&str, &str)]) {
    lab.native("Vty", SCHEME);
    let mut columns = vec![("telnet_port", device.port.to_string())];
    columns.extend(
        more.iter()
            .map(|(name, value)| (*name, (*value).to_owned())),
    );
    lab.nas(1, "Vty", forks, &columns).await;
    lab.secret(1, "ned", "servicemode").await;
}

/// 100 forks, one session, 10 ms a dialogue, 400 events: the last waits four seconds, far
/// beyond the deadline of one attempt (1 s, or three dialogues), and none is deferred.
async fn a_queue_for_the_only_session_defers_nothing(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let peak = Arc::new(AtomicUsize::new(0));
    let queue = Queue::of(400, 10);
    let ms = u64::try_from(queue.each.as_millis()).unwrap();
    let device = slow(ms, Arc::clone(&peak)).await;
    let limit = (3 * ms).max(1_000).to_string();
    let more = [("max_sessions", "1"), ("timeout_ms", limit.as_str())];
    nas_of(&lab, &device, 100, &more).await;
    all_done(&lab, &queue).await;
    assert_eq!(peak.load(Ordering::SeqCst), 1);
}

/// 40 scripts at once, each of which may take two seconds, and a session that is busy for
/// eight: a script that waits for its turn has its own time left when it comes.
async fn a_queue_of_scripts_for_the_only_session_defers_nothing(kind: Kind) {
    let lab = Lab::new(kind, "script_timeout = \"2s\"").await;
    let queue = Queue::of(40, 200);
    let ms = u64::try_from(queue.each.as_millis()).unwrap();
    let device = slow(ms, Arc::default()).await;
    lab.session(
        "Ridden",
        "user_drop() { send_telnet_cmd --nas 1 \"block $ip\" || exit 254; }\n",
    );
    let columns = [
        ("telnet_port", device.port.to_string()),
        ("max_sessions", "1".to_owned()),
    ];
    lab.nas(1, "Ridden", 100, &columns).await;
    lab.secret(1, "ned", "servicemode").await;
    all_done(&lab, &queue).await;
}

/// 20 commands a second: 41 events take two seconds, and no event suffers.
async fn a_rate_is_kept(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let device = slow(0, Arc::default()).await;
    let more = [
        ("max_sessions", "3"),
        ("max_rate", "20"),
        ("timeout_ms", "1000"),
    ];
    nas_of(&lab, &device, 50, &more).await;
    lab.accounts(1, 10..51).await;
    let _daemon = lab.start().await;
    let events: Vec<String> = (10..51)
        .map(|user| format!("('user_drop', {user})"))
        .collect();
    let began = clock::tick_ms();
    let values = events.join(", ");
    lab.sql(&format!(
        "insert into events_stack_compact (cmd, user_id) values {values}"
    ))
    .await;
    lab.drained().await;
    let took = clock::tick_ms() - began;
    assert!(took >= 1_900, "{took} ms");
    let done = "select count(*) from events_done where result = 'done' and attempts = 1";
    assert_eq!(lab.number(done).await, 41);
    // The log says of each login which attempt paid for it.
    let status = lab.scheduler().await.unwrap();
    let sessions = &status["nases"][0]["sessions"][0];
    assert_eq!(sessions["logins"], lab.opened(1), "{status}");
}

async fn a_line_that_may_have_been_carried_out_is_unknown(kind: Kind) {
    let lab = Lab::new(kind, "retry_base = \"50ms\"").await;
    let device = Device::start(|mut s, number| async move {
        let _ = let_in(&mut s).await;
        line(&mut s).await;
        let _ = s.write_all(b"\r\nsw#").await;
        while let Some(text) = line(&mut s).await {
            if number == 0 {
                return;
            }
            let _ = s.write_all(format!("{text}\r\nsw#").as_bytes()).await;
        }
    })
    .await;
    nas_of(&lab, &device, 1, &[]).await;
    lab.accounts(1, [10]).await;
    let _daemon = lab.start().await;
    let id = lab.event(10, "user_drop").await;
    assert_eq!(lab.ended(id).await, ("done".to_owned(), "done".to_owned()));
    let log = lab.account_log(10).join("\n");
    assert!(log.contains("may have been carried out"), "{log}");
    let tries = format!("select attempts from events_done where id = {id}");
    assert_eq!(lab.number(&tries).await, 2, "{log}");
}

async fn a_refused_login_is_seen_in_the_status(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let wrong = Device::start(|mut s, _| async move {
        let _ = let_in(&mut s).await;
        let _ = s.write_all(b"\r\n% Login invalid\r\nUsername: ").await;
        std::future::pending::<()>().await;
    })
    .await;
    nas_of(&lab, &wrong, 1, &[]).await;
    lab.accounts(1, [10]).await;
    let _daemon = lab.start().await;
    lab.event(10, "user_drop").await;
    let told = lab
        .until("the refusal is told", async || {
            let status = lab.scheduler().await?;
            let sessions = &status["nases"][0]["sessions"][0];
            assert_eq!(sessions["logins"].as_u64().unwrap_or(0), 0, "{status}");
            sessions["last_error"].as_str().map(str::to_owned)
        })
        .await;
    assert!(told.contains("Login invalid"), "{told}");
    assert!(!told.contains("servicemode"), "{told}");
    assert_eq!(lab.opened(1), 0);
}

/// A session script: each attempt sends two lines through the daemon's one session.
async fn scripts_ride_on_the_daemons_session(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let device = slow(0, Arc::default()).await;
    lab.session(
        "Ridden",
        "user_drop() { send_telnet_cmd --nas 1 \"block $ip\" ';' 'show it' || exit 254; }\n\
         user_accept() { send_telnet_cmd --nas 2 'open it'; }\n",
    );
    let columns = [
        ("telnet_port", device.port.to_string()),
        ("max_sessions", "1".to_owned()),
    ];
    lab.nas(1, "Ridden", 5, &columns).await;
    lab.secret(1, "ned", "servicemode").await;
    lab.accounts(1, 10..20).await;
    let _daemon = lab.start().await;
    let done = ("done".to_owned(), "done".to_owned());
    for user in 10..20 {
        let id = lab.event(user, "user_drop").await;
        assert_eq!(lab.ended(id).await, done, "{:?}", lab.account_log(user));
    }
    let log = lab.account_log(10).join("\n");
    let sent = "> send_telnet_cmd --nas 1 'block 10.0.0.10' ';' 'show it'";
    assert!(log.contains(sent), "{log}");
    let status = lab.scheduler().await.unwrap();
    assert_eq!(status["nases"][0]["sessions"][0]["logins"], 1, "{status}");
    // Another NAS than that of the attempt is not reached this way.
    let id = lab.event(10, "user_accept").await;
    assert_eq!(lab.ended(id).await.0, "dead");
}
