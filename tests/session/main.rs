//! Operators' scripts behind the shim, with the real binary: what they get, what their ends
//! mean, and that nothing of them stays behind.

#[cfg(test)]
mod bench;
#[cfg(test)]
mod contract;
#[cfg(test)]
mod files;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod resolving;
