//! Scheme files: usable, or findings that say why not.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nas_event_daemon::scheme::native::NativeScheme;

thread_local!(static DIR: tempfile::TempDir = tempfile::tempdir().unwrap());

fuzz_target!(|bytes: &[u8]| {
    DIR.with(|dir| {
        std::fs::write(dir.path().join("scheme.toml"), bytes).unwrap();
        if let Err(findings) = NativeScheme::load(dir.path()) {
            assert!(!findings.is_empty() && findings.iter().all(|f| !f.text.is_empty()));
        }
    });
});
