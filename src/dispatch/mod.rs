//! From waiting events to attempts and back: which event may run where and when, and what
//! becomes of it. The pure parts (`plan`, `breaker`, `settle`) take `now` as an argument.

pub mod breaker;
pub mod plan;
pub mod settle;
