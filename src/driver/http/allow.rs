//! Where the host of `nas.http_url` may lead: `http_allow` of `nas.vars`. A name is as trustworthy
//! as whoever answers for it. With a list, an answer that leads elsewhere (to the daemon's own
//! machine, to the metadata of a cloud) reaches nobody, whenever it changes.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{ClientBuilder, Url};
use serde_json::{Map, Value};

/// Networks of one NAS: its gateways, not a routing table.
const NETWORKS_MAX: usize = 64;

/// Networks that may be connected to; without any, all of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Allow(Vec<IpNet>);

impl Allow {
    /// `http_allow` of `nas.vars`: a list of networks and addresses, or one text with them.
    pub fn of(vars: &Map<String, Value>) -> Result<Self, String> {
        let texts: Vec<&str> = match vars.get("http_allow") {
            None | Some(Value::Null) => return Ok(Self::default()),
            Some(Value::String(text)) if text.is_empty() => return Ok(Self::default()),
            Some(Value::String(text)) => {
                let parts = text.split([',', ' ']);
                parts.filter(|part| !part.is_empty()).collect()
            }
            // What is no text is no network, and is not passed over.
            Some(Value::Array(items)) => items
                .iter()
                .map(|item| item.as_str().unwrap_or_default())
                .collect(),
            Some(_) => Vec::new(),
        };
        let networks: Option<Vec<_>> = texts.into_iter().map(network).collect();
        networks
            .filter(|networks| (1..=NETWORKS_MAX).contains(&networks.len()))
            .map(Self)
            .ok_or_else(|| {
                format!(
                    "http_allow in nas.vars is not 1 to {NETWORKS_MAX} networks, for example \
                     [\"10.0.0.0/8\", \"2001:db8::/32\"]"
                )
            })
    }

    fn holds(&self, ip: IpAddr) -> bool {
        // An IPv4 address in the dress of IPv6 leads to the same machine.
        let ip = ip.to_canonical();
        self.0.is_empty() || self.0.iter().any(|network| network.contains(&ip))
    }

    /// The address that stands in `url`, if one does: it is connected to without being looked up.
    pub(super) fn check(&self, url: &Url) -> Result<(), String> {
        let host = url.host_str().unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        match bare.parse() {
            Ok(ip) if !self.holds(ip) => Err(outside("http_url", &[ip])),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Names are looked up by the system as ever, and what they lead to is sifted.
    pub(super) fn sift(&self, builder: ClientBuilder) -> ClientBuilder {
        if self.0.is_empty() {
            return builder;
        }
        builder.dns_resolver(self.clone())
    }
}

impl Resolve for Allow {
    fn resolve(&self, name: Name) -> Resolving {
        let allow = self.clone();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let (inside, others): (Vec<SocketAddr>, Vec<SocketAddr>) =
                found.partition(|at| allow.holds(at.ip()));
            if inside.is_empty() {
                let others: Vec<_> = others.iter().map(SocketAddr::ip).collect();
                return Err(outside(name.as_str(), &others).into());
            }
            Ok(Box::new(inside.into_iter()) as Addrs)
        })
    }
}

fn outside(host: &str, addresses: &[IpAddr]) -> String {
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    format!(
        "{host} leads to {}, which http_allow in nas.vars does not hold",
        addresses.join(" and ")
    )
}

/// A network, or one address.
fn network(text: &str) -> Option<IpNet> {
    let text = text.trim();
    text.parse()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .ok()
}
