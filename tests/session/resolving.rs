//! Which scheme a NAS row leads to, and the reasons when it leads nowhere.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nas_event_daemon::config::Paths;
use nas_event_daemon::nas::Nas;
use nas_event_daemon::scheme::Execute;
use nas_event_daemon::scheme::resolve::{hash, resolve};

use crate::bench::nas;

struct Place {
    dir: tempfile::TempDir,
    paths: Paths,
}

fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let paths = Paths {
        oss: dir.path().join("oss"),
        share: dir.path().join("share"),
        ..Paths::default()
    };
    Place { dir, paths }
}

impl Place {
    fn put(&self, file: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// The identity's (kind, directory, script), `native DIR`, or the reason.
    fn of(&self, oss_path: Option<&str>, script_name: Option<&str>) -> String {
        let nas = Nas {
            oss_path: oss_path.map(Into::into),
            script_name: script_name.map(Into::into),
            ..nas()
        };
        let asked = RefCell::new(String::new());
        let native = |dir: &Path| -> Result<Arc<dyn Execute>, String> {
            *asked.borrow_mut() = format!("native {}", dir.display());
            Err("asked".to_owned())
        };
        let text = match resolve(&nas, &self.paths, &native) {
            Ok(scheme) => {
                let identity = scheme.identity();
                assert_eq!(identity.hash.len(), 16);
                let shown = |path: &Option<PathBuf>| {
                    path.as_ref()
                        .map_or_else(|| "-".to_owned(), |p| p.display().to_string())
                };
                format!(
                    "{} {} {}",
                    identity.kind,
                    shown(&identity.oss_pathname),
                    shown(&identity.script_name)
                )
            }
            Err(_) if !asked.borrow().is_empty() => asked.take(),
            Err(reason) => reason,
        };
        text.replace(&self.dir.path().display().to_string(), "")
    }
}

#[test]
fn the_search_goes_local_core_shipped() {
    let place = place();
    place.put("share/oss/core/Mikrotik-Simple/scheme.toml", "");
    assert_eq!(
        place.of(Some("Mikrotik-Simple"), None),
        "native /share/oss/core/Mikrotik-Simple"
    );
    place.put("oss/core/Mikrotik-Simple/scheme.toml", "");
    place.put(
        "oss/core/Mikrotik-Simple/bin/session",
        "user_add() { :; }\n",
    );
    assert_eq!(
        place.of(Some("Mikrotik-Simple"), None),
        "session /oss/core/Mikrotik-Simple -"
    );
    place.put("oss/local/Mikrotik-Simple/scheme.toml", "");
    assert_eq!(
        place.of(Some(" Mikrotik-Simple/ "), None),
        "native /oss/local/Mikrotik-Simple/"
    );
    let absolute = place.dir.path().join("oss/core/Mikrotik-Simple");
    assert_eq!(
        place.of(absolute.to_str(), None),
        "session /oss/core/Mikrotik-Simple -"
    );
}

#[test]
fn a_script_name_serves_where_no_scheme_does() {
    let place = place();
    let old = place.put("old.sh", "exit 0\n");
    place.put("oss/core/Mine/events.sh", "exit 0\n");
    assert_eq!(place.of(None, old.to_str()), "script - /old.sh");
    assert_eq!(
        place.of(Some("Mine"), Some("events.sh")),
        "script /oss/core/Mine /oss/core/Mine/events.sh"
    );
    // Who names one means it.
    place.put("oss/core/Mine/bin/session", "user_add() { :; }\n");
    assert_eq!(
        place.of(Some("Mine"), Some("events.sh")),
        "script /oss/core/Mine /oss/core/Mine/events.sh"
    );
    assert_eq!(
        place.of(Some("Mine"), Some(" ")),
        "session /oss/core/Mine -"
    );
}

#[test]
fn reasons_say_what_is_missing() {
    let place = place();
    place.put("oss/core/Empty/readme", "");
    place.put("oss/core/Broken/bin/session", "user_add() {\n");
    place.put(
        "oss/core/Bom/bin/session",
        "\u{feff}user_add() {\r\n:\r\n}\r\n",
    );
    let file = place.put("file", "");
    let reason = |oss, script| place.of(oss, script);
    assert!(reason(None, Some(" ")).contains("no scheme and no script"));
    assert!(
        reason(Some("Nowhere"), None).contains("directory missing: looked for /oss/local/Nowhere")
    );
    assert!(reason(Some("/no/such"), None).contains("directory missing: looked for /no/such"));
    assert!(reason(file.to_str(), None).contains("not a directory"));
    assert!(reason(Some("Empty"), None).contains("not initialised"));
    assert!(reason(None, Some("/no/such.sh")).contains("script missing: looked for /no/such.sh"));
    assert!(reason(Some("Empty"), Some("no.sh")).contains("/oss/core/Empty/no.sh"));
    assert!(reason(Some("../Empty"), None).contains("'..'"));
    assert!(reason(Some("Empty"), Some("../../old.sh")).contains("'..'"));
    let broken = reason(Some("Broken"), None);
    assert!(
        broken.starts_with("bin/session cannot be loaded: bin/session"),
        "{broken}"
    );
    assert!(broken.contains("line 2"), "{broken}");
    assert_eq!(reason(Some("Bom"), None), "session /oss/core/Bom -");
    place.put(
        "oss/core/Bom/scheme.toml",
        "observe = true\n\ndrivers = \"ssh\"\n",
    );
    let both = reason(Some("Bom"), None);
    assert!(
        both.contains("Bom/scheme.toml:3: error: unknown key `drivers`"),
        "{both}"
    );
}

#[test]
fn the_hash_follows_content_and_names() {
    let place = place();
    let session = place.put("s/bin/session", "a");
    let dir = place.dir.path().join("s");
    let first = hash(&dir).unwrap();
    place.put("s/.session.swp", "editor");
    assert_eq!(hash(&dir).unwrap(), first);
    fs::write(&session, "b").unwrap();
    let second = hash(&dir).unwrap();
    assert_ne!(second, first);
    fs::rename(&session, dir.join("bin/other")).unwrap();
    assert_ne!(hash(&dir).unwrap(), second);
    assert!(first.len() == 16 && first.bytes().all(|b| b.is_ascii_hexdigit()));
}
