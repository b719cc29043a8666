//! The pooled sessions of every NAS, shared by its forks; replaced when address or
//! credentials change.

use std::sync::Arc;

use crate::driver::mikrotik::Mikrotik;
use crate::nas::{Nas, NasSecret};

/// One per daemon.
#[derive(Default)]
pub struct Sessions {}

impl Sessions {
    /// The RouterOS sessions of `nas`: the same object as long as address, port, limits and
    /// credentials stay the same.
    pub fn mikrotik(&self, _nas: &Nas, _secret: &NasSecret) -> Arc<Mikrotik> {
        unreachable!("not written yet")
    }
}
