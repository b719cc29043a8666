//! SSH against OpenSSH's own server, started here: logins, session limits, host keys, servers
//! that die or misbehave; the daemon's way from an event to a command on a Linux NAS.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a failed step fails the test"
)]

#[path = "../lab/mod.rs"]
mod lab;

mod dialogues;
mod events;
mod linux_nas;
mod logins;
mod network;
mod queues;
mod rude;
mod sessions;
mod tools;
