//! A NAS, or somebody in its place, that answers wrongly: the driver waits for the genuine
//! answer, for a bounded time and in bounded memory, and says whose fault it was.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nas_event_daemon::attempt::{Failure, FailureClass, Scope};
use nas_event_daemon::driver::radius::Kind;
use nas_event_daemon::driver::radius::exchange::Manner;
use nas_event_daemon::sim::radius::Faults;
use tokio::net::UdpSocket;

use crate::lab::growth_kib;
use crate::{LONG, SECRET, manner, radius, sim, talk};

const WORDS: [(&str, &str); 2] = [("Acct-Session-Id", "a1"), ("Filter-Id", "fast")];
/// Long enough for a few copies, short enough for a test.
const SHORT: Duration = Duration::from_millis(1_200);
/// What a flood may make this process grow by, KiB: packets have 4 KiB at most, and none is kept.
const GROWTH_MAX: u64 = 32 * 1024;

fn is(failure: &Failure, scope: Scope, class: FailureClass) {
    assert_eq!((failure.scope, failure.class), (scope, class), "{failure}");
}

#[tokio::test]
async fn forged_answers_neither_answer_nor_stop_a_request() {
    let faults = Faults {
        forge: true,
        nak: Some(404),
        flood: 500,
        ..Faults::default()
    };
    let nas = sim(faults).await;
    let radius = radius(nas.addr().port(), manner(SECRET));
    let told = talk(&radius, Kind::Coa, &WORDS, LONG).await;
    // All forged ones said ACK.
    is(
        &told.failure.unwrap(),
        Scope::Event,
        FailureClass::Permanent,
    );
    let ignored = radius.report().ignored;
    assert!(ignored.forged >= 2 && ignored.malformed >= 1, "{ignored:?}");
    // Without genuine ones it ends as silence, in time, and says what it saw.
    nas.set_faults(Faults {
        only_forged: true,
        ..Faults::default()
    });
    let began = Instant::now();
    let told = talk(&radius, Kind::Coa, &WORDS, SHORT).await;
    assert!(began.elapsed() < LONG);
    let failure = told.failure.unwrap();
    is(&failure, Scope::Nas, FailureClass::Unknown);
    assert!(failure.text.contains("did not fit our secret"), "{failure}");
}

/// Who can send from the NAS's own address and port, and does not know the secret, can only
/// waste our time; from anywhere else nothing even arrives.
#[tokio::test]
async fn a_flood_is_bounded_in_time_and_memory() {
    let nas = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let to = nas.local_addr().unwrap();
    let flood = tokio::spawn({
        let nas = Arc::clone(&nas);
        async move {
            let mut buffer = [0; 4096];
            let (size, from) = nas.recv_from(&mut buffer).await.unwrap();
            let mut answer = buffer[..size].to_vec();
            answer[0] = 44;
            let huge = vec![44; 60_000];
            let other = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            loop {
                let _ = nas.send_to(&answer, from).await;
                let _ = nas.send_to(&huge, from).await;
                let _ = nas.send_to(&[], from).await;
                let _ = other.send_to(&answer, from).await;
                tokio::task::yield_now().await;
            }
        }
    });
    let radius = radius(to.port(), manner(SECRET));
    let began = Instant::now();
    let (told, grown) = growth_kib(talk(&radius, Kind::Coa, &WORDS, SHORT)).await;
    let took = began.elapsed();
    flood.abort();
    assert!(took >= SHORT && took < LONG, "{took:?}");
    is(&told.failure.unwrap(), Scope::Nas, FailureClass::Unknown);
    let report = radius.report();
    assert!(report.ignored.forged > 100, "{report:?}");
    assert_eq!((report.waiting, report.sockets), (0, 1));
    assert!(grown < GROWTH_MAX, "{grown} KiB more: {report:?}");
}

#[tokio::test]
async fn lost_packets_are_sent_again_and_carried_out_once() {
    let faults = Faults {
        drop_first: 1,
        drop_answers: 1,
        ..Faults::default()
    };
    let nas = sim(faults).await;
    let radius = radius(nas.addr().port(), manner(SECRET));
    let told = talk(&radius, Kind::Coa, &WORDS, Duration::from_secs(12)).await;
    assert_eq!(told.failure, None);
    assert!(told.line.contains("after 3 copies"), "{}", told.line);
    let seen = nas.seen();
    assert_eq!((seen.requests, seen.copies, seen.changes), (1, 2, 1));
}

#[tokio::test]
async fn a_late_answer_belongs_to_nobody() {
    let faults = Faults {
        delay_ms: 1_500,
        ..Faults::default()
    };
    let nas = sim(faults).await;
    let radius = radius(nas.addr().port(), manner(SECRET));
    let told = talk(&radius, Kind::Coa, &WORDS, Duration::from_millis(300)).await;
    is(&told.failure.unwrap(), Scope::Nas, FailureClass::Unknown);
    let began = Instant::now();
    while radius.report().ignored.late == 0 && began.elapsed() < LONG {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(radius.report().ignored.late > 0);
    nas.set_faults(Faults::default());
    let told = talk(&radius, Kind::Coa, &WORDS, LONG).await;
    assert_eq!(told.failure, None);
}

#[tokio::test]
async fn whose_fault_it_is() {
    let nas = sim(Faults::default()).await;
    let radius_of = |port| radius(port, manner(SECRET));
    for (nak, scope, class) in [
        (506, Scope::Nas, FailureClass::Refused),
        (403, Scope::Nas, FailureClass::Permanent),
        (401, Scope::Event, FailureClass::Permanent),
        (504, Scope::Event, FailureClass::Refused),
        (0, Scope::Event, FailureClass::Refused),
    ] {
        nas.set_faults(Faults {
            nak: Some(nak),
            ..Faults::default()
        });
        let told = talk(&radius_of(nas.addr().port()), Kind::Coa, &WORDS, LONG).await;
        is(&told.failure.unwrap(), scope, class);
    }
    // Nobody listens: the host says so, and nothing waits for the end of all copies.
    // A port that the system gives to no other test.
    let began = Instant::now();
    let told = talk(&radius_of(1), Kind::Coa, &WORDS, LONG).await;
    is(&told.failure.unwrap(), Scope::Nas, FailureClass::Transport);
    assert!(began.elapsed() < LONG / 2);
}

/// A NAS that answers everybody else is not dead: its silence concerns this session.
#[tokio::test]
async fn silence_for_one_session_is_not_the_death_of_the_nas() {
    let nas = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = nas.local_addr().unwrap().port();
    let serve = tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            let (size, from) = nas.recv_from(&mut buffer).await.unwrap();
            if !buffer[..size].windows(4).any(|w| w == b"deaf") {
                answer(&nas, &buffer[..size], from).await;
            }
        }
    });
    let radius = radius(port, manner(SECRET));
    let deaf = talk(&radius, Kind::Coa, &[("Acct-Session-Id", "deaf")], LONG / 6);
    let other = talk(&radius, Kind::Coa, &[("Acct-Session-Id", "good")], LONG);
    let (deaf, other) = tokio::join!(deaf, other);
    assert_eq!(other.failure, None);
    is(&deaf.failure.unwrap(), Scope::Event, FailureClass::Unknown);
    serve.abort();
}

async fn answer(nas: &UdpSocket, request: &[u8], to: SocketAddr) {
    use nas_event_daemon::driver::radius::packet::{Code, Dressing, Packet, build};
    let packet = Packet::parse(request).unwrap();
    let dressing = Dressing {
        message_authenticator: true,
        event_timestamp: None,
    };
    let (id, mine) = (packet.id(), packet.authenticator());
    let bytes = build(Code::CoaAck, id, mine, &[], dressing, SECRET.as_bytes()).unwrap();
    nas.send_to(&bytes, to).await.unwrap();
}

/// accel-ppp drops the second request for a session while the first waits, and says nothing.
#[tokio::test]
async fn one_request_per_session_waits_at_a_time() {
    let faults = Faults {
        one_per_session: true,
        delay_ms: 40,
        ..Faults::default()
    };
    let nas = sim(faults).await;
    let radius = radius(nas.addr().port(), manner(SECRET));
    let all = (0..8).map(|n| {
        let radius = &radius;
        async move {
            let filter = format!("f{n}");
            let words = [("Acct-Session-Id", "a1"), ("Filter-Id", filter.as_str())];
            talk(radius, Kind::Coa, &words, LONG).await
        }
    });
    for told in futures_util::future::join_all(all).await {
        assert_eq!(told.failure, None);
    }
    let seen = nas.seen();
    assert_eq!((seen.second, seen.requests, seen.waiting_peak), (0, 8, 1));
}

/// More than a socket has identifiers.
#[tokio::test]
async fn more_than_256_requests_take_more_sockets() {
    let nas = sim(Faults {
        delay_ms: 700,
        ..Faults::default()
    })
    .await;
    let radius = radius(nas.addr().port(), manner(SECRET));
    let all = (0..600).map(|n| {
        let radius = &radius;
        async move {
            let session = format!("s{n}");
            talk(
                radius,
                Kind::Disconnect,
                &[("Acct-Session-Id", &session)],
                LONG,
            )
            .await
        }
    });
    for told in futures_util::future::join_all(all).await {
        // Nobody has these sessions, which is what was wanted.
        assert_eq!((told.failure, told.reply.code), (None, 503));
    }
    assert_eq!(radius.report().sockets, 3);
}

#[tokio::test]
async fn a_strict_nas_that_does_not_sign_is_not_believed() {
    let nas = sim(Faults {
        unsigned: true,
        ..Faults::default()
    })
    .await;
    let strict = Manner {
        require_message_authenticator: true,
        ..manner(SECRET)
    };
    let strict = radius(nas.addr().port(), strict);
    let told = talk(&strict, Kind::Coa, &WORDS, SHORT).await;
    is(&told.failure.unwrap(), Scope::Nas, FailureClass::Unknown);
    let usual = radius(nas.addr().port(), manner(SECRET));
    assert_eq!(talk(&usual, Kind::Coa, &WORDS, LONG).await.failure, None);
}
