//! One function for each parser of what comes from outside: bytes go in, and it panics if the
//! parser breaks its promise. `tests/hostile/mutations.rs` gives each mutated seeds, the
//! programs of `fuzz_targets/` give each what libFuzzer invents; both begin with `corpus/`.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::expect_used,
    unreachable_pub,
    missing_docs,
    dead_code,
    clippy::allow_attributes,
    reason = "a broken promise fails the run; shared by two crates with different lints"
)]

use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use nas_event_daemon::attempt::{Line, LineKind};
use nas_event_daemon::config::Config;
use nas_event_daemon::driver::dialogue::{ANSWER_MAX, Credentials, Dialogue, Manners, Step};
use nas_event_daemon::driver::http;
use nas_event_daemon::driver::mikrotik::wire::{Bounds, Decoder, encode, text};
use nas_event_daemon::driver::radius::dictionary::Dictionary;
use nas_event_daemon::driver::radius::exchange::{Exchange, Manner, Request};
use nas_event_daemon::driver::radius::packet::{Code, Dressing, HEADER, Packet, build};
use nas_event_daemon::driver::radius::value;
use nas_event_daemon::driver::ssh::trust;
use nas_event_daemon::driver::telnet::options::Options;
use nas_event_daemon::driver::tls;
use nas_event_daemon::event::{Cmd, EventId, UserId};
use nas_event_daemon::intake::{chain, compact, form, json};
use nas_event_daemon::logs::line::{Key, Origin, Records};
use nas_event_daemon::scheme::native::NativeScheme;
use nas_event_daemon::scheme::ride::words as ride;
use nas_event_daemon::scheme::traps;
use nas_event_daemon::shell;
use nas_event_daemon::store::query::Model;

/// One parser, fed with bytes.
pub type Parser = fn(&[u8]);

/// Name (also of the corpus), function, and how many times dearer it is than the cheap ones.
pub const TARGETS: &[(&str, Parser, u64)] = &[
    ("words", words, 1),
    ("form", form, 1),
    ("event", event, 1),
    ("chain", chain, 1),
    ("scheme", scheme, 10),
    ("config", config, 10),
    ("record", record, 1),
    ("session", session, 1),
    ("telnet", telnet, 1),
    ("dialogue", dialogue, 5),
    ("hostkey", hostkey, 2),
    ("http", http, 20),
    ("radius", radius, 1),
    ("dictionary", dictionary, 2),
    ("traps", traps, 1),
    ("fingerprint", fingerprint, 1),
];

/// The function of this name.
pub fn target(name: &str) -> fn(&[u8]) {
    let found = TARGETS.iter().find(|(known, ..)| *known == name);
    found.map_or_else(|| panic!("no target {name:?}"), |(_, run, _)| *run)
}

const BOUNDS: Bounds = Bounds {
    words: 64,
    word: 4_096,
    sentence: 16_384,
};

pub fn sentences(parts: &[&[u8]]) -> Result<Vec<Vec<Vec<u8>>>, String> {
    let mut decoder = Decoder::new(BOUNDS);
    let mut all = Vec::new();
    for part in parts {
        decoder.feed(part);
        while let Some(sentence) = decoder.next().map_err(|e| e.to_string())? {
            all.push(sentence);
        }
    }
    Ok(all)
}

/// RouterOS API words: however a stream is split, the same sentences come out, within their
/// bounds, and are written as they were read.
pub fn words(bytes: &[u8]) {
    let whole = sentences(&[bytes]);
    let (head, tail) = bytes.split_at(bytes.len() / 2);
    assert_eq!(whole, sentences(&[head, tail]));
    for sentence in whole.unwrap_or_default() {
        let size: usize = sentence.iter().map(Vec::len).sum();
        assert!(sentence.len() <= BOUNDS.words && size <= BOUNDS.sentence);
        let mut out = Vec::new();
        encode(sentence.iter().map(Vec::as_slice), BOUNDS, &mut out).unwrap();
        assert_eq!(
            sentences(&[&out]).unwrap(),
            std::slice::from_ref(&sentence),
            "what was read is written and read again as it was"
        );
        for word in &sentence {
            assert!(!text(word).is_empty());
        }
    }
}

/// The three shapes of the classic body.
pub fn form(bytes: &[u8]) {
    if let Err(error) = form::read(bytes) {
        assert!(!error.to_string().is_empty());
    }
}

/// JSON of events: where a value ends, and what a checked event promises.
pub fn event(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let _ = json::strict_json(text);
    if let Ok((value, used)) = json::first_json(text) {
        assert!(text.is_char_boundary(used));
        if let Ok(event) = compact::read(value, "fuzz", &[]) {
            assert!(Cmd::parse(&event.cmd).is_ok());
            assert!(event.user_id.is_some() || event.nas_id.is_some() || event.nas_ip.is_some());
        }
    }
}

/// Chains of the classic API over each model: a wish within its bounds, or a reason.
pub fn chain(bytes: &[u8]) {
    let Ok(form) = form::read(bytes) else { return };
    // No database is at hand: the names of ours and of relations are known without.
    let columns = |_: Model| Vec::new();
    for model in Model::ALL {
        let wish = chain::read(model, form.calls.clone(), form.limit, form.offset, &columns);
        match wish {
            Ok(chain::Wish::Create { objects, .. }) => assert!(objects.len() <= bytes.len()),
            Ok(_) => {}
            Err(why) => assert!(!why.is_empty()),
        }
    }
}

thread_local!(static DIR: tempfile::TempDir = tempfile::tempdir().unwrap());

/// Scheme files: usable, or findings that say why not.
pub fn scheme(bytes: &[u8]) {
    DIR.with(|dir| {
        std::fs::write(dir.path().join("scheme.toml"), bytes).unwrap();
        if let Err(findings) = NativeScheme::load(dir.path()) {
            assert!(!findings.is_empty() && findings.iter().all(|f| !f.text.is_empty()));
        }
    });
}

/// Configuration files: usable, or place, reason and hint.
pub fn config(bytes: &[u8]) {
    DIR.with(|dir| {
        let file = dir.path().join("ned.toml");
        std::fs::write(&file, bytes).unwrap();
        if let Err(error) = Config::load(Some(&file), std::iter::empty()) {
            assert!(!error.reason.is_empty() && !error.hint.is_empty());
        }
    });
}

/// Log records: one text is one line, whatever it holds; and one word of a shell is one word.
pub fn record(bytes: &[u8]) {
    let key = Key {
        event: EventId(7),
        user: Some(UserId(1424)),
        cmd: "user_add",
        try_count: 1,
    };
    let text = String::from_utf8_lossy(bytes).into_owned();
    let mut out = Vec::new();
    let mut records = Records::new(Origin::new("bras", 1));
    for kind in [LineKind::Command, LineKind::Answer] {
        let line = Line {
            at_ms: 0,
            kind,
            text: text.clone(),
        };
        records.line(&mut out, &key, &line);
    }
    records.daemon(&mut out, 0, &text);
    let out = String::from_utf8(out).unwrap();
    assert_eq!(
        out.matches('\n').count(),
        3,
        "three records are three lines"
    );
    assert!(!out.contains(['\r', '\u{1b}', '\u{2028}', '\u{202e}']));
    let quoted = shell::quote(&text);
    assert!(!quoted.is_empty() && !quoted.contains(['\n', '\r', '\u{1b}']));
}

/// Lines of `session.sock`: refused with a reason, or the same when written and read again.
pub fn session(bytes: &[u8]) {
    match ride::ask(bytes) {
        Err(why) => assert!(!why.is_empty()),
        Ok(ask) => {
            assert!(ask.timeout_ms <= ride::TIMEOUT_MAX_MS);
            let again = serde_json::to_vec(&ask).unwrap();
            assert!(!again.contains(&b'\n'));
            assert_eq!(ride::ask(&again).unwrap(), ask);
        }
    }
    if let Ok(told) = serde_json::from_slice::<ride::Told>(bytes) {
        let line = told.line();
        assert!(line.len() <= ride::TOLD_MAX && line.ends_with(b"\n"));
    }
}

/// Telnet's options: what is text does not depend on how it is split, no peer makes us talk
/// without end, and what we send comes out as it went in.
pub fn telnet(bytes: &[u8]) {
    let take = |parts: &[&[u8]]| {
        let mut options = Options::new();
        let (mut data, mut reply) = (Vec::new(), Vec::new());
        for part in parts {
            options.take(part, &mut data, &mut reply);
        }
        (data, reply)
    };
    let whole = take(&[bytes]);
    let (head, tail) = bytes.split_at(bytes.len() / 2);
    assert_eq!(whole, take(&[head, tail]));
    assert!(whole.0.len() <= bytes.len() && whole.1.len() <= bytes.len());
    // A peer that only ever gets our own answers has nothing more to be told.
    assert_eq!(take(&[&whole.1]).0, Vec::<u8>::new());
    let mut sent = Vec::new();
    Options::new().encode(bytes, &mut sent);
    assert_eq!(take(&[&sent]).0, bytes);
}

/// Secrets that a device must never be given unless it asks.
const PASSWORD: &str = "servicemode-of-the-nas";

/// A device's command line over telnet or ssh: pieces between zero bytes arrive one after
/// another, time passes, lines are sent whenever it is ready. It comes to rest after each piece,
/// keeps its bounds, and names neither password in what it gives back.
pub fn dialogue(bytes: &[u8]) {
    let (wish, said) = bytes.split_first().unwrap_or((&0, &[]));
    let manners = Manners {
        enable: (wish & 1 > 0).then(|| "enable".to_owned()),
        setup: if wish & 2 > 0 {
            vec!["terminal length 0".to_owned()]
        } else {
            Vec::new()
        },
        ..Manners::default()
    };
    let credentials = Credentials {
        login: "ned".to_owned(),
        password: PASSWORD.to_owned(),
        enable_password: if wish & 4 > 0 {
            "raised-privilege".to_owned()
        } else {
            String::new()
        },
    };
    let expect = [fancy_regex::Regex::new(r"\[confirm\]$").unwrap()];
    let mut now = 1_000;
    let mut dialogue = Dialogue::new(manners, credentials, now);
    for piece in said.split(|byte| *byte == 0) {
        now += 1;
        dialogue.feed(piece, now);
        // Each step waits for longer, is answered, or ends it: a few are enough for one piece.
        let mut steps = 0;
        loop {
            steps += 1;
            assert!(steps < 20, "it does not come to rest");
            let step = dialogue.step(&expect, now);
            let out = dialogue.take_out();
            assert!(out.len() <= 256, "{} bytes at once", out.len());
            match step {
                Step::Wait { until: Some(until) } => {
                    assert!(until > now, "it would turn in a circle");
                    now = until;
                }
                Step::Wait { until: None } => break,
                Step::Ready => {
                    dialogue.send("show version", now).unwrap();
                    break;
                }
                Step::Answer(answer) => {
                    // A byte that is no text is shown by four.
                    assert!(answer.text.len() <= 4 * (ANSWER_MAX + 8_192));
                    assert!(!answer.text.contains('\u{1b}'), "{:?}", answer.text);
                    if answer.closed {
                        return;
                    }
                    dialogue.send("show version", now).unwrap();
                    break;
                }
                Step::Failed(trouble) => {
                    assert!(!trouble.text().is_empty());
                    let echoed = String::from_utf8_lossy(said).contains(PASSWORD);
                    assert!(echoed || !trouble.text().contains(PASSWORD));
                    return;
                }
            }
        }
    }
    dialogue.closed("the connection ended");
    assert!(!dialogue.late(1_000).text().is_empty());
}

/// Host keys as an operator writes them.
pub fn hostkey(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    for known in [None, Some(text)] {
        match trust::Trust::of(Some(text), known) {
            Ok(trust) => assert!(trust != trust::Trust::Anybody),
            Err(why) => assert!(!why.is_empty()),
        }
    }
}

/// Fingerprints of certificates as an operator writes them: what is taken has the digits that he
/// wrote, and is the same in every way of writing it.
pub fn fingerprint(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let Some(print) = tls::fingerprint(text) else {
        return;
    };
    let pairs = print.map(|byte| format!("{byte:02x}"));
    let plain = pairs.concat();
    assert!(text.to_ascii_lowercase().replace(':', "").contains(&plain));
    for written in [
        plain.clone(),
        pairs.join(":").to_ascii_uppercase(),
        format!(" SHA256:{plain}\n"),
    ] {
        assert_eq!(tls::fingerprint(&written), Some(print), "{written:?}");
    }
    assert_eq!(tls::fingerprint(&plain[1..]), None);
    assert_eq!(tls::fingerprint(&format!("{plain}0")), None);
}

/// Session scripts: traps are told in the order of their lines, which are there; a comment above
/// the script moves each down by its line and neither hides nor makes one.
pub fn traps(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let found = |text: &str| -> Vec<(usize, String)> {
        let file = Path::new("bin/session");
        let lines = text.split('\n').count();
        let findings = traps::traps(file, text);
        for finding in &findings {
            assert!((1..=lines).contains(&finding.line), "{finding}");
            assert!(!finding.text.is_empty() && !finding.hint.is_empty());
            assert_eq!(finding.file, file);
        }
        assert!(findings.is_sorted_by_key(|finding| finding.line));
        findings.into_iter().map(|f| (f.line, f.text)).collect()
    };
    // A byte order mark is one at the begin only.
    let script = text.trim_start_matches('\u{feff}');
    let moved: Vec<_> = found(script)
        .into_iter()
        .map(|(line, text)| (line + 1, text))
        .collect();
    assert_eq!(found(&format!("# a comment\n{script}")), moved);
    let marked = found(&format!("\u{feff}{script}"));
    assert!(
        marked
            .iter()
            .any(|(line, text)| *line == 1 && text.contains("byte order mark"))
    );
}

/// What a device answers to a request: a reply or a failure in time, never more than its bound.
pub fn http(bytes: &[u8]) {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let target = http::Target {
        url,
        auth: http::Auth::of("", "ned", PASSWORD).unwrap(),
        trust: tls::Trust::Pinned(Vec::new()),
    };
    let limits = http::Limits {
        connections: 1,
        connect_timeout: Duration::from_secs(5),
        linger: Duration::from_millis(1),
    };
    let request = http::Request {
        method: "POST".to_owned(),
        path: "/sessions".to_owned(),
        headers: Vec::new(),
        json: Some("{}".to_owned()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut peer, _) = listener.accept().unwrap();
            // Its request first: a reset would take our words with it.
            let _ = peer.read(&mut [0; 4_096]);
            let _ = peer.write_all(bytes);
        });
        let http = http::Http::new(&target, &limits);
        let answer = runtime.block_on(http.talk(&request, Duration::from_secs(10)));
        match answer {
            Ok(reply) => assert!(reply.text.len() <= 3 * http::BODY_MAX),
            Err(failure) => assert!(!failure.text.is_empty() && failure.text.len() < 16_384),
        }
    });
}

/// Datagrams to a socket of RADIUS: without the secret nobody's answer counts, whatever it says;
/// with it every answer does that has the form of one, and each of its attributes can be shown.
pub fn radius(bytes: &[u8]) {
    let secret = b"a secret of more than sixteen bytes".to_vec();
    let manner = Manner {
        secret: secret.clone(),
        message_authenticator: true,
        require_message_authenticator: bytes.len().is_multiple_of(2),
        event_timestamp: true,
    };
    let mut exchange = Exchange::new(manner, 0);
    let request = Request {
        code: Code::CoaRequest,
        attributes: Vec::new(),
    };
    let sent = exchange.begin(&request, (), 0, 10_000, 1, 1).unwrap();
    let authenticator = Packet::parse(sent).unwrap().authenticator();
    assert!(exchange.receive(bytes).is_none(), "a forged answer counts");
    assert_eq!((exchange.ignored().sum(), exchange.open()), (1, 1));
    if let Ok(packet) = Packet::parse(bytes) {
        let avps = packet.avps();
        let size: usize = avps.iter().map(|avp| avp.value.len()).sum();
        assert!(size <= bytes.len());
        for avp in avps {
            let attribute = Dictionary::shipped().by_number(avp.vendor, avp.number);
            // A byte that is no text is shown by four.
            let (_, text) = value::decode(&attribute, &avp.value);
            assert!(text.len() <= 4 * value::VALUE_MAX);
        }
    }
    let attributes = bytes.get(HEADER..).unwrap_or_default();
    let dressing = Dressing {
        message_authenticator: true,
        event_timestamp: None,
    };
    let Ok(reply) = build(
        Code::CoaNak,
        0,
        authenticator,
        attributes,
        dressing,
        &secret,
    ) else {
        return;
    };
    let fits = Packet::parse(&reply).is_ok();
    assert_eq!(exchange.receive(&reply).is_some(), fits);
}

/// Dictionaries of an operator: attributes that can be used, or file and line of what is wrong.
pub fn dictionary(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let mut dictionary = Dictionary::default();
    if let Err(why) = dictionary.add("fuzz", text) {
        assert!(why.starts_with("fuzz:"), "{why}");
    }
    for attribute in dictionary.iter() {
        for tag in [None, Some(3)] {
            if let Ok(encoded) = value::encode(attribute, tag, "1") {
                assert!(!encoded.is_empty() && encoded.len() <= value::VALUE_MAX);
                assert!(!value::decode(attribute, &encoded).1.is_empty());
            }
        }
    }
}
