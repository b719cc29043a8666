//! The three shapes of the classic body.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nas_event_daemon::intake::form;

fuzz_target!(|bytes: &[u8]| {
    if let Err(error) = form::read(bytes) {
        assert!(!error.to_string().is_empty());
    }
});
