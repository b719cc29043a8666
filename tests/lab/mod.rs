//! What the tests share: throw-away databases, the daemon as a child process, waiting for
//! conditions.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "each test file uses its part; a failed step fails the test"
)]

pub mod db;
