//! What the Debian package is made of, judged by those who will read it: systemd, logrotate, the
//! shell. `scripts/package` builds it and tries it in a root of its own; here is what can be seen
//! without building, and both kinds of rotation while a daemon writes.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed step fails the test"
)]

#[path = "../lab/mod.rs"]
mod lab;

mod rotation;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};

use lab::daemon::PATIENCE;
use lab::db::{Db, Kind, fresh_url, run_sql};

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

fn read(name: &str) -> String {
    let path = root().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Runs a judge; a missing one is a failed test.
fn judge(program: &str, args: &[&str]) -> Output {
    #[expect(
        clippy::disallowed_methods,
        reason = "an independent judge is a program of its own"
    )]
    let mut command = Command::new(program);
    command
        .args(args)
        .current_dir(root())
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .unwrap_or_else(|e| panic!("{program} is missing (scripts/test --install): {e}"))
}

fn fine(output: &Output) -> bool {
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    true
}

fn metadata() -> toml::Table {
    let manifest: toml::Table = toml::from_str(&read("Cargo.toml")).unwrap();
    manifest["package"]["metadata"]["deb"]
        .as_table()
        .unwrap()
        .clone()
}

fn texts(value: &toml::Value) -> Vec<&str> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_str().unwrap())
        .collect()
}

#[test]
fn every_asset_is_there_and_no_shipped_file_lies_below_the_operators_directories() {
    let deb = metadata();
    let mut targets = Vec::new();
    for asset in deb["assets"].as_array().unwrap() {
        let [from, to, mode] = texts(asset)[..] else {
            panic!("{asset}");
        };
        assert!(["755", "644", "640"].contains(&mode), "{asset}");
        for theirs in ["var/oss", "var/lib", "var/log", "run/", "home/", "root/"] {
            assert!(!to.starts_with(theirs), "{asset}");
        }
        targets.push((from, to));
        if from.starts_with("target/") {
            continue; // made by scripts/package
        }
        let dir = from.split('*').next().unwrap();
        assert!(root().join(dir).exists(), "{from} is not there");
    }
    // Whatever lies in /etc is the operator's after the first installation.
    let listed: BTreeSet<&str> = texts(&deb["conf-files"]).into_iter().collect();
    let mut in_etc = BTreeSet::new();
    for (from, to) in &targets {
        let Some(below) = to.strip_prefix("etc/") else {
            continue;
        };
        let dir = root().join(from.trim_end_matches("/*"));
        let names: Vec<String> = if dir.is_dir() {
            let entries = std::fs::read_dir(dir).unwrap();
            entries
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .collect()
        } else {
            vec![dir.file_name().unwrap().to_str().unwrap().to_owned()]
        };
        in_etc.extend(names.iter().map(|name| format!("/etc/{below}{name}")));
    }
    assert_eq!(
        in_etc.iter().map(String::as_str).collect::<BTreeSet<_>>(),
        listed
    );
}

#[test]
fn the_maintainer_scripts_are_sound_and_touch_nothing_of_the_operator() {
    for name in ["postinst", "prerm", "postrm"] {
        let path = format!("packaging/debian/{name}");
        fine(&judge("sh", &["-n", &path]));
        fine(&judge("shellcheck", &["--severity=warning", &path]));
        let text = read(&path);
        assert!(text.contains("set -e"), "{name}");
        let code: String = text
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'))
            .collect();
        for theirs in ["/var/oss", "/var/lib/nas_event_daemon/", "rm -rf /var/lib"] {
            assert!(!code.contains(theirs), "{name} touches {theirs}");
        }
        assert!(!code.contains("systemctl enable"), "{name}");
        assert!(!code.contains("systemctl start "), "{name}");
    }
}

#[test]
fn the_service_user_is_made_as_the_unit_wants_it() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("etc")).unwrap();
    let at = format!("--root={}", dir.path().display());
    let file = root().join("packaging/systemd/nas_event_daemon.sysusers");
    fine(&judge("systemd-sysusers", &[&at, file.to_str().unwrap()]));
    let passwd = std::fs::read_to_string(dir.path().join("etc/passwd")).unwrap();
    let line = passwd
        .lines()
        .find(|l| l.starts_with("nas_event_daemon:"))
        .unwrap();
    assert!(
        line.ends_with(":/var/lib/nas_event_daemon:/usr/sbin/nologin"),
        "{line}"
    );
    let unit = read("packaging/systemd/nas_event_daemon.service");
    assert!(unit.contains("\nUser=nas_event_daemon\n"));
    assert!(unit.contains("\nStateDirectory=nas_event_daemon\n"));
}

/// The score of a unit, with a drop-in or without, as systemd 252 reckons.
fn exposure(unit: &str, drop_in: Option<&str>, threshold: &str) -> Output {
    let text = read(&format!("packaging/systemd/{unit}"));
    judged(unit, text, drop_in, threshold)
}

fn judged(unit: &str, mut text: String, drop_in: Option<&str>, threshold: &str) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let unit = dir.path().join(unit);
    // A drop-in is read after the unit: its settings win, as they do here.
    if let Some(drop_in) = drop_in {
        text = text.replace("[Install]", &format!("{drop_in}\n[Install]"));
    }
    std::fs::write(&unit, text).unwrap();
    let threshold = format!("--threshold={threshold}");
    judge(
        "systemd-analyze",
        &[
            "security",
            "--offline=true",
            &threshold,
            unit.to_str().unwrap(),
        ],
    )
}

#[test]
fn the_units_expose_little_and_the_drop_in_no_more_than_scripts_need() {
    const DAEMON: &str = "nas_event_daemon.service";
    const BRIDGE: &str = "nas_event_daemon-bridge.service";
    fine(&exposure(DAEMON, None, "25"));
    fine(&exposure(BRIDGE, None, "25"));
    let drop_in = read("packaging/systemd/classic-scripts.conf");
    fine(&exposure(DAEMON, Some(&drop_in), "45"));
    // The judge bites: with what scripts need, or as root, the bar is missed.
    assert!(!exposure(DAEMON, Some(&drop_in), "25").status.success());
    let bridge = read(&format!("packaging/systemd/{BRIDGE}"));
    let kept = |line: &&str| !line.starts_with("User=") && !line.starts_with("Protect");
    let bare: Vec<&str> = bridge.lines().filter(kept).collect();
    let bare = bare.join("\n") + "\n";
    assert!(!judged(BRIDGE, bare, None, "25").status.success());
    // Every unit that is shipped is judged.
    let units = std::fs::read_dir(root().join("packaging/systemd")).unwrap();
    let mut units: Vec<String> = units
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".service"))
        .collect();
    units.sort();
    assert_eq!(units, [BRIDGE, DAEMON]);
    for kept in ["NoNewPrivileges=no", "CapabilityBoundingSet=~", "User=root"] {
        assert!(!drop_in.contains(kept), "the drop-in gives away {kept}");
    }
}

#[test]
fn logrotate_reads_our_files() {
    for name in ["nas_event_daemon", "nas_event_daemon-nas"] {
        let dir = tempfile::tempdir().unwrap();
        // logrotate refuses files that others may write.
        let copy = dir.path().join(name);
        std::fs::write(&copy, read(&format!("logrotate/{name}"))).unwrap();
        let output = judge("logrotate", &["--debug", copy.to_str().unwrap()]);
        fine(&output);
        let said = String::from_utf8_lossy(&output.stderr).to_lowercase();
        assert!(!said.contains("error"), "{said}");
        assert!(said.contains("/var/log/nas_event_daemon/"), "{said}");
    }
}

fn compose() -> serde_json::Value {
    let parsed = judge(
        "/usr/bin/python3",
        &[
            "-c",
            "import json, yaml; print(json.dumps(yaml.safe_load(open('packaging/compose/compose.yml'))))",
        ],
    );
    fine(&parsed);
    serde_json::from_slice(&parsed.stdout).unwrap()
}

#[test]
fn the_compose_example_names_what_is_there() {
    let file = compose();
    let daemon = &file["services"]["daemon"];
    let variables = daemon["environment"].as_object().unwrap();
    let ours = variables
        .iter()
        .filter(|(name, _)| name.starts_with("NED_"))
        .map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned()));
    let empty = tempfile::NamedTempFile::new().unwrap();
    let config = nas_event_daemon::config::Config::load(Some(empty.path()), ours).unwrap();
    assert!(
        config.database.url.starts_with("postgres://"),
        "{}",
        config.database.url
    );
    let url = &config.database.url;
    assert_eq!(
        url,
        &nas_event_daemon::store::shown_url(url),
        "a password in the URL"
    );
    // Published on this machine only; the volumes and secrets that are used exist.
    for (name, service) in file["services"].as_object().unwrap() {
        for port in service["ports"].as_array().into_iter().flatten() {
            assert!(port.as_str().unwrap().starts_with("127.0.0.1:"), "{name}");
        }
        for volume in service["volumes"].as_array().into_iter().flatten() {
            let from = volume.as_str().unwrap().split(':').next().unwrap();
            assert!(
                from.starts_with('.') || file["volumes"].get(from).is_some(),
                "{from}"
            );
        }
        for secret in service["secrets"].as_array().into_iter().flatten() {
            assert!(
                file["secrets"].get(secret.as_str().unwrap()).is_some(),
                "{secret}"
            );
        }
    }
    let health = daemon["healthcheck"]["test"].as_array().unwrap();
    assert_eq!(health.last().unwrap(), "health");
    let dockerfile = read("packaging/compose/Dockerfile");
    assert!(dockerfile.contains("USER nas_event_daemon"));
}

/// Directories that the Dockerfile makes for the service user.
fn made_by_the_image() -> Vec<String> {
    let dockerfile = read("packaging/compose/Dockerfile").replace("\\\n", " ");
    let made = dockerfile.split("install -d -o nas_event_daemon -g nas_event_daemon");
    let made = made.last().unwrap().lines().next().unwrap();
    made.split_whitespace().map(str::to_owned).collect()
}

/// What the image runs, and with which words.
fn run_by_the_image() -> Vec<String> {
    let dockerfile = read("packaging/compose/Dockerfile");
    let list = |name: &str| -> Vec<String> {
        let line = dockerfile.lines().find_map(|line| line.strip_prefix(name));
        serde_json::from_str(line.unwrap()).unwrap()
    };
    [list("ENTRYPOINT "), list("CMD ")].concat()
}

/// A server that asks for the password and hears which one it is told.
async fn asks_for_the_password(listener: tokio::net::TcpListener) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let length = stream.read_u32().await.unwrap();
        let mut rest = vec![0; length as usize - 4];
        stream.read_exact(&mut rest).await.unwrap();
        // It asks for TLS first, and is told that there is none.
        if rest == 80_877_103_u32.to_be_bytes() {
            stream.write_all(b"N").await.unwrap();
            let length = stream.read_u32().await.unwrap();
            rest = vec![0; length as usize - 4];
            stream.read_exact(&mut rest).await.unwrap();
        }
        // AuthenticationCleartextPassword; then a PasswordMessage, or the client goes away.
        stream.write_all(b"R\0\0\0\x08\0\0\0\x03").await.unwrap();
        if stream.read_u8().await.is_ok_and(|kind| kind == b'p') {
            let length = stream.read_u32().await.unwrap();
            let mut password = vec![0; length as usize - 5];
            stream.read_exact(&mut password).await.unwrap();
            return String::from_utf8(password).unwrap();
        }
    }
}

/// The binary in the place of the image: its directories, its words, exactly the environment of the
/// example, where only the database's address and the published port are those of this test. The
/// image itself is not built.
#[tokio::test]
async fn the_compose_example_runs_what_it_says() {
    let binary = env!("CARGO_BIN_EXE_nas_event_daemon");
    let file = compose();
    let daemon = &file["services"]["daemon"];
    let health: Vec<String> =
        serde_json::from_value(daemon["healthcheck"]["test"].clone()).unwrap();
    let (first, health) = health.split_first().unwrap();
    assert_eq!(first, "CMD");
    let ours = |words: &[String]| -> String {
        let words = words.iter().map(|word| match word.as_str() {
            "/usr/sbin/nas_event_daemon" => binary.to_owned(),
            word => nas_event_daemon::shell::quote(word),
        });
        words.collect::<Vec<_>>().join(" ")
    };
    let dir = tempfile::tempdir().unwrap();
    let pgpass = dir.path().join("pgpass");
    // As the head of the example says.
    let head = read("packaging/compose/compose.yml");
    let form = "database:5432:billing:nas_event_daemon:";
    assert!(head.contains(&format!("printf '{form}%s\\n'")), "{form}");
    let (port, _kept) = lab::daemon::own_port();
    let environment = |address: &str, database: &str| -> Vec<(String, String)> {
        let (host, port_of_it) = address.rsplit_once(':').unwrap();
        let line = form
            .replace("database:5432", &format!("{host}:{port_of_it}"))
            .replace("billing", database);
        std::fs::write(&pgpass, format!("{line}geheim\n")).unwrap();
        std::fs::set_permissions(&pgpass, std::fs::Permissions::from_mode(0o600)).unwrap();
        let variables = daemon["environment"].as_object().unwrap().iter();
        let here = variables.map(|(name, value)| {
            let value = value.as_str().unwrap();
            let value = match name.as_str() {
                "NED_DATABASE__URL" => {
                    let there = "@database/billing";
                    assert!(value.ends_with(there), "{value}");
                    value.replace(there, &format!("@{address}/{database}"))
                }
                "PGPASSFILE" => pgpass.display().to_string(),
                "NED_HTTP__LISTEN" => value.replace("8082", &port.to_string()),
                _ => value.to_owned(),
            };
            (name.clone(), value)
        });
        here.collect()
    };
    let image = |steps: &str| {
        let dirs = made_by_the_image().join(" ");
        let script = format!(
            "mount -t tmpfs none /var && mount -t tmpfs none /run && mkdir -p {dirs} || exit 99\n\
             run() {{ exec {}; }}\nhealth() {{ {}; }}\n{steps}",
            ours(&run_by_the_image()),
            ours(health)
        );
        let mut command = tokio::process::Command::from(inside(&script));
        command.kill_on_drop(true);
        command
    };

    // The password comes out of PGPASSFILE.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut asking = image("run");
    asking.env_clear().envs(environment(&address, "billing"));
    let mut child = asking.spawn().unwrap();
    let told = tokio::time::timeout(PATIENCE, asks_for_the_password(listener)).await;
    assert_eq!(told.unwrap(), "geheim");
    child.kill().await.unwrap();

    // A database of its own on the server of the tests, and the user of the example.
    let (url, _) = fresh_url(Kind::Postgres).await;
    let server = address_and_name(&url);
    run_sql(
        &url,
        "do $$ begin create role nas_event_daemon login; exception when duplicate_object then null; end $$;
         grant all on schema public to nas_event_daemon",
    )
    .await;
    let mut whole = image(
        "health; echo before=$?\nrun & pid=$!\n\
         for _ in $(seq 900); do health >/dev/null 2>&1 && break; sleep 0.1; done\n\
         health; echo healthy=$?\nkill -TERM $pid; wait $pid; echo stopped=$?\n",
    );
    whole.env_clear().envs(environment(&server.0, &server.1));
    let output = tokio::time::timeout(PATIENCE * 2, whole.output()).await;
    let output = output.expect("it does not end").unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    for step in ["before=4", "healthy=0", "stopped=0"] {
        assert!(said.contains(step), "{step}: {said}");
    }
    let db = Db::at(url, Kind::Postgres).await;
    let worked = "select (select max(epoch) from owner)::text, tableowner from pg_tables where tablename = 'events_stack'";
    let rows = db.store.sql(worked, false).await.unwrap().rows;
    let row: Vec<&str> = rows[0].iter().flatten().map(String::as_str).collect();
    assert_eq!(row, ["1", "nas_event_daemon"], "another database: {said}");
}

/// `host:port` and name of a database.
fn address_and_name(url: &str) -> (String, String) {
    let (_, rest) = url.split_once('@').unwrap();
    let (address, database) = rest.split_once('/').unwrap();
    (address.to_owned(), database.to_owned())
}

/// A shell that may mount, and whose mounts nobody else sees; what it started ends with it.
fn inside(script: &str) -> Command {
    #[expect(
        clippy::disallowed_methods,
        reason = "an image is stood in for by namespaces"
    )]
    let mut command = Command::new("unshare");
    command
        .args(["--map-root-user", "--mount", "--pid", "--fork"])
        .args(["--kill-child", "--mount-proc", "/bin/bash", "-c", script])
        .stdin(std::process::Stdio::null());
    command
}

#[test]
fn every_name_of_the_binary_is_a_link_of_the_package() {
    let script = read("scripts/package");
    let links = script
        .split("links=(")
        .nth(1)
        .unwrap()
        .split(')')
        .next()
        .unwrap();
    let links: BTreeSet<&str> = links.split_whitespace().collect();
    let main = read("src/cli/mod.rs");
    let names = main.split("match name.as_str() {").nth(1).unwrap();
    let names = names.split("_ => watched").next().unwrap();
    let mut found = 0;
    for line in names.lines().filter(|line| line.contains("=>")) {
        for name in line.split("=>").next().unwrap().split('|') {
            let name = name.trim().trim_matches('"');
            assert!(
                links.contains(name),
                "{name} is no link of the package: {links:?}"
            );
            found += 1;
        }
    }
    assert!(found >= 7, "only {found} names found");
    assert!(root().join("scripts/package.d/trial").exists());
}
