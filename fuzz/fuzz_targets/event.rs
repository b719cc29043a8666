//! JSON of events: where a value ends, and what a checked event promises.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nas_event_daemon::event::Cmd;
use nas_event_daemon::intake::{compact, json};

fuzz_target!(|text: &str| {
    let _ = json::strict_json(text);
    if let Ok((value, used)) = json::first_json(text) {
        assert!(text.is_char_boundary(used));
        if let Ok(event) = compact::read(value, "fuzz", &[]) {
            assert!(Cmd::parse(&event.cmd).is_ok());
        }
    }
});
