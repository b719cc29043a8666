//! One socket's requests: identifiers, retransmission, replies that count and those that do not.

use std::collections::BTreeMap;

use super::*;
use proptest::prelude::*;

const SECRET: &[u8] = b"servicemode";

fn manner() -> Manner {
    Manner {
        secret: SECRET.to_vec(),
        message_authenticator: true,
        require_message_authenticator: false,
        event_timestamp: true,
    }
}

fn request() -> Request {
    Request {
        code: Code::CoaRequest,
        attributes: vec![1, 3, b'u'],
    }
}

fn reply(code: Code, to: &[u8], secret: &[u8]) -> Vec<u8> {
    let packet = Packet::parse(to).unwrap();
    let dressing = Dressing {
        message_authenticator: true,
        event_timestamp: None,
    };
    build(
        code,
        packet.id(),
        packet.authenticator(),
        &[],
        dressing,
        secret,
    )
    .unwrap()
}

/// Runs one request against silence; the times of its copies and of its end.
fn silence(budget: u64, dice: u32) -> (Vec<u64>, u64, u32) {
    let mut exchange = Exchange::new(manner(), 0);
    let first = exchange
        .begin(&request(), (), 0, budget, 1_700_000_000, dice)
        .unwrap()
        .to_vec();
    let mut times = vec![0];
    while let Some(due) = exchange.due() {
        let mut sent = Vec::new();
        let ended = exchange.tick(due, dice, |()| true, |b| sent.push(b.to_vec()));
        for bytes in sent {
            assert_eq!(bytes, first, "a copy is not the same");
            times.push(due);
        }
        if let Some(end) = ended.first() {
            assert_eq!(exchange.open(), 0);
            return (times, due, end.copies);
        }
    }
    panic!("it never ends");
}

#[test]
fn silence_is_retried_as_rfc_5080_says() {
    let (times, end, copies) = silence(60_000, 0);
    // 1.8 s, then doubled and shortened by a tenth each time.
    assert_eq!(times[..3], [0, 1_800, 1_800 + 3_240]);
    assert_eq!(usize::try_from(copies).unwrap(), times.len());
    assert!(times.len() <= 6 && end <= 30_000, "{times:?} {end}");
    let (times, end, _) = silence(1_000, 7);
    assert!((3..=4).contains(&times.len()) && end == 1_000, "{times:?}");
}

#[test]
fn only_the_right_answer_counts() {
    let mut exchange = Exchange::new(manner(), 250);
    let sent = exchange
        .begin(&request(), "a", 0, 9_000, 1, 0)
        .unwrap()
        .to_vec();
    let good = reply(Code::CoaNak, &sent, SECRET);
    let mut other_id = good.clone();
    other_id[1] = other_id[1].wrapping_add(1);
    for bad in [
        &reply(Code::CoaNak, &sent, b"guessed")[..],
        &reply(Code::DisconnectAck, &sent, SECRET),
        &reply(Code::CoaRequest, &sent, SECRET),
        &sent,
        &other_id,
        &good[..good.len() - 1],
        &[],
        &[44; 5000],
    ] {
        assert!(exchange.receive(bad).is_none());
    }
    assert_eq!(exchange.open(), 1);
    let counted = Ignored {
        malformed: 3,
        late: 1,
        forged: 4,
    };
    assert_eq!(exchange.ignored(), counted);
    let (who, answer) = exchange.receive(&good).unwrap();
    assert_eq!((who, answer.code, answer.copies), ("a", Code::CoaNak, 1));
    // A copy of it, and whatever comes later, is late.
    assert!(exchange.receive(&good).is_none());
    assert_eq!((exchange.ignored().late, exchange.open()), (2, 0));
}

#[test]
fn a_strict_nas_must_sign_twice() {
    let strict = Manner {
        require_message_authenticator: true,
        ..manner()
    };
    for (manner, counts) in [(strict, false), (manner(), true)] {
        let mut exchange = Exchange::new(manner, 0);
        let sent = exchange
            .begin(&request(), (), 0, 9_000, 1, 0)
            .unwrap()
            .to_vec();
        let packet = Packet::parse(&sent).unwrap();
        let bare = Dressing {
            message_authenticator: false,
            event_timestamp: None,
        };
        let bytes = build(
            Code::CoaAck,
            packet.id(),
            packet.authenticator(),
            &[],
            bare,
            SECRET,
        );
        assert_eq!(exchange.receive(&bytes.unwrap()).is_some(), counts);
    }
}

#[test]
fn identifiers_run_out_and_come_back_in_turn() {
    let mut exchange = Exchange::new(manner(), 200);
    let mut sent = Vec::new();
    for n in 0..IDS {
        let begun = exchange.begin(&request(), n, 0, 9_000, 1, 0);
        sent.push(begun.unwrap().to_vec());
    }
    let mut ids: Vec<u8> = sent.iter().map(|b| b[1]).collect();
    assert_eq!(ids[..2], [200, 201]);
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), IDS);
    let (who, reason) = exchange.begin(&request(), 999, 0, 9_000, 1, 0).unwrap_err();
    assert_eq!(
        (who, reason),
        (
            999,
            NotSent::NotNow("all 256 identifiers of the socket wait")
        )
    );
    exchange
        .receive(&reply(Code::CoaAck, &sent[7], SECRET))
        .unwrap();
    let again = exchange.begin(&request(), 1_000, 0, 9_000, 2, 0).unwrap();
    assert_eq!(again[1], sent[7][1]);
}

#[test]
fn the_same_request_is_no_copy_of_an_earlier_one() {
    let mut exchange = Exchange::new(manner(), 0);
    let mut asked = |now, wall_s, attributes: &[u8]| {
        let request = Request {
            attributes: attributes.to_vec(),
            ..request()
        };
        let bytes = exchange
            .begin(&request, (), now, 9_000, wall_s, 0)
            .map(<[u8]>::to_vec);
        let bytes = bytes.map_err(|((), reason)| reason)?;
        let answer = reply(Code::CoaAck, &bytes, SECRET);
        assert!(exchange.receive(&answer).is_some());
        Ok::<_, NotSent>(bytes)
    };
    let open = [1, 3, b'u'];
    let other = [1, 3, b'v'];
    let first = asked(0, 1, &open).unwrap();
    for _ in 1..IDS {
        asked(0, 1, &other).unwrap();
    }
    // Identifier 0 is next; the device may still know these bytes under it.
    let second = asked(900, 1, &open).unwrap();
    assert_eq!((first[1], second[1]), (0, 1));
    assert_eq!(asked(950, 1, &other).unwrap()[1], 0);
    // Nor is it one when another has had the identifier in between.
    assert_eq!(asked(960, 1, &open).unwrap()[1], 2);
    // Of another second it is a request of its own.
    assert_eq!(asked(999, 2, &open).unwrap()[1], 3);
    for _ in 0..IDS {
        asked(2_000, 3, &open).unwrap();
    }
    let refused = asked(2_000, 3, &open).unwrap_err();
    assert!(
        matches!(refused, NotSent::NotNow(why) if why.contains("copy")),
        "{refused:?}"
    );
    assert!(asked(36_999, 3, &open).is_err() && asked(37_000, 3, &open).is_ok());
}

#[test]
fn who_no_longer_waits_frees_the_identifier() {
    let mut exchange = Exchange::new(manner(), 0);
    exchange.begin(&request(), 1, 0, 9_000, 1, 0).unwrap();
    exchange.begin(&request(), 2, 0, 9_000, 1, 0).unwrap();
    let ended = exchange.tick(1, 0, |who| *who == 2, |_| panic!("too early"));
    assert_eq!((ended[0].waiter, exchange.open()), (1, 1));
    assert_eq!(exchange.give_up().len(), 1);
}

/// What a hostile or slow network does with the packets.
#[derive(Debug, Clone)]
enum Happens {
    Begin,
    Answer(usize, u8),
    Garbage(Vec<u8>),
    Flip(usize, usize),
    Time(u64),
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        3 => Just(Happens::Begin),
        3 => (any::<usize>(), 40..47_u8).prop_map(|(n, code)| Happens::Answer(n, code)),
        1 => prop::collection::vec(any::<u8>(), 0..64).prop_map(Happens::Garbage),
        1 => (any::<usize>(), any::<usize>()).prop_map(|(n, bit)| Happens::Flip(n, bit)),
        2 => (0..4_000_u64).prop_map(Happens::Time),
    ]
}

proptest! {
    /// Each request ends exactly once, by its own genuine answer or by silence in time.
    #[test]
    fn each_request_ends_once(steps in prop::collection::vec(happens(), 1..120), dice in any::<u32>()) {
        let mut exchange = Exchange::new(manner(), 0);
        let mut now = 0;
        let mut sent: Vec<(Vec<u8>, u64)> = Vec::new();
        let mut ended: BTreeMap<usize, &str> = BTreeMap::new();
        for step in steps {
            match step {
                Happens::Begin if exchange.open() < IDS => {
                    let n = sent.len();
                    let bytes = exchange.begin(&request(), n, now, now + 20_000, 1, dice).unwrap();
                    sent.push((bytes.to_vec(), now));
                }
                Happens::Begin => {}
                Happens::Answer(n, code) if !sent.is_empty() => {
                    let n = n % sent.len();
                    let Some(code) = Code::of(code) else { continue };
                    let bytes = reply(code, &sent[n].0, SECRET);
                    let got = exchange.receive(&bytes);
                    if let Some((who, answer)) = got {
                        // Identical bytes cannot be told apart, and need not be.
                        prop_assert_eq!(&sent[who].0, &sent[n].0);
                        prop_assert!(answer.code.answers(Code::CoaRequest));
                        prop_assert!(ended.insert(who, "answer").is_none());
                    }
                }
                Happens::Flip(n, bit) if !sent.is_empty() => {
                    let mut bytes = reply(Code::CoaAck, &sent[n % sent.len()].0, SECRET);
                    let bit = bit % (bytes.len() * 8);
                    bytes[bit / 8] ^= 1 << (bit % 8);
                    prop_assert!(exchange.receive(&bytes).is_none());
                }
                Happens::Answer(..) | Happens::Flip(..) => {}
                Happens::Garbage(bytes) => prop_assert!(exchange.receive(&bytes).is_none()),
                Happens::Time(ms) => {
                    now += ms;
                    for silent in exchange.tick(now, dice, |_| true, |_| ()) {
                        prop_assert!(ended.insert(silent.waiter, "silence").is_none());
                    }
                }
            }
            prop_assert_eq!(exchange.open(), sent.len() - ended.len());
        }
        for silent in exchange.tick(now + 40_000, dice, |_| true, |_| ()) {
            prop_assert!(ended.insert(silent.waiter, "silence").is_none());
        }
        prop_assert_eq!(ended.len(), sent.len());
    }
}
