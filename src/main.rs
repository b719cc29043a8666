//! Entry point of `nas_event_daemon`.

use std::process::ExitCode;

use nas_event_daemon::scheme::shim;

fn main() -> ExitCode {
    if shim::is_shim() {
        return ExitCode::from(u8::try_from(shim::shim_main()).unwrap_or(70));
    }
    ExitCode::SUCCESS
}
