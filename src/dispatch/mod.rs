//! From waiting events to attempts and back: which event may run where and when, and what
//! becomes of it. The pure parts (`lanes`, `plan`, `breaker`, `settle`) take `now` as an
//! argument; `scheduler` is the one task that decides and writes, `fork` runs one attempt,
//! `parent` follows the NAS settings.
//!
//! ```text
//!  expand ──Waiting──►┐                            ┌──► fork ─┐
//!  parent ──Settings─►│ scheduler: lanes, pools ───┼──► fork ─┤ Finished
//!  store  ──Read─────►│   one turn = one commit    └──► fork ─┤
//!          ▲          └──────────────▲─────────────────────────┘
//!          └── Wanted (load, refill) ┘
//! ```

pub mod ahead;
#[cfg(test)]
mod ahead_test;
pub mod attempts;
pub mod breaker;
pub mod doubt;
mod drain;
pub mod fork;
mod gather;
mod hear;
mod knock;
mod lane;
pub mod lanes;
mod leave;
pub mod parent;
pub mod plan;
pub mod pool;
mod record;
pub mod scheduler;
pub mod settle;
#[cfg(test)]
mod stand_test;
mod start;
pub mod status;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod window_test;

use std::collections::BTreeMap;

use crate::event::{EventId, UserId, Waiting};
use crate::nas::NasId;
use crate::store::SettleTo;

/// Messages waiting for the scheduler; producers wait when it is full. A batch of expansion is
/// one message, so this is far more than one turn takes.
pub const MESSAGES: usize = 4_096;

/// What the scheduler hears.
#[derive(Debug)]
pub enum Message {
    /// Expansion moved these to the main stack.
    Waiting(Vec<Waiting>),
    /// A fork ended.
    Finished(Finished),
    /// Rows of these lanes, or none if they could not be read.
    Refilled(Vec<(NasId, lanes::Owner)>, Option<Vec<Waiting>>),
    /// A page of a NAS's rows and whether it was full, or none if it could not be read.
    Loaded(NasId, Option<(Vec<Waiting>, bool)>),
    /// An operator dropped a waiting event: the store has it no more.
    Dropped(EventId, NasId, Option<UserId>),
    /// An operator resumed this NAS: if it did not obey, it is tried now.
    Resumed(NasId),
    /// The settings loop found differences.
    Settings(parent::Settings),
}

/// How an attempt ended, ready to be written.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Event.
    pub id: EventId,
    /// Account.
    pub user: Option<UserId>,
    /// NAS on which it ran.
    pub nas: NasId,
    /// Try that was claimed.
    pub try_count: u32,
    /// Destination.
    pub to: SettleTo,
    /// Monotonic ms until which it waits, if deferred.
    pub due: u64,
    /// Exit code and its like.
    pub code: i32,
    /// Duration, ms.
    pub ms: i64,
    /// Error text, redacted.
    pub error: Option<String>,
}

/// What keeps a NAS from being served, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Obstacle {
    /// `mode = off`: it is meant.
    Off,
    /// Its row in `nas` is wrong.
    Row,
    /// Its scheme is not found or wrong.
    Scheme,
}

/// A NAS that is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skip {
    /// `nas.name`; empty if its row is wrong.
    pub name: String,
    /// Why, for people.
    pub why: String,
    /// Why, for counting.
    pub obstacle: Obstacle,
    /// Name of its log file.
    pub log_name: String,
}

/// NASes that are not served, by id; for the tools and for events that cannot wait.
pub type Skipped = BTreeMap<NasId, Skip>;
