//! `nas_event_daemon sim mikrotik`: the simulator as a process, with an HTTP door on loopback
//! through which its state and its behaviour can be read and changed.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::sim::Identity;
use crate::sim::control::{self, Door};
use crate::sim::mikrotik::{Faults, Options, Sim, State};

/// Arguments of `sim mikrotik`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address of the API; port 0 = chosen by the system
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8728")]
    pub listen: SocketAddr,
    /// Also listen on addresses that are not loopback
    #[arg(long)]
    pub allow_public: bool,
    /// Account that may log in
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
    /// State to start with: JSON, menu path to list of rows
    #[arg(long, value_name = "FILE")]
    pub load: Option<PathBuf>,
    /// Append every state-changing sentence to this file, one JSON object a line
    #[arg(long, value_name = "FILE")]
    pub journal: Option<PathBuf>,
    /// Before each sentence is carried out
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub latency: u64,
    /// For each printed row
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub row_latency: u64,
    /// Before a login is answered
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub login_latency: u64,
    /// Logged-in sessions at once
    #[arg(long, value_name = "N")]
    pub session_limit: Option<usize>,
    /// Refuse every n-th login
    #[arg(long, value_name = "N")]
    pub refuse_every: Option<u64>,
    /// Break each connection in the middle of the reply to its n-th sentence
    #[arg(long, value_name = "N")]
    pub drop_after: Option<u64>,
    /// `.tag` as the last word of replies
    #[arg(long)]
    pub tag_last: bool,
    /// Login by challenge, as before RouterOS 6.43
    #[arg(long)]
    pub old_login: bool,
    /// RouterOS version to report; from 7.18 on an empty print is answered with !empty
    #[arg(long = "ros-version", value_name = "VERSION")]
    pub ros_version: Option<String>,
    /// Speak TLS with this certificate (PEM), as the service api-ssl
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Longest accepted word in bytes
    #[arg(long, value_name = "BYTES")]
    pub word_max: Option<usize>,
    /// HTTP on loopback: GET and PUT /state, GET and PUT /faults, GET /seen
    #[arg(long, value_name = "ADDR")]
    pub control: Option<SocketAddr>,
}

impl Args {
    fn options(&self) -> Options {
        let base = Options::default();
        Options {
            listen: self.listen,
            allow_public: self.allow_public,
            login: self.login.clone(),
            password: self.password.clone(),
            old_login: self.old_login,
            version: self.ros_version.clone().unwrap_or(base.version),
            identity: base.identity,
            word_max: self.word_max.unwrap_or(base.word_max),
            journal: self.journal.clone(),
            tls: match (&self.tls_cert, &self.tls_key) {
                (Some(cert), Some(key)) => Some(Identity {
                    cert: cert.clone(),
                    key: key.clone(),
                }),
                _ => None,
            },
            faults: Faults {
                latency_ms: self.latency,
                row_latency_ms: self.row_latency,
                login_latency_ms: self.login_latency,
                session_limit: self.session_limit,
                refuse_every: self.refuse_every,
                drop_after: self.drop_after,
                tag_last: self.tag_last,
                ..Faults::default()
            },
        }
    }
}

/// Runs until `stop` is ready. Prints `listening on ADDR` and, with a control door,
/// `control on ADDR` to standard output before anything else.
pub async fn serve(args: &Args, stop: impl Future<Output = ()>) -> io::Result<()> {
    let door = Door {
        dump: |state: &State| state.dump(),
        load: |state: &State, new| state.load(new),
    };
    let sim = Sim::start(args.options())?;
    control::serve(sim, door, args.load.as_deref(), args.control, stop).await
}
