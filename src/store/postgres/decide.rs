//! What becomes of one compact row that the plain statement left: PARAMS overlaid and a NAS
//! chosen, or the reason why not. Reads come before, writes after; nothing here waits but the
//! look at the table of NASes.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::{billing, sql};
use crate::event::{CATALOGUE, Class, Cmd, Params};
use crate::store::Result;

/// Commands that may be expanded, as columns.
pub(super) struct Known {
    pub(super) cmds: Vec<String>,
    pub(super) classes: Vec<i16>,
    pub(super) ttls_ms: Vec<Option<i64>>,
    index: BTreeMap<String, (i16, Option<i64>)>,
}

impl Known {
    pub(super) fn new(own: &[Cmd]) -> Self {
        let catalogue = CATALOGUE
            .iter()
            .filter_map(|(name, _)| Cmd::parse(name).ok());
        let index: BTreeMap<String, (i16, Option<i64>)> = catalogue
            .chain(own.iter().cloned())
            .map(|c| (c.as_str().to_owned(), (c.class().number(), c.ttl_ms())))
            .collect();
        Self {
            cmds: index.keys().cloned().collect(),
            classes: index.values().map(|k| k.0).collect(),
            ttls_ms: index.values().map(|k| k.1).collect(),
            index,
        }
    }

    /// The commands of a class.
    pub(super) fn of_class(&self, class: Class) -> Vec<&str> {
        let number = class.number();
        let fits = self.index.iter().filter(|(_, kept)| kept.0 == number);
        fits.map(|(name, _)| name.as_str()).collect()
    }
}

/// A row that can be expanded.
pub(super) struct Ready {
    pub(super) id: i64,
    pub(super) user: Option<i64>,
    pub(super) abonent: Option<i64>,
    pub(super) nas: i64,
    pub(super) params: String,
    pub(super) class: i16,
    pub(super) ttl_ms: Option<i64>,
    pub(super) tried: bool,
}

/// A compact row with what the billing says of it.
pub(super) struct Wanted {
    pub(super) id: i64,
    cmd: String,
    pub(super) user: Option<i64>,
    nas_id: Option<i64>,
    nas_ip: Option<String>,
    usluga: Option<i64>,
    session: Option<String>,
    own: Option<String>,
    complete: bool,
    tries: i32,
    accounts: Rows,
    services: Rows,
}

/// Rows of a view, or why they cannot be read.
type Rows = std::result::Result<Vec<Map<String, Value>>, String>;

impl Wanted {
    pub(super) fn read(row: &PgRow) -> std::result::Result<Self, sqlx::Error> {
        let maps = |name: &str| -> std::result::Result<Rows, sqlx::Error> {
            let text: Option<&str> = row.try_get(name)?;
            Ok(match text {
                None => Ok(Vec::new()),
                Some(text) => serde_json::from_str(text)
                    .map_err(|e| format!("the billing's view gives what is not readable: {e}")),
            })
        };
        let nas_ip: Option<String> = row.try_get("nas_ip")?;
        Ok(Self {
            id: row.try_get("id")?,
            cmd: row.try_get("cmd")?,
            user: row.try_get("user_id")?,
            nas_id: row.try_get("nas_id")?,
            nas_ip: nas_ip.filter(|ip| !ip.trim().is_empty()),
            usluga: row.try_get("usluga_id")?,
            session: row.try_get("acct_session_id")?,
            own: row.try_get("own")?,
            complete: row.try_get("params_complete")?,
            tries: row.try_get("expand_tries")?,
            accounts: maps("accounts")?,
            services: maps("services")?,
        })
    }

    fn account_nas(&self) -> Option<i64> {
        whole(self.accounts.as_ref().ok()?.first()?.get("nas_id")?)
    }

    pub(super) fn decide(self, known: &Known, nases: &Nases) -> std::result::Result<Ready, String> {
        let name = &self.cmd;
        let Some((class, ttl_ms)) = known.index.get(name).copied() else {
            return Err(Cmd::parse(name).err().unwrap_or_else(|| {
                format!(
                    "unknown cmd {name}: it is neither in the catalogue nor defined by a loaded scheme"
                )
            }));
        };
        let own: Option<Map<String, Value>> = match &self.own {
            None => None,
            Some(text) => serde_json::from_str(text)
                .map_err(|e| format!("params is not a JSON object: {e}"))?,
        };
        let account_nas = self.account_nas();
        let mut services = self.services?.into_iter();
        let service = services.next();
        let mut account = Map::new();
        if let Some(user) = self.user {
            let mut accounts = self.accounts?.into_iter();
            match (accounts.next(), accounts.next()) {
                (Some(one), None) => account = one,
                (None, _) if self.complete => {}
                (None, _) => return Err(format!("user_id {user} has no row in event_params")),
                (Some(_), Some(_)) => {
                    return Err(format!("user_id {user} has several rows in event_params"));
                }
            }
            if let Some(usluga) = self.usluga
                && service.is_none()
                && !self.complete
            {
                return Err(format!(
                    "user_id {user} has no row for usluga_id {usluga} in event_usluga"
                ));
            }
        }
        let abonent = account.get("abonent_id").and_then(whole);
        let mut params = Params::overlaid(account, service, own.as_ref())?;
        let nas = nases.choose(self.nas_id, self.nas_ip.as_deref(), account_nas)?;
        if let Some(session) = self.session {
            params
                .0
                .insert("acct_session_id".to_owned(), Value::String(session));
        }
        if let Some(usluga) = self.usluga {
            params.0.insert("usluga_id".to_owned(), Value::from(usluga));
        }
        Ok(Ready {
            id: self.id,
            user: self.user,
            abonent,
            nas,
            params: Value::Object(params.0).to_string(),
            class,
            ttl_ms,
            tried: self.tries > 0,
        })
    }
}

/// A whole number, also where the billing keeps it as text.
fn whole(value: &Value) -> Option<i64> {
    value
        .as_i64()
        .or_else(|| value.as_str().and_then(|text| text.trim().parse().ok()))
}

/// The NASes that a group may mean.
pub(super) struct Nases {
    ids: BTreeSet<i64>,
    by_ip: BTreeMap<String, Vec<i64>>,
}

impl Nases {
    pub(super) async fn read(
        tx: &mut PgConnection,
        shape: &billing::Shape,
        rows: &[Wanted],
    ) -> Result<Self> {
        let ids: BTreeSet<i64> = rows
            .iter()
            .flat_map(|r| r.nas_id.into_iter().chain(r.account_nas()))
            .collect();
        let ips: BTreeSet<&str> = rows
            .iter()
            .filter_map(|r| r.nas_ip.as_deref())
            .map(str::trim)
            .collect();
        let text = format!(
            "select id::bigint, trim({ip}) from nas
             where id::bigint = any($1) or trim({ip}) = any($2) order by 1",
            ip = shape.text("nas", "ip")
        );
        let found: Vec<(i64, Option<String>)> = sqlx::query_as(sqlx::AssertSqlSafe(text))
            .bind(ids.into_iter().collect::<Vec<_>>())
            .bind(ips.into_iter().collect::<Vec<_>>())
            .fetch_all(tx)
            .await
            .map_err(sql("look NASes up"))?;
        let mut nases = Self {
            ids: BTreeSet::new(),
            by_ip: BTreeMap::new(),
        };
        for (id, ip) in found {
            nases.ids.insert(id);
            nases
                .by_ip
                .entry(ip.unwrap_or_default())
                .or_default()
                .push(id);
        }
        Ok(nases)
    }

    /// The event's `nas_id`, else its `nas_ip`, else the account's.
    fn choose(
        &self,
        id: Option<i64>,
        ip: Option<&str>,
        account: Option<i64>,
    ) -> std::result::Result<i64, String> {
        if id.is_none()
            && let Some(ip) = ip
        {
            let found = self.by_ip.get(ip.trim()).map(Vec::as_slice);
            return match found.unwrap_or_default() {
                [id] => Ok(*id),
                [] => Err(format!("nas_ip {ip} is no NAS's address")),
                _ => Err(format!(
                    "nas_ip {ip} belongs to several NASes: name the nas_id"
                )),
            };
        }
        let Some(id) = id.or(account) else {
            return Err(
                "the account has no NAS, and the event names neither nas_id nor nas_ip".to_owned(),
            );
        };
        if self.ids.contains(&id) {
            Ok(id)
        } else {
            Err(format!("nas_id {id} is not in table nas"))
        }
    }
}
