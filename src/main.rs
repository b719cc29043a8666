//! Entry point of `nas_event_daemon`.

fn main() {}
