//! The command line's way onto the compact stack: through the daemon, which then expands at
//! once, or into the database if no daemon runs. The same checks at both.

use std::sync::Arc;

use serde_json::{Value, json};

use super::ctl::Ctl;
use super::exit::{FAILED, Failed, USAGE, remark};
use super::{scheme, who};
use crate::config::Config;
use crate::event::{Cmd, EventId};
use crate::intake::compact;
use crate::store::{Post, Posted, Store};

/// Where events of this call go.
pub struct Inbox {
    ctl: Ctl,
    store: Arc<dyn Store>,
    config: Config,
    /// Set once no daemon was found: commands that the NASes' schemes define.
    direct: Option<Vec<Cmd>>,
    /// That no daemon runs was said.
    said: bool,
}

impl Inbox {
    /// Nothing is sent yet.
    pub fn new(config: &Config, store: Arc<dyn Store>) -> Result<Self, Failed> {
        Ok(Self {
            ctl: Ctl::new(config)?,
            store,
            config: config.clone(),
            direct: None,
            said: false,
        })
    }

    /// Whether the events went into the database, for a daemon to come.
    pub fn is_alone(&self) -> bool {
        self.direct.is_some()
    }

    /// Posts events, all or nothing; the ids come in their order.
    pub async fn post(&mut self, events: Vec<Value>) -> Result<Vec<EventId>, Failed> {
        if self.direct.is_none() {
            let body = json!({ "events": events });
            if let Some(answer) = self.ctl.post("/api/v1/events", &body).await? {
                let ids = answer
                    .get("ids")
                    .and_then(|ids| serde_json::from_value(ids.clone()).ok());
                return ids.ok_or_else(|| {
                    Failed::new(FAILED, "the daemon's answer holds no ids; is it newer?")
                });
            }
            self.direct = Some(scheme::own_cmds(&self.config, self.store.as_ref()).await?);
        }
        let cmds = self.direct.as_deref().unwrap_or_default();
        let events = checked(events, cmds)?;
        if !self.said {
            self.said = true;
            remark(format!(
                "no daemon listens on {}: written to the database, it will be tried when one runs",
                self.ctl.socket()
            ));
        }
        let who = who();
        let post = Post {
            events: &events,
            guard: None,
            who: Some(&who),
        };
        let done = self.store.post_all(&[post]).await?.into_iter().next();
        let lost = || {
            Failed::new(
                FAILED,
                "the database does not say what became of the events",
            )
        };
        match done.ok_or_else(lost)?? {
            Posted::New(ids) | Posted::Again(ids) => Ok(ids),
            Posted::Conflict => Err(Failed::new(FAILED, "the database knows a key of this call")),
        }
    }
}

/// Events as the daemon's own door would read them.
pub fn checked(
    events: Vec<Value>,
    cmds: &[Cmd],
) -> Result<Vec<crate::event::CompactEvent>, Failed> {
    let each = events.into_iter().map(|event| {
        compact::read(event, "cli", cmds)
            .map_err(|reason| Failed::new(USAGE, format!("{reason}\nhint: nothing was stored")))
    });
    each.collect()
}
