//! What the scheduler promises, with the real binary on both kinds of database: order per
//! account, never more forks than allowed, what failures mean, what the end of a daemon means.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a failed step fails the test"
)]

#[path = "../lab/mod.rs"]
mod lab;

mod ahead;
mod fresh;
mod held;
mod lifecycle;
mod nas;
mod order;
mod outcomes;
mod poison;
mod records;
mod refusals;
mod schemes;
mod suspects;
