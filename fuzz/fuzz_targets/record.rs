//! Log records: one text is one line, whatever it holds.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nas_event_daemon::attempt::{Line, LineKind};
use nas_event_daemon::event::{EventId, UserId};
use nas_event_daemon::logs::line::{Key, Origin, Records};

fuzz_target!(|bytes: &[u8]| {
    let key = Key {
        event: EventId(7),
        user: Some(UserId(1424)),
        cmd: "user_add",
        try_count: 1,
    };
    let line = Line {
        at_ms: 0,
        kind: LineKind::Answer,
        text: String::from_utf8_lossy(bytes).into_owned(),
    };
    let mut out = Vec::new();
    Records::new(Origin::new("bras", 1)).line(&mut out, &key, &line);
    let out = String::from_utf8(out).unwrap();
    assert_eq!(out.matches('\n').count(), 1);
    assert!(!out.contains(['\r', '\u{1b}', '\u{2028}', '\u{202e}']));
});
