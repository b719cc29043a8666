//! Simulated routers in the process of the test, with a journal of their own.

use std::path::{Path, PathBuf};

use nas_event_daemon::sim::mikrotik::{Faults, Options, Sim};

use super::daemon::Lab;

/// Login of every simulated router here.
pub const LOGIN: &str = "ned";
/// Its password.
pub const PASSWORD: &str = "servicemode";

/// A RouterOS simulator; it ends when dropped.
pub struct Router {
    pub sim: Sim,
    pub journal: PathBuf,
}

impl Router {
    /// Starts one that writes its journal to `<dir>/<name>.jsonl`.
    pub fn start(dir: &Path, name: &str, faults: Faults) -> Self {
        let journal = dir.join(format!("{name}.jsonl"));
        let options = Options {
            login: LOGIN.to_owned(),
            password: PASSWORD.to_owned(),
            journal: Some(journal.clone()),
            faults,
            ..Options::default()
        };
        Self {
            sim: Sim::start(options).unwrap(),
            journal,
        }
    }

    /// Adds the NAS row and the credentials that lead to it.
    pub async fn serve_as(&self, lab: &Lab, nas: i64, oss_path: &str, forks: i64) {
        let port = self.sim.addr().port().to_string();
        lab.nas(nas, oss_path, forks, &[("api_port", port)]).await;
        lab.secret(nas, LOGIN, PASSWORD).await;
    }

    /// Addresses in one address list, sorted.
    pub fn listed(&self, list: &str) -> Vec<String> {
        let rows = self.sim.rows("/ip/firewall/address-list");
        let mut found: Vec<String> = rows
            .iter()
            .filter(|row| row["list"] == list)
            .map(|row| row["address"].clone())
            .collect();
        found.sort();
        found
    }
}
