//! `nas_event_daemon sim ssh`: the simulator as a process.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::{Faults, Options, Sim};

/// Arguments of `sim ssh`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address; port 0 = chosen by the system
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:2222")]
    pub listen: SocketAddr,
    /// Also listen on addresses that are not loopback
    #[arg(long)]
    pub allow_public: bool,
    /// Account that may log in
    #[arg(long, default_value = "admin")]
    pub login: String,
    /// Its password; empty = no login by password
    #[arg(
        long,
        env = "NED_SIM_PASSWORD",
        hide_env_values = true,
        default_value = ""
    )]
    pub password: String,
    /// The password by keyboard-interactive only
    #[arg(long)]
    pub interactive_only: bool,
    /// Public key that may log in, a file as ~/.ssh/id_ed25519.pub
    #[arg(long, value_name = "FILE")]
    pub authorized: Option<PathBuf>,
    /// What commands answer: JSON, a list of {"like": "REGEX", "stdout", "stderr", "status",
    /// "delay_ms"}; what fits none is answered with nothing and status 0
    #[arg(long, value_name = "FILE")]
    pub answers: Option<PathBuf>,
    /// Append every command to this file, one JSON object a line
    #[arg(long, value_name = "FILE")]
    pub journal: Option<PathBuf>,
    /// Before each command is answered
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub latency: u64,
    /// Sessions of one connection at once
    #[arg(long, value_name = "N")]
    pub session_limit: Option<usize>,
    /// Break each connection in the middle of the answer to its n-th command
    #[arg(long, value_name = "N")]
    pub drop_after: Option<u64>,
    /// One byte of an answer at a time, each after so many ms
    #[arg(long, value_name = "MS")]
    pub trickle: Option<u64>,
    /// Answers never end
    #[arg(long)]
    pub endless: bool,
    /// Commands are never answered
    #[arg(long)]
    pub silent: bool,
    /// No exit status is sent
    #[arg(long)]
    pub no_status: bool,
}

impl Args {
    fn options(&self) -> io::Result<Options> {
        let read = |file: &PathBuf| {
            std::fs::read_to_string(file).map_err(|e| {
                let text = format!("cannot read {}: {e}", file.display());
                io::Error::new(e.kind(), text)
            })
        };
        let answers = match &self.answers {
            None => Vec::new(),
            Some(file) => serde_json::from_str(&read(file)?).map_err(|e| {
                let text = format!("{} holds no list of answers: {e}", file.display());
                io::Error::new(io::ErrorKind::InvalidData, text)
            })?,
        };
        Ok(Options {
            listen: self.listen,
            allow_public: self.allow_public,
            login: self.login.clone(),
            password: self.password.clone(),
            interactive_only: self.interactive_only,
            authorized: self.authorized.as_ref().map(read).transpose()?,
            answers,
            journal: self.journal.clone(),
            faults: Faults {
                latency_ms: self.latency,
                session_limit: self.session_limit,
                drop_after: self.drop_after,
                trickle_ms: self.trickle,
                endless: self.endless,
                silent: self.silent,
                no_status: self.no_status,
                ..Faults::default()
            },
        })
    }
}

/// Runs until `stop` is ready. Prints `listening on ADDR` and `host key KEY` to standard output
/// before anything else.
pub async fn serve(args: &Args, stop: impl Future<Output = ()>) -> io::Result<()> {
    let sim = Sim::start(args.options()?).await?;
    let key = format!("host key {}\n", sim.host_key());
    sim.serve(&key, stop).await
}
