//! The menus that the simulator has, with every property that it knows; anything else is
//! refused as RouterOS refuses it (MikroTik manual, the page of each menu).

use crate::sim::mikrotik::values::Kind;

/// One menu with rows.
#[derive(Debug)]
pub(crate) struct Menu {
    /// `/queue/simple`.
    pub(crate) path: &'static str,
    /// Commands beside `print`.
    pub(crate) verbs: &'static [&'static str],
    /// Properties, in the order of answers.
    pub(crate) props: &'static [Prop],
    /// Properties that no two rows share together, and the refusal.
    pub(crate) unique: Option<(&'static [&'static str], &'static str)>,
    /// `set` and `remove` also take the name as `.id`.
    pub(crate) by_name: bool,
    /// Dynamic rows can be removed by hand.
    pub(crate) dynamic_goes: bool,
}

/// One property.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Prop {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// Whether `add` and `set` take it.
    pub(crate) writable: bool,
    pub(crate) required: bool,
    pub(crate) default: Option<&'static str>,
}

const fn prop(name: &'static str, kind: Kind) -> Prop {
    Prop {
        name,
        kind,
        writable: true,
        required: false,
        default: None,
    }
}

impl Prop {
    const fn or(mut self, default: &'static str) -> Self {
        self.default = Some(default);
        self
    }
    const fn required(mut self) -> Self {
        self.required = true;
        self
    }
    const fn shown(mut self) -> Self {
        self.writable = false;
        self
    }
}

const EDIT: &[&str] = &["add", "set", "remove", "enable", "disable"];
const COMMENT: Prop = prop("comment", Kind::Text);
const DISABLED: Prop = prop("disabled", Kind::Flag).or("false");
const DYNAMIC: Prop = prop("dynamic", Kind::Flag).or("false").shown();
const ENTRY: &str = "failure: already have such entry";

/// All menus with rows.
pub(crate) const MENUS: &[Menu] = &[
    Menu {
        path: "/queue/simple",
        verbs: EDIT,
        props: &[
            prop("name", Kind::Name),
            prop("target", Kind::Targets).or(""),
            prop("dst", Kind::Text),
            prop("parent", Kind::Name).or("none"),
            prop("packet-marks", Kind::Text).or(""),
            prop("priority", Kind::Pair).or("8/8"),
            prop("queue", Kind::Pair).or("default-small/default-small"),
            prop("limit-at", Kind::RatePair).or("0/0"),
            prop("max-limit", Kind::RatePair).or("0/0"),
            prop("burst-limit", Kind::RatePair).or("0/0"),
            prop("burst-threshold", Kind::RatePair).or("0/0"),
            prop("burst-time", Kind::Pair).or("0s/0s"),
            prop("bucket-size", Kind::Pair).or("0.1/0.1"),
            prop("total-max-limit", Kind::Rate),
            prop("total-limit-at", Kind::Rate),
            prop("time", Kind::Text),
            prop("bytes", Kind::Pair).or("0/0").shown(),
            prop("packets", Kind::Pair).or("0/0").shown(),
            prop("rate", Kind::Pair).or("0/0").shown(),
            prop("dropped", Kind::Pair).or("0/0").shown(),
            prop("invalid", Kind::Flag).or("false").shown(),
            DYNAMIC,
            DISABLED,
            COMMENT,
        ],
        unique: Some((&["name"], "failure: already have such name")),
        by_name: true,
        dynamic_goes: false,
    },
    Menu {
        path: "/ip/firewall/address-list",
        verbs: EDIT,
        props: &[
            prop("list", Kind::Name).required(),
            prop("address", Kind::ListAddress).required(),
            prop("creation-time", Kind::Text).shown(),
            prop("timeout", Kind::Duration),
            DYNAMIC,
            DISABLED,
            COMMENT,
        ],
        unique: Some((&["list", "address"], ENTRY)),
        by_name: false,
        dynamic_goes: true,
    },
    Menu {
        path: "/ipv6/firewall/address-list",
        verbs: EDIT,
        props: &[
            prop("list", Kind::Name).required(),
            prop("address", Kind::ListAddress6).required(),
            prop("creation-time", Kind::Text).shown(),
            prop("timeout", Kind::Duration),
            DYNAMIC,
            DISABLED,
            COMMENT,
        ],
        unique: Some((&["list", "address"], ENTRY)),
        by_name: false,
        dynamic_goes: true,
    },
    Menu {
        path: "/ppp/active",
        verbs: &["remove"],
        props: &[
            prop("name", Kind::Name).shown(),
            prop("service", Kind::Text).or("pppoe").shown(),
            prop("caller-id", Kind::Text).shown(),
            prop("address", Kind::Address).shown(),
            prop("uptime", Kind::Duration).or("0s").shown(),
            prop("encoding", Kind::Text).or("").shown(),
            prop("session-id", Kind::Text).shown(),
            prop("limit-bytes-in", Kind::Count).or("0").shown(),
            prop("limit-bytes-out", Kind::Count).or("0").shown(),
            prop("radius", Kind::Flag).or("true").shown(),
            COMMENT,
        ],
        unique: None,
        by_name: false,
        dynamic_goes: true,
    },
    Menu {
        path: "/ppp/secret",
        verbs: EDIT,
        props: &[
            prop("name", Kind::Name).required(),
            prop("service", Kind::Name).or("any"),
            prop("caller-id", Kind::Text).or(""),
            prop("password", Kind::Text).or(""),
            prop("profile", Kind::Name).or("default"),
            prop("local-address", Kind::Address),
            prop("remote-address", Kind::Address),
            prop("remote-ipv6-prefix", Kind::Text),
            prop("routes", Kind::Text).or(""),
            prop("ipv6-routes", Kind::Text).or(""),
            prop("limit-bytes-in", Kind::Count).or("0"),
            prop("limit-bytes-out", Kind::Count).or("0"),
            prop("last-logged-out", Kind::Text).shown(),
            DISABLED,
            COMMENT,
        ],
        unique: Some((
            &["name", "service"],
            "failure: secret with the same name already exists",
        )),
        by_name: true,
        dynamic_goes: true,
    },
    Menu {
        path: "/ip/firewall/connection",
        verbs: &["remove"],
        props: &[
            prop("protocol", Kind::Text).shown(),
            prop("src-address", Kind::Endpoint).shown(),
            prop("dst-address", Kind::Endpoint).shown(),
            prop("reply-src-address", Kind::Endpoint).shown(),
            prop("reply-dst-address", Kind::Endpoint).shown(),
            prop("tcp-state", Kind::Text).shown(),
            prop("timeout", Kind::Duration).or("0s").shown(),
            prop("connection-mark", Kind::Text).shown(),
            prop("orig-bytes", Kind::Count).or("0").shown(),
            prop("repl-bytes", Kind::Count).or("0").shown(),
        ],
        unique: None,
        by_name: false,
        dynamic_goes: true,
    },
    Menu {
        path: "/ip/dhcp-server/lease",
        verbs: &["add", "set", "remove", "enable", "disable", "make-static"],
        props: &[
            prop("address", Kind::Address).required(),
            prop("mac-address", Kind::Mac),
            prop("client-id", Kind::Text),
            prop("address-lists", Kind::Text).or(""),
            prop("server", Kind::Name).or("all"),
            prop("dhcp-option", Kind::Text).or(""),
            prop("lease-time", Kind::Duration),
            prop("rate-limit", Kind::Text),
            prop("block-access", Kind::Flag),
            prop("status", Kind::Text).or("waiting").shown(),
            prop("expires-after", Kind::Duration).shown(),
            prop("last-seen", Kind::Text).or("never").shown(),
            prop("active-address", Kind::Address).shown(),
            prop("active-mac-address", Kind::Mac).shown(),
            prop("host-name", Kind::Text).shown(),
            prop("agent-circuit-id", Kind::Text).shown(),
            prop("agent-remote-id", Kind::Text).shown(),
            prop("radius", Kind::Flag).or("false").shown(),
            prop("blocked", Kind::Flag).or("false").shown(),
            DYNAMIC,
            DISABLED,
            COMMENT,
        ],
        unique: Some((
            &["address", "server"],
            "failure: already have static lease for this address",
        )),
        by_name: false,
        dynamic_goes: true,
    },
    Menu {
        path: "/ip/hotspot/active",
        verbs: &["remove"],
        props: &[
            prop("server", Kind::Text).shown(),
            prop("user", Kind::Text).shown(),
            prop("address", Kind::Address).shown(),
            prop("mac-address", Kind::Mac).shown(),
            prop("login-by", Kind::Text).shown(),
            prop("uptime", Kind::Duration).or("0s").shown(),
            prop("session-id", Kind::Text).shown(),
            prop("bytes-in", Kind::Count).or("0").shown(),
            prop("bytes-out", Kind::Count).or("0").shown(),
            prop("radius", Kind::Flag).or("false").shown(),
            COMMENT,
        ],
        unique: None,
        by_name: false,
        dynamic_goes: true,
    },
    Menu {
        path: "/ip/hotspot/cookie",
        verbs: &["remove"],
        props: &[
            prop("user", Kind::Text).shown(),
            prop("domain", Kind::Text).shown(),
            prop("mac-address", Kind::Mac).shown(),
            prop("expires-in", Kind::Duration).shown(),
            prop("mac-cookie", Kind::Flag).shown(),
        ],
        unique: None,
        by_name: false,
        dynamic_goes: true,
    },
    Menu {
        path: "/ip/hotspot/host",
        verbs: &["remove"],
        props: &[
            prop("mac-address", Kind::Mac).shown(),
            prop("address", Kind::Address).shown(),
            prop("to-address", Kind::Address).shown(),
            prop("server", Kind::Text).shown(),
            prop("uptime", Kind::Duration).or("0s").shown(),
            prop("idle-time", Kind::Duration).or("0s").shown(),
            prop("authorized", Kind::Flag).or("false").shown(),
            prop("bypassed", Kind::Flag).or("false").shown(),
            prop("comment", Kind::Text).shown(),
        ],
        unique: None,
        by_name: false,
        dynamic_goes: true,
    },
    Menu {
        path: "/ip/hotspot/ip-binding",
        verbs: EDIT,
        props: &[
            prop("mac-address", Kind::Mac),
            prop("address", Kind::Address),
            prop("to-address", Kind::Address),
            prop("server", Kind::Name).or("all"),
            prop("type", Kind::Name).or("regular"),
            prop("bypassed", Kind::Flag).or("false").shown(),
            prop("blocked", Kind::Flag).or("false").shown(),
            DISABLED,
            COMMENT,
        ],
        unique: None,
        by_name: false,
        dynamic_goes: false,
    },
    Menu {
        path: "/ip/arp",
        verbs: EDIT,
        props: &[
            prop("address", Kind::Address).required(),
            prop("mac-address", Kind::Mac),
            prop("interface", Kind::Name).required(),
            prop("published", Kind::Flag).or("false"),
            prop("invalid", Kind::Flag).or("false").shown(),
            prop("DHCP", Kind::Flag).or("false").shown(),
            prop("complete", Kind::Flag).or("true").shown(),
            prop("status", Kind::Text).shown(),
            DYNAMIC,
            DISABLED,
            COMMENT,
        ],
        unique: Some((&["address", "interface"], ENTRY)),
        by_name: false,
        dynamic_goes: true,
    },
];

impl Menu {
    /// By path.
    pub(crate) fn find(path: &str) -> Option<&'static Self> {
        MENUS.iter().find(|m| m.path == path)
    }

    /// A property by name.
    pub(crate) fn prop(&self, name: &str) -> Option<&'static Prop> {
        self.props.iter().find(|p| p.name == name)
    }
}
