//! NAS simulators that ship with the product: the demo, the tests and
//! `nas_event_daemon sim …` speak to them over real sockets.

pub mod mikrotik;
pub mod ssh;
