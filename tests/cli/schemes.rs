//! `scheme new`, `test`, `vars` and `lint`: from an empty directory to a scheme that works, and
//! what is said of one that does not.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::{command, finished, ned};

async fn lab() -> Lab {
    Lab::new(Kind::Sqlite, "").await
}

#[tokio::test]
async fn shipped_schemes_pass_their_own_examples() {
    let lab = lab().await;
    let core = concat!(env!("CARGO_MANIFEST_DIR"), "/oss/core");
    for entry in std::fs::read_dir(core).unwrap() {
        let name = &entry.unwrap().file_name().into_string().unwrap();
        let said = ned(&lab, &["scheme", "test", name]).await;
        assert_eq!(said.code, 0, "{name}: {said:?}");
        assert!(
            said.out.lines().all(|line| line.contains(": ok, ")),
            "{said:?}"
        );
        assert!(said.err.contains(" 0 failed"), "{said:?}");
        let ms = said
            .err
            .trim()
            .strip_suffix(" ms")
            .and_then(|rest| rest.rsplit(' ').next());
        let ms: u64 = ms.unwrap_or_else(|| panic!("{said:?}")).parse().unwrap();
        assert!(ms < 2_000, "{name}: {said:?}");
        let lint = ned(&lab, &["scheme", "lint", name]).await;
        assert!(lint.fine().contains(": ok"), "{name}");
    }
}

#[tokio::test]
async fn a_new_scheme_is_clean_and_passes_its_example() {
    let lab = lab().await;
    for kind in ["mikrotik", "radius", "ssh", "telnet", "http", "session"] {
        let name = format!("My-{kind}");
        let made = ned(&lab, &["scheme", "new", &name, "--kind", kind]).await;
        assert_eq!(
            made.fine().trim(),
            lab.path("oss/local").join(&name).display().to_string()
        );
        let lint = ned(&lab, &["scheme", "lint", &name]).await;
        assert!(lint.fine().contains(": ok"));
        let test = ned(&lab, &["scheme", "test", &name]).await;
        assert_eq!(test.code, 0, "{kind}: {test:?}");
        // Nothing is ever overwritten.
        ned(&lab, &["scheme", "new", &name])
            .await
            .failed(6, &["is there already"]);
    }
    ned(
        &lab,
        &["scheme", "new", "Copy", "--from", "Mikrotik-Simple"],
    )
    .await
    .fine();
    assert!(lab.path("oss/local/Copy/examples/redirect.json").is_file());
    assert_eq!(ned(&lab, &["scheme", "test", "Copy"]).await.code, 0);
    for bad in ["../x", "a/b", ".hidden", "-x", "a b", ""] {
        assert_ne!(
            ned(&lab, &["scheme", "new", "--", bad]).await.code,
            0,
            "{bad}"
        );
    }
}

#[tokio::test]
async fn an_example_that_does_not_hold_is_told() {
    let lab = lab().await;
    lab.native(
        "Wrong",
        r#"
driver = "mikrotik"
[[on.user_add]]
call = "/queue/simple/add"
args = { name = "q_{{ user_id }}", target = "{{ ip }}" }
[[on.user_del]]
call = "/ip/dhcp-server/lease/add"
args = { address = "{{ ip }}", server = "dhcp{{ nas.n }}" }
ok_on = ["already"]
[[on.user_edit]]
ensure = "/ip/firewall/address-list"
where = { list = "l", address = "{{ ip }}" }
"#,
    );
    let dir = lab.path("oss/local/Wrong/examples");
    ned(&lab, &["scheme", "test", "Wrong"])
        .await
        .failed(5, &["no examples"]);
    std::fs::create_dir_all(&dir).unwrap();
    let put = |value: Value| std::fs::write(dir.join("a.json"), value.to_string()).unwrap();
    let params = json!({"ip": "10.0.0.1"});
    for (event, text) in [
        // A plain add is refused the second time: not idempotent.
        (
            json!({"cmd": "user_add", "user_id": 1, "params": params}),
            "second run ends otherwise",
        ),
        (
            json!({"cmd": "user_edit", "user_id": 1, "params": params, "left": {"/ip/firewall/address-list": []}}),
            "has 1 rows, not 0",
        ),
        (
            json!({"cmd": "user_edit", "user_id": 1, "params": params, "left": {"/ip/firewall/address-list": [{"list": "m"}]}}),
            "has no row with",
        ),
        (
            json!({"cmd": "user_edit", "user_id": 1, "params": params, "sends": []}),
            "sends send_mikrotik_cmd",
        ),
        (
            json!({"cmd": "user_edit", "user_id": 1, "params": params, "ends": "later"}),
            "ends otherwise: done",
        ),
        (json!({"cmd": "user_edit", "user_id": 1}), "ends otherwise"),
    ] {
        put(json!({"about": "x", "events": [event]}));
        let said = ned(&lab, &["scheme", "test", "Wrong"]).await;
        assert_eq!(said.code, 9, "{event}: {said:?}");
        assert!(
            said.out.contains("FAILED") && said.out.contains(text),
            "{text}: {said:?}"
        );
    }
    put(json!({"events": [{"cmd": "user_add", "send": []}]}));
    ned(&lab, &["scheme", "test", "Wrong"])
        .await
        .failed(3, &["a.json", "send"]);
}

#[tokio::test]
async fn a_script_that_changes_something_twice_is_told() {
    let lab = lab().await;
    lab.session(
        "Twice",
        "user_add() { send_mikrotik_cmd --nas \"$nas_id\" /ip/firewall/address-list/add list=\"l$RANDOM\" \"address=$ip\"; }\n",
    );
    let dir = lab.path("oss/local/Twice/examples");
    std::fs::create_dir_all(&dir).unwrap();
    let example =
        json!({"events": [{"cmd": "user_add", "user_id": 1, "params": {"ip": "10.0.0.1"}}]});
    std::fs::write(dir.join("a.json"), example.to_string()).unwrap();
    let said = ned(&lab, &["scheme", "test", "Twice"]).await;
    assert_eq!(said.code, 9, "{said:?}");
    assert!(
        said.out.contains("second run changes something again"),
        "{said:?}"
    );
}

#[tokio::test]
async fn lint_finds_the_traps_of_bash_and_vars_the_names() {
    let lab = lab().await;
    lab.session(
        "Traps",
        "user_add() {\n    cat list | while read a; do exit 254; done\n    eval \"$ip\"\n    [ -n \"$login\" ] && true\n}\n",
    );
    let said = ned(&lab, &["scheme", "lint", "Traps"]).await;
    assert_eq!(
        said.code, 0,
        "warnings do not keep a NAS from being served: {said:?}"
    );
    for part in [
        ":2: warning: `exit`",
        ":3: warning: `eval`",
        ":4: warning: the last line",
    ] {
        assert!(said.out.contains(part), "{part}: {said:?}");
    }
    let said = ned(&lab, &["-o", "json", "scheme", "vars", "Traps"])
        .await
        .json();
    let names: Vec<_> = said
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["login", "ip"]);
    let said = ned(&lab, &["-o", "json", "scheme", "vars", "Mikrotik-Simple"])
        .await
        .json();
    let flush = said
        .as_array()
        .unwrap()
        .iter()
        .find(|v| v["name"] == "flush")
        .unwrap();
    assert_eq!(flush["source"], "[vars]");
    assert!(
        ned(&lab, &["scheme", "vars"])
            .await
            .fine()
            .contains("nas_version")
    );
    ned(&lab, &["scheme", "vars", "None-Such"])
        .await
        .failed(5, &["None-Such"]);
}

/// Where shellcheck is installed its errors are told: a stand-in answers in its format (json1), then
/// the real one.
#[tokio::test]
async fn lint_tells_what_shellcheck_calls_an_error() {
    let lab = lab().await;
    lab.session("Checked", "user_add() { :; }\n");
    let bin = lab.path("tools");
    std::fs::create_dir_all(&bin).unwrap();
    let tool = bin.join("shellcheck");
    let said = r#"{"comments":[{"file":"x","line":1,"endLine":1,"column":3,"endColumn":3,"level":"error","code":1073,"message":"Couldn't parse this.","fix":null}]}"#;
    let text = format!("#!/bin/sh\n[ -f \"$5\" ] || exit 9\ncat <<'END'\n{said}\nEND\nexit 1\n");
    std::fs::write(&tool, text).unwrap();
    std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
    let lint = async |path: String| {
        let mut command = command("nas_event_daemon", &["scheme", "lint", "Checked"]);
        command
            .env("NED_CONFIG", lab.path("ned.toml"))
            .env("PATH", path)
            .current_dir(lab.root());
        finished(command, "").await
    };
    let found = lint(format!("{}:/usr/bin:/bin", bin.display())).await;
    let line = "bin/session:1: warning: Couldn't parse this.; shellcheck SC1073";
    assert!(found.out.contains(line), "{found:?}");
    let without = lint("/nonexistent".to_owned()).await;
    assert!(without.fine().contains(": ok"));
    // The real one is of the same mind about our call and its answer.
    let careless = "#!/bin/bash\nuser_add() {\n    printf '%s' $@\n}\n";
    std::fs::write(lab.path("oss/local/Checked/bin/session"), careless).unwrap();
    let real = lint("/usr/local/bin:/usr/bin:/bin".to_owned()).await;
    assert!(
        real.out.contains("bin/session:3: warning: ") && real.out.contains("; shellcheck SC2068"),
        "scripts/test --install installs it: {real:?}"
    );
}
