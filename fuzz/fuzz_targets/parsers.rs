//! One parser under libFuzzer: `NED_FUZZ` names it, the arguments are libFuzzer's.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<fn(&[u8])> = OnceLock::new();

fuzz_target!(|bytes: &[u8]| {
    let run = TARGET.get_or_init(|| {
        let name = std::env::var("NED_FUZZ").expect("NED_FUZZ names the parser: words, form, …");
        nas_event_daemon_fuzz::target(&name)
    });
    run(bytes);
});
