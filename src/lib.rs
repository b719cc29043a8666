//! nas_event_daemon: takes subscriber events from a billing and makes every NAS obey.
//!
//! ```text
//!  REST / SQL inserts                    NAS settings, every 60 s or when poked
//!         │                                              │
//!    ┌────▼───┐  events_stack_compact  ┌────────┐  events_stack
//!    │ intake │ ─────────────────────► │ expand │ ───────┬─────────────┐
//!    └────────┘                        └────────┘        │             │ load
//!                                           ┌────────────▼─────────────▼──┐
//!               ┌─ settle + next start ◄─── │ dispatch: parent ► plan ►   │ ──► logs: daemon │ NAS │ account
//!               │   (one transaction)       │  lanes per NAS ► forks      │
//!             store                         └─────────────┬───────────────┘
//!                                                         │ run(Job, &mut Transcript) → Report
//!                                           ┌─────────────▼───────────────┐
//!                                           │ scheme: session │ native    │
//!                                           └──────┬──────────────┬───────┘
//!                                             child process    driver: mikrotik, radius, http, record
//! ```
//!
//! The invariants, each guarded by a test, are listed in `docs/architecture.md`.

// words
pub mod attempt;
pub mod clock;
pub mod config;
pub mod event;
pub mod nas;
pub mod shell;

// the ground
pub mod logs;
pub mod store;

// the pipeline, in flow order
/// Another way in: the rows of a foreign stack.
pub mod bridge;
pub mod intake;

pub mod expand;

pub mod dispatch;

pub mod scheme;

pub mod driver;

// the process
pub mod daemon;

pub mod cli;

pub mod sim;
