//! The doors, from outside: every path of the contract over a store in memory, and the
//! sockets' bounds over real connections on loopback.

#[cfg(test)]
mod alarms;
#[cfg(test)]
mod billing;
#[cfg(test)]
mod chosen;
#[cfg(test)]
mod classic;
#[cfg(test)]
mod constraint;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod judge;
#[cfg(test)]
#[path = "../lab/mod.rs"]
mod lab;
#[cfg(test)]
mod liveness;
#[cfg(test)]
mod models;
#[cfg(test)]
mod modern;
#[cfg(test)]
mod operations;
#[cfg(test)]
mod posting;
#[cfg(test)]
mod running;
#[cfg(test)]
mod seed;
#[cfg(test)]
mod sockets;
