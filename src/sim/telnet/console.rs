//! `nas_event_daemon sim telnet`: the simulator as a process.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::{Faults, Options, Sim};

/// Arguments of `sim telnet`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address; port 0 = chosen by the system
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:2323")]
    pub listen: SocketAddr,
    /// Also listen on addresses that are not loopback
    #[arg(long)]
    pub allow_public: bool,
    /// Name in the prompt
    #[arg(long, default_value = "sim")]
    pub hostname: String,
    /// Account that may log in; empty = only a password is asked for
    #[arg(long, default_value = "admin")]
    pub login: String,
    /// Its password
    #[arg(
        long,
        env = "NED_SIM_PASSWORD",
        hide_env_values = true,
        default_value = ""
    )]
    pub password: String,
    /// Password of `enable`; empty = it asks for none
    #[arg(long, default_value = "")]
    pub enable: String,
    /// Rows of a page; 0 = no pager
    #[arg(long, value_name = "ROWS", default_value_t = 24)]
    pub page: usize,
    /// Append every line to this file, one JSON object a line
    #[arg(long, value_name = "FILE")]
    pub journal: Option<PathBuf>,
    /// Before each line is answered
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub latency: u64,
    /// Sessions at once
    #[arg(long, value_name = "N")]
    pub session_limit: Option<usize>,
    /// Break each connection in the middle of the answer to its n-th line
    #[arg(long, value_name = "N")]
    pub drop_after: Option<u64>,
    /// One byte at a time, each after so many ms
    #[arg(long, value_name = "MS")]
    pub trickle: Option<u64>,
    /// Answers are binary garbage without end
    #[arg(long)]
    pub garbage: bool,
    /// Lines are never answered
    #[arg(long)]
    pub silent: bool,
}

impl Args {
    fn options(&self) -> Options {
        Options {
            listen: self.listen,
            allow_public: self.allow_public,
            hostname: self.hostname.clone(),
            login: self.login.clone(),
            password: self.password.clone(),
            enable_password: self.enable.clone(),
            page: self.page,
            journal: self.journal.clone(),
            faults: Faults {
                latency_ms: self.latency,
                session_limit: self.session_limit,
                drop_after: self.drop_after,
                trickle_ms: self.trickle,
                garbage: self.garbage,
                silent: self.silent,
                ..Faults::default()
            },
            ..Options::default()
        }
    }
}

/// Runs until `stop` is ready. Prints `listening on ADDR` to standard output before anything
/// else; its state is what `show running-config` says.
pub async fn serve(args: &Args, stop: impl Future<Output = ()>) -> io::Result<()> {
    Sim::start(args.options()).await?.serve("", stop).await
}
