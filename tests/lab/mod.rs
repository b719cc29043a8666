//! What the tests share: throw-away databases, the daemon as a child process, waiting for
//! conditions.

#![allow(
    unreachable_pub,
    dead_code,
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "each test file uses its part; a failed step fails the test"
)]
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

pub mod db;
