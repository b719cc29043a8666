//! Configuration files: usable, or place, reason and hint.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nas_event_daemon::config::Config;

thread_local!(static DIR: tempfile::TempDir = tempfile::tempdir().unwrap());

fuzz_target!(|bytes: &[u8]| {
    DIR.with(|dir| {
        let file = dir.path().join("ned.toml");
        std::fs::write(&file, bytes).unwrap();
        if let Err(error) = Config::load(Some(&file), std::iter::empty()) {
            assert!(!error.reason.is_empty() && !error.hint.is_empty());
        }
    });
});
