//! Telnet against command lines that others wrote, started here: FRR's vty, where events really
//! change routes, and the telnet servers of busybox and inetutils; and against rude devices.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a failed step fails the test"
)]

#[path = "../lab/mod.rs"]
mod lab;

mod frr;
mod peers;
mod rude;
mod sim;
