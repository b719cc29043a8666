//! `sim …`: the simulators as processes; a signal ends them.

use clap::Subcommand;

use super::exit::{DONE, FAILED, Failed, Outcome};
use crate::daemon::process;
use crate::daemon::shutdown::Signals;
use crate::sim::http;
use crate::sim::mikrotik::console;
use crate::sim::radius::console as radius;
use crate::sim::{ssh, telnet};

/// What can be simulated.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// A MikroTik: the RouterOS API over TCP on loopback.
    Mikrotik(console::Args),
    /// A device behind SSH: commands answered from a table.
    Ssh(ssh::console::Args),
    /// A router with a Cisco-like command line over telnet.
    Telnet(telnet::console::Args),
    /// An HTTP device: JSON documents, and a web hook.
    Http(http::Args),
    /// A NAS that takes RADIUS CoA and Disconnect over UDP on loopback.
    Radius(radius::Args),
}

/// Runs until SIGTERM or Ctrl-C.
pub async fn run(verb: Verb) -> Outcome {
    // As the daemon does, and for as many: each answer that is held back is a descriptor.
    process::raise_descriptor_limit();
    let mut signals =
        Signals::catch().map_err(|e| Failed::new(FAILED, format!("cannot catch signals: {e}")))?;
    match verb {
        Verb::Mikrotik(args) => console::serve(&args, signals.stop()).await.map_err(|e| {
            Failed::new(
                FAILED,
                format!("the simulated MikroTik ended: {e}\nhint: --listen 127.0.0.1:0 takes any free port"),
            )
        })?,
        Verb::Ssh(args) => ssh::console::serve(&args, signals.stop()).await.map_err(|e| {
            Failed::new(
                FAILED,
                format!("the simulated SSH server ended: {e}\nhint: --listen 127.0.0.1:0 takes any free port"),
            )
        })?,
        Verb::Telnet(args) => telnet::console::serve(&args, signals.stop()).await.map_err(|e| {
            Failed::new(
                FAILED,
                format!("the simulated router ended: {e}\nhint: --listen 127.0.0.1:0 takes any free port"),
            )
        })?,
        Verb::Http(args) => http::run(&args, signals.stop()).await.map_err(|e| {
            Failed::new(
                FAILED,
                format!("the simulated HTTP device ended: {e}\nhint: --listen 127.0.0.1:0 takes any free port"),
            )
        })?,
        Verb::Radius(args) => radius::serve(&args, signals.stop()).await.map_err(|e| {
            Failed::new(
                FAILED,
                format!("the simulated NAS ended: {e}\nhint: --listen 127.0.0.1:0 takes any free port"),
            )
        })?,
    }
    Ok(DONE)
}
