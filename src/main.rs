//! Entry point: the shim branch, then the command line; the only place that ends the process.

use std::process::ExitCode;

// Thousands of short lives of small texts on several threads; measured against the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    if nas_event_daemon::scheme::shim::is_shim() {
        let code = nas_event_daemon::scheme::shim::shim_main();
        return ExitCode::from(u8::try_from(code).unwrap_or(70));
    }
    ExitCode::from(nas_event_daemon::cli::main())
}
