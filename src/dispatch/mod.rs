//! Dispatch: decides which event runs where and when, runs it, settles it.

pub mod lanes;
#[cfg(test)]
mod tests;
