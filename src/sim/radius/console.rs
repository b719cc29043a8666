//! `nas_event_daemon sim radius`: the simulator as a process, with an HTTP door on loopback
//! through which its state and its behaviour can be read and changed.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::{Faults, Options, Sim, State};
use crate::sim::control::{self, Door};
use crate::sim::running::locked;

/// Arguments of `sim radius`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address for CoA and Disconnect; port 0 = chosen by the system
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:3799")]
    pub listen: SocketAddr,
    /// Also listen on addresses that are not loopback
    #[arg(long)]
    pub allow_public: bool,
    /// Shared secret
    #[arg(
        long,
        env = "NED_SIM_SECRET",
        hide_env_values = true,
        default_value = "secret"
    )]
    pub secret: String,
    /// Drop requests without a Message-Authenticator
    #[arg(long)]
    pub require_message_authenticator: bool,
    /// State to start with: JSON, {"sessions": [{"User-Name": "…"}]}
    #[arg(long, value_name = "FILE")]
    pub load: Option<PathBuf>,
    /// Append every carried out request to this file, one JSON object a line
    #[arg(long, value_name = "FILE")]
    pub journal: Option<PathBuf>,
    /// Before each answer
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub delay: u64,
    /// Lose the first N copies of each request
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub drop_first: u32,
    /// Drop a second request for a session while the first waits, as accel-ppp does
    #[arg(long)]
    pub one_per_session: bool,
    /// Send forged answers before each genuine one
    #[arg(long)]
    pub forge: bool,
    /// Refuse everything with this Error-Cause
    #[arg(long, value_name = "CAUSE")]
    pub nak: Option<u32>,
    /// HTTP on loopback: GET and PUT /state, GET and PUT /faults, GET /seen
    #[arg(long, value_name = "ADDR")]
    pub control: Option<SocketAddr>,
}

impl Args {
    fn options(&self) -> Options {
        Options {
            listen: self.listen,
            allow_public: self.allow_public,
            secret: self.secret.clone(),
            require_message_authenticator: self.require_message_authenticator,
            journal: self.journal.clone(),
            faults: Faults {
                delay_ms: self.delay,
                drop_first: self.drop_first,
                one_per_session: self.one_per_session,
                forge: self.forge,
                nak: self.nak,
                ..Faults::default()
            },
        }
    }
}

/// Runs until `stop` is ready. Prints `listening on ADDR` and, with a control door,
/// `control on ADDR` to standard output before anything else.
pub async fn serve(args: &Args, stop: impl Future<Output = ()>) -> io::Result<()> {
    let door = Door {
        dump: |state: &State| locked(&state.sessions).dump(),
        load: |state: &State, new| locked(&state.sessions).load(new),
    };
    let sim = Sim::start(args.options()).await?;
    control::serve(sim, door, args.load.as_deref(), args.control, stop).await
}
