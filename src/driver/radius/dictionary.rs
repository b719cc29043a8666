//! Names of RADIUS attributes: dictionaries as text, shipped in the binary and added to by the
//! operator. The form is the usual one of RADIUS servers, so that a vendor's file can be used
//! as it is; what cannot stand in a CoA-Request (sub-attributes, numbers above 255) is passed
//! over.
//!
//! ```text
//! VENDOR Mikrotik 14988
//! BEGIN-VENDOR Mikrotik
//! ATTRIBUTE Mikrotik-Rate-Limit 8 string
//! END-VENDOR Mikrotik
//! VALUE Service-Type Authorize-Only 17
//! ```
//!
//! Flags, separated by commas: `has_tag` (RFC 2868 section 3), `encrypt=N` (never sent by us),
//! `session` (ours: says which session a request means). Unknown flags are passed over.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, LazyLock};

/// Files that are part of the binary.
const SHIPPED: &[(&str, &str)] = &[
    ("rfc.txt", include_str!("../../../dictionaries/rfc.txt")),
    (
        "microsoft.txt",
        include_str!("../../../dictionaries/microsoft.txt"),
    ),
    ("cisco.txt", include_str!("../../../dictionaries/cisco.txt")),
    (
        "mikrotik.txt",
        include_str!("../../../dictionaries/mikrotik.txt"),
    ),
    ("erx.txt", include_str!("../../../dictionaries/erx.txt")),
    (
        "juniper.txt",
        include_str!("../../../dictionaries/juniper.txt"),
    ),
    (
        "redback.txt",
        include_str!("../../../dictionaries/redback.txt"),
    ),
    (
        "huawei.txt",
        include_str!("../../../dictionaries/huawei.txt"),
    ),
    (
        "vasexperts.txt",
        include_str!("../../../dictionaries/vasexperts.txt"),
    ),
    (
        "accel-ppp.txt",
        include_str!("../../../dictionaries/accel-ppp.txt"),
    ),
    ("wispr.txt", include_str!("../../../dictionaries/wispr.txt")),
    (
        "nokia-sr.txt",
        include_str!("../../../dictionaries/nokia-sr.txt"),
    ),
];
/// Folder of further dictionaries beside a scheme's `scheme.toml`.
pub const FOLDER: &str = "dictionaries";
/// Files read of such a folder: a provider has a handful of vendors.
const FILES_MAX: usize = 100;
/// Largest file, bytes: the largest known has 300 KiB.
const FILE_MAX: u64 = 2 * 1024 * 1024;
/// Prefix of an attribute without a name: `Attr-25`, `Attr-26.14988.8`.
const RAW: &str = "Attr-";
/// Attribute that carries those of vendors (RFC 2865 section 5.26).
pub const VENDOR_SPECIFIC: u8 = 26;
/// Edits between a misspelt name and the one that is proposed.
const NEAR: usize = 3;

/// How a value stands in a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    Text,
    /// Bytes; written `0x…`, or as text.
    Octets,
    /// 32 bits, also by the name of a `VALUE`.
    Integer,
    /// 64 bits.
    Integer64,
    /// 16 bits.
    Short,
    /// 8 bits.
    Byte,
    /// 32 bits with a sign.
    Signed,
    /// Seconds since 1970.
    Date,
    /// IPv4 address.
    Ipv4,
    /// IPv6 address.
    Ipv6,
    /// IPv4 prefix (RFC 6572).
    Ipv4Prefix,
    /// IPv6 prefix (RFC 3162 section 2.3).
    Ipv6Prefix,
    /// Interface id, 8 bytes `1:2:3:4` (RFC 3162 section 2.2).
    InterfaceId,
    /// MAC address, 6 bytes.
    Ether,
}

impl Kind {
    fn parse(word: &str) -> Self {
        match word.to_ascii_lowercase().as_str() {
            "string" | "text" => Self::Text,
            "integer" | "uint32" => Self::Integer,
            "integer64" | "uint64" => Self::Integer64,
            "short" | "uint16" => Self::Short,
            "byte" | "uint8" => Self::Byte,
            "signed" | "int32" => Self::Signed,
            "date" | "time" => Self::Date,
            "ipaddr" | "ipv4addr" => Self::Ipv4,
            "ipv6addr" => Self::Ipv6,
            "ipv4prefix" => Self::Ipv4Prefix,
            "ipv6prefix" => Self::Ipv6Prefix,
            "ifid" => Self::InterfaceId,
            "ether" => Self::Ether,
            // octets, abinary, tlv, …: as bytes everything can be said.
            _ => Self::Octets,
        }
    }

    /// The word in the dictionaries.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "string",
            Self::Octets => "octets",
            Self::Integer => "integer",
            Self::Integer64 => "integer64",
            Self::Short => "short",
            Self::Byte => "byte",
            Self::Signed => "signed",
            Self::Date => "date",
            Self::Ipv4 => "ipaddr",
            Self::Ipv6 => "ipv6addr",
            Self::Ipv4Prefix => "ipv4prefix",
            Self::Ipv6Prefix => "ipv6prefix",
            Self::InterfaceId => "ifid",
            Self::Ether => "ether",
        }
    }
}

/// One attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute {
    /// As schemes write it.
    pub name: Arc<str>,
    /// Enterprise number; 0 = of the RFCs.
    pub vendor: u32,
    /// 1..=255.
    pub number: u8,
    /// Form of its value.
    pub kind: Kind,
    /// May carry a tag.
    pub tagged: bool,
    /// Would have to be encrypted, which a CoA-Request cannot be (RFC 5176 section 6).
    pub encrypted: bool,
    /// Says which session is meant.
    pub session: bool,
    /// Names of values.
    pub values: Vec<(String, u32)>,
}

/// All known attributes.
#[derive(Debug, Clone, Default)]
pub struct Dictionary {
    vendors: BTreeMap<String, u32>,
    by_name: BTreeMap<Arc<str>, Arc<Attribute>>,
    by_number: BTreeMap<(u32, u8), Arc<Attribute>>,
}

static DEFAULT: LazyLock<Arc<Dictionary>> = LazyLock::new(|| {
    let mut dictionary = Dictionary::default();
    for (file, text) in SHIPPED {
        if let Err(reason) = dictionary.add(file, text) {
            tracing::error!("shipped dictionary: {reason}; this is a bug, please report it");
        }
    }
    Arc::new(dictionary)
});

impl Dictionary {
    /// What is in the binary.
    pub fn shipped() -> Arc<Self> {
        Arc::clone(&DEFAULT)
    }

    /// The shipped attributes and those of `<dir>/*.txt`, which win; without the folder, the
    /// shipped ones. The error names file and line.
    pub fn with_folder(dir: &Path) -> Result<Arc<Self>, String> {
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::shipped()),
            Err(e) => return Err(format!("{} cannot be read: {e}", dir.display())),
        };
        let mut files: Vec<_> = entries
            .filter_map(|entry| entry.ok().map(|e| e.path()))
            .filter(|path| path.extension().is_some_and(|e| e == "txt"))
            .collect();
        files.sort();
        if files.len() > FILES_MAX {
            return Err(format!(
                "{} holds {} files, at most {FILES_MAX} are read",
                dir.display(),
                files.len()
            ));
        }
        let mut all = (*Self::shipped()).clone();
        for file in files {
            let name = file.display().to_string();
            let size = std::fs::metadata(&file).map_or(0, |m| m.len());
            if size > FILE_MAX {
                return Err(format!("{name} is larger than 2 MiB"));
            }
            let text = std::fs::read_to_string(&file)
                .map_err(|e| format!("{name} cannot be read: {e}"))?;
            all.add(&name, &text)?;
        }
        Ok(Arc::new(all))
    }

    /// Adds the attributes of one text; `file` is for errors.
    pub fn add(&mut self, file: &str, text: &str) -> Result<(), String> {
        let mut vendor = 0;
        for (n, line) in text.lines().enumerate() {
            let at = |reason: String| format!("{file}:{}: {reason}", n + 1);
            let line = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                [] => {}
                ["VENDOR", name, id, rest @ ..] => {
                    let id = number(id).ok_or_else(|| at(format!("{id:?} is no number")))?;
                    if let Some(format) = rest.iter().find(|w| w.starts_with("format="))
                        && *format != "format=1,1"
                    {
                        return Err(at(format!(
                            "{format}: only vendors with one byte of type and one of length can be used; write the attribute as Attr-26 with octets"
                        )));
                    }
                    self.vendors.insert((*name).to_owned(), id);
                }
                ["BEGIN-VENDOR", name, ..] => {
                    let known = self.vendors.get(*name);
                    vendor =
                        *known.ok_or_else(|| at(format!("vendor {name} has no VENDOR line")))?;
                }
                ["END-VENDOR", ..] => vendor = 0,
                ["ATTRIBUTE", name, id, kind, flags @ ..] => {
                    self.attribute_line(vendor, name, id, kind, flags)
                        .map_err(at)?;
                }
                ["VALUE", attribute, name, value] => {
                    self.value_line(attribute, name, value).map_err(at)?;
                }
                // Structure that a request cannot carry.
                [
                    "BEGIN-TLV" | "END-TLV" | "FLAGS" | "MEMBER" | "STRUCT" | "PROTOCOL"
                    | "BEGIN-PROTOCOL" | "END-PROTOCOL",
                    ..,
                ] => {}
                [word, ..] => {
                    return Err(at(format!(
                        "{word:?} is not ATTRIBUTE, VALUE, VENDOR, BEGIN-VENDOR or END-VENDOR"
                    )));
                }
            }
        }
        Ok(())
    }

    fn attribute_line(
        &mut self,
        vendor: u32,
        name: &str,
        id: &str,
        kind: &str,
        flags: &[&str],
    ) -> Result<(), String> {
        if id.contains('.') {
            return Ok(()); // a part of a larger attribute
        }
        let id = number(id).ok_or_else(|| format!("{id:?} is no number"))?;
        let Some(id) = u8::try_from(id).ok().filter(|id| *id > 0) else {
            return Ok(()); // for the inner use of some server
        };
        if !is_name(name) {
            return Err(format!("{name:?} is not the name of an attribute"));
        }
        let flags: Vec<&str> = flags.iter().flat_map(|f| f.split(',')).collect();
        // The old form has the vendor in this place.
        let vendor = flags
            .iter()
            .find_map(|f| self.vendors.get(*f).copied())
            .unwrap_or(vendor);
        let attribute = Arc::new(Attribute {
            name: name.into(),
            vendor,
            number: id,
            kind: Kind::parse(kind.split('[').next().unwrap_or_default()),
            tagged: flags.contains(&"has_tag"),
            encrypted: flags.iter().any(|f| f.starts_with("encrypt=")),
            session: flags.contains(&"session"),
            values: Vec::new(),
        });
        self.put(attribute);
        Ok(())
    }

    fn value_line(&mut self, attribute: &str, name: &str, value: &str) -> Result<(), String> {
        let Some(known) = self.by_name.get(attribute) else {
            return Ok(()); // of an attribute that was passed over
        };
        let value = number(value).ok_or_else(|| format!("{value:?} is no number"))?;
        let mut changed = (**known).clone();
        changed.values.retain(|(known, _)| known != name);
        changed.values.push((name.to_owned(), value));
        self.put(Arc::new(changed));
        Ok(())
    }

    fn put(&mut self, attribute: Arc<Attribute>) {
        let key = (attribute.vendor, attribute.number);
        self.by_name
            .insert(Arc::clone(&attribute.name), Arc::clone(&attribute));
        self.by_number.insert(key, attribute);
    }

    /// `Name` or `Name:3` as a scheme writes it; the error says what to do.
    pub fn find(&self, name: &str) -> Result<(Arc<Attribute>, Option<u8>), String> {
        let (bare, tag) = name
            .split_once(':')
            .map_or((name, None), |(bare, tag)| (bare, Some(tag)));
        let attribute = match self.by_name.get(bare) {
            Some(known) => Arc::clone(known),
            None => raw(bare).ok_or_else(|| self.unknown(bare))?,
        };
        if attribute.encrypted {
            return Err(format!(
                "{bare} would have to be encrypted, which CoA cannot do; leave it to the answer at login"
            ));
        }
        let Some(tag) = tag else {
            return Ok((attribute, None));
        };
        // RFC 2868 section 3.1: 0x01 to 0x1f.
        let tag = tag.parse::<u8>().ok().filter(|n| (1..=31).contains(n));
        match tag {
            None => Err(format!("{name:?}: a tag is a number from 1 to 31")),
            Some(_) if !attribute.tagged => Err(format!("{bare} cannot have a tag")),
            tag => Ok((attribute, tag)),
        }
    }

    /// Whether `Name` or `Name:3` says which session is meant.
    pub fn names_session(&self, name: &str) -> bool {
        let bare = name.split(':').next().unwrap_or_default();
        self.by_name.get(bare).is_some_and(|a| a.session)
    }

    /// By numbers; what nobody has named is octets.
    pub fn by_number(&self, vendor: u32, number: u8) -> Arc<Attribute> {
        match self.by_number.get(&(vendor, number)) {
            Some(known) => Arc::clone(known),
            None => Arc::new(nameless(vendor, number)),
        }
    }

    /// Every attribute, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Attribute> {
        self.by_name.values().map(|a| &**a)
    }

    fn unknown(&self, name: &str) -> String {
        let folded = name.to_ascii_lowercase();
        let near = self
            .by_name
            .keys()
            .map(|known| (edits(&known.to_ascii_lowercase(), &folded), known))
            .min();
        let hint = match near {
            Some((far, known)) if far <= NEAR => format!("is {known} meant?"),
            _ => format!(
                "add it to a file {FOLDER}/*.txt beside scheme.toml, or write {RAW}26.<vendor>.<number> with octets"
            ),
        };
        format!("no dictionary has the attribute {name:?}; {hint}")
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b))
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

fn nameless(vendor: u32, number: u8) -> Attribute {
    let name = if vendor == 0 {
        format!("{RAW}{number}")
    } else {
        format!("{RAW}{VENDOR_SPECIFIC}.{vendor}.{number}")
    };
    Attribute {
        name: name.into(),
        vendor,
        number,
        kind: Kind::Octets,
        tagged: false,
        encrypted: false,
        session: false,
        values: Vec::new(),
    }
}

/// `Attr-25`, `Attr-26.14988.8`.
fn raw(name: &str) -> Option<Arc<Attribute>> {
    let rest = name.strip_prefix(RAW)?;
    let (vendor, id) = match rest.split_once('.') {
        Some(("26", rest)) => {
            let (vendor, id) = rest.split_once('.')?;
            (vendor.parse::<u32>().ok().filter(|v| *v > 0)?, id)
        }
        Some(_) => return None,
        None => (0, rest),
    };
    let id = id.parse::<u8>().ok().filter(|id| *id > 0)?;
    Some(Arc::new(nameless(vendor, id)))
}

/// Edits between two words (Levenshtein).
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (n, x) in a.chars().enumerate() {
        let mut before = n;
        let mut left = n + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (cell, y) in row.iter_mut().skip(1).zip(&b) {
            let here = (before + usize::from(x != *y)).min(*cell + 1).min(left + 1);
            before = std::mem::replace(cell, here);
            left = here;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shipped_can_be_read_and_names_are_unique() {
        let mut all = Dictionary::default();
        let mut lines = 0;
        for (file, text) in SHIPPED {
            all.add(file, text).unwrap();
            lines += text.lines().filter(|l| l.starts_with("ATTRIBUTE")).count();
        }
        assert_eq!(all.by_name.len(), lines, "a name is given twice");
        assert_eq!(all.by_number.len(), lines, "a number is given twice");
        let of = |name: &str| {
            let (a, _) = all.find(name).unwrap();
            (a.vendor, a.number, a.kind)
        };
        // MikroTik's manual, RFC 2865, RFC 5176, Cisco, Junos.
        assert_eq!(of("Mikrotik-Rate-Limit"), (14_988, 8, Kind::Text));
        assert_eq!(of("Framed-IP-Address"), (0, 8, Kind::Ipv4));
        assert_eq!(of("Error-Cause"), (0, 101, Kind::Integer));
        assert_eq!(of("Cisco-AVPair"), (9, 1, Kind::Text));
        assert_eq!(of("ERX-Service-Activate:3"), (4874, 65, Kind::Text));
        assert_eq!(of("VasExperts-Policing-Profile"), (43_823, 1, Kind::Text));
        assert!(all.names_session("Acct-Session-Id") && !all.names_session("Class"));
    }

    #[test]
    fn names_that_cannot_be_sent_say_why() {
        let all = Dictionary::shipped();
        for (name, said) in [
            ("Mikrotik-Rate-Limt", "is Mikrotik-Rate-Limit meant?"),
            ("mikrotik-rate-limit", "is Mikrotik-Rate-Limit meant?"),
            ("Unheard-Of-Attribute", "dictionaries/*.txt"),
            ("User-Password", "encrypted"),
            ("Filter-Id:1", "cannot have a tag"),
            ("Tunnel-Type:0", "from 1 to 31"),
            ("Tunnel-Type:32", "from 1 to 31"),
            ("Attr-0", "no dictionary"),
            ("Attr-26.0.1", "no dictionary"),
            ("Attr-256", "no dictionary"),
        ] {
            let reason = all.find(name).unwrap_err();
            assert!(reason.contains(said), "{name}: {reason}");
        }
        assert_eq!(all.find("Attr-26.14988.8").unwrap().0.vendor, 14_988);
    }

    #[test]
    fn files_of_others_are_read_and_mistakes_have_a_line() {
        let mut all = Dictionary::default();
        let text = "VENDOR Acme 0x10 format=1,1\nBEGIN-VENDOR\tAcme\nATTRIBUTE Acme-A 1 octets[4] has_tag,concat # x\nATTRIBUTE Acme-B 2 tlv\nATTRIBUTE Acme-C 2.1 string\nVALUE Acme-A One 1\nEND-VENDOR Acme\nATTRIBUTE Acme-D 4 integer Acme\nATTRIBUTE Inner 1000 string\n";
        all.add("acme", text).unwrap();
        assert_eq!(all.find("Acme-D").unwrap().0.vendor, 16);
        assert!(all.find("Acme-A:1").is_ok() && all.find("Inner").is_err());
        for (text, said) in [
            ("\nATTRIBUTE A x string", "acme:2"),
            ("BEGIN-VENDOR Nobody", "no VENDOR line"),
            ("VENDOR A 1 format=2,2", "format=2,2"),
            ("$INCLUDE other", "$INCLUDE"),
        ] {
            let reason = Dictionary::default().add("acme", text).unwrap_err();
            assert!(reason.contains(said), "{reason}");
        }
    }

    #[test]
    fn a_folder_adds_and_wins() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("my.txt"),
            "VENDOR My 99999\nBEGIN-VENDOR My\nATTRIBUTE My-Session 1 string session\nEND-VENDOR My\n",
        )
        .unwrap();
        std::fs::write(dir.path().join("README"), "not read").unwrap();
        let all = Dictionary::with_folder(dir.path()).unwrap();
        assert!(all.names_session("My-Session") && all.find("User-Name").is_ok());
        assert!(Dictionary::with_folder(&dir.path().join("none")).is_ok());
        std::fs::write(dir.path().join("z.txt"), "WHAT").unwrap();
        let reason = Dictionary::with_folder(dir.path()).unwrap_err();
        assert!(reason.contains("z.txt:1"), "{reason}");
    }
}
