//! Canaries as the credentials of every driver: logins that work, are refused, or cannot even be
//! tried, and devices that say the secret back. None is found where the others are looked for.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use nas_event_daemon::sim::{http, mikrotik, radius, ssh, telnet};
use russh::keys::PrivateKey;
use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::Ed25519Keypair;
use serde_json::json;

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::lab::sim::LOGIN;
use crate::lab::sshd::program;
use crate::secrets::{MARK, argument_lists, canary, no_place_tells};

on_each_store!(no_driver_tells_a_secret);

/// A NAS: its scheme, columns, and which secrets it has; the SSH key is another canary.
struct Row {
    scheme: &'static str,
    more: Vec<(&'static str, String)>,
    secrets: &'static [&'static str],
}

fn row(
    scheme: &'static str,
    more: &[(&'static str, String)],
    secrets: &'static [&'static str],
) -> Row {
    Row {
        scheme,
        more: more.to_vec(),
        secrets,
    }
}

/// Nothing listens there.
const NOWHERE: u16 = 1;

const SCHEMES: [(&str, &str); 5] = [
    (
        "Api",
        "driver = \"mikrotik\"\n[[on.user_drop]]\nread = \"/system/identity\"\nsave = \"said\"\n\
         [[on.user_drop]]\nanswer = \"{{ said.rows }}\"\n",
    ),
    (
        "Ssh",
        "driver = \"ssh\"\n[[on.user_drop]]\nexec = [\"show\"]\nsave = \"said\"\n\
         [[on.user_drop]]\nanswer = \"{{ said.text }}\"\n",
    ),
    (
        "Telnet",
        "driver = \"telnet\"\n[[on.user_drop]]\nexec = [\"show version\"]\nsave = \"said\"\n\
         [[on.user_drop]]\nanswer = \"{{ said.text }}\"\n",
    ),
    (
        "Radius",
        "driver = \"radius\"\n[[on.user_drop]]\n\
         coa = { User-Name = \"u\", Cisco-AVPair = \"subscriber:command=session-query\" }\nsave = \"said\"\n\
         [[on.user_drop]]\nanswer = \"{{ said.rows }}\"\n",
    ),
    (
        "Http",
        "driver = \"http\"\n[[on.user_drop]]\n\
         request = { method = \"GET\", path = \"/told\" }\nsave = \"said\"\n\
         [[on.user_drop]]\nanswer = \"{{ said.text }}\"\n",
    ),
];

/// A private key, and the line that lets it in.
fn key() -> (String, String) {
    let key = PrivateKey::from(Ed25519Keypair::from_seed(&[7; 32]));
    let line = key.public_key().to_openssh().unwrap();
    (key.to_openssh(LineEnding::LF).unwrap().to_string(), line)
}

/// What commands of ours print, errors included, in the words of an operator's shell.
async fn shown(lab: &Lab, args: &[&str]) -> String {
    let mut command = program(env!("CARGO_BIN_EXE_nas_event_daemon"));
    command.arg("--config").arg(lab.path("ned.toml")).args(args);
    command.env_remove("NED_CONFIG").env("NED_LOG", "debug");
    let output = command.output().await.unwrap();
    [output.stdout, output.stderr]
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .concat()
}

async fn no_driver_tells_a_secret(kind: Kind) {
    let lab = Lab::new(kind, "retry_base = \"50ms\"\nmax_tries = 2").await;
    lab.debug();
    for (name, text) in SCHEMES {
        lab.native(name, text);
    }
    let (private, public) = key();
    // Devices that say the secrets back, whoever asks.
    let ssh_of = async |nas: i64, told: &str| {
        let options = ssh::Options {
            login: LOGIN.into(),
            password: canary(nas, "password"),
            authorized: Some(public.clone()),
            answers: vec![ssh::Answer {
                like: "show".into(),
                stdout: format!("You said {}\n", canary(nas, "password")),
                stderr: told.to_owned(),
                ..Default::default()
            }],
            ..Default::default()
        };
        ssh::Sim::start(options).await.unwrap()
    };
    let (by_key, ssh) = (ssh_of(1, &private).await, ssh_of(2, "").await);
    let telnet = telnet::Sim::start(telnet::Options {
        login: LOGIN.into(),
        password: canary(5, "password"),
        enable_password: canary(5, "enable_password"),
        banner: format!("\r\nMind {}\r\n", canary(6, "password")),
        ..Default::default()
    })
    .await
    .unwrap();
    let radius = radius::Sim::start(radius::Options {
        secret: canary(7, "coa_secret"),
        ..Default::default()
    })
    .await
    .unwrap();
    let online = json!({"sessions": [{"User-Name": "u", "Filter-Id": canary(7, "coa_secret")}]});
    radius.load(&online).unwrap();
    let http = http::Sim::start(http::Options {
        authorization: Some(format!("Bearer {}", canary(9, "password"))),
        ..Default::default()
    })
    .await
    .unwrap();
    let http_url = format!("http://{}", http.addr());
    let put = lab.client.put(format!("{http_url}/told"));
    let put = put.bearer_auth(canary(9, "password"));
    let put = put.json(&json!({"you said": canary(9, "password")}));
    assert!(put.send().await.unwrap().status().is_success());
    let api = mikrotik::Sim::start(mikrotik::Options {
        login: LOGIN.into(),
        password: canary(11, "password"),
        ..Default::default()
    })
    .unwrap();

    let port = |port: u16| port.to_string();
    let quoted = |text: &str| format!("'{text}'");
    let tofu = || ("ssh_host_key", quoted("tofu"));
    let to = |ssh: &ssh::Sim| vec![("ssh_port", port(ssh.addr().port())), tofu()];
    let to_telnet = || vec![("telnet_port", port(telnet.addr().port()))];
    let to_radius = || {
        vec![
            ("coa_port", port(radius.addr().port())),
            ("timeout_ms", port(300)),
        ]
    };
    let rows = [
        // Each driver first as it should be; then refused, and unreachable or unreadable.
        row("Ssh", &to(&by_key), &["ssh_key"]),
        row("Ssh", &to(&ssh), &["password"]),
        row("Ssh", &to(&ssh), &["password"]),
        row("Ssh", &to(&ssh), &["broken_key"]),
        row("Telnet", &to_telnet(), &["password", "enable_password"]),
        row("Telnet", &to_telnet(), &["password", "enable_password"]),
        row("Radius", &to_radius(), &["coa_secret"]),
        row("Radius", &to_radius(), &["coa_secret"]),
        row("Http", &[("http_url", quoted(&http_url))], &["password"]),
        row("Http", &[("http_url", quoted(&http_url))], &["password"]),
        row(
            "Api",
            &[("api_port", port(api.addr().port()))],
            &["password"],
        ),
        row(
            "Api",
            &[("api_port", port(api.addr().port()))],
            &["password"],
        ),
        row(
            "Http",
            &[("http_url", quoted(&format!("http://127.0.0.1:{NOWHERE}")))],
            &["password"],
        ),
        row(
            "Telnet",
            &[("telnet_port", port(NOWHERE))],
            &["password", "enable_password"],
        ),
    ];
    for (nas, row) in (1..).zip(&rows) {
        lab.nas(nas, row.scheme, 2, &row.more).await;
        let value = |column: &str| {
            let given = row.secrets.contains(&column);
            match column {
                "ssh_key" if given => private.clone(),
                "ssh_key" if row.secrets.contains(&"broken_key") => canary(nas, "ssh_key"),
                // Secrets that the driver has no use for are in the row all the same, where they
                // change nothing.
                "coa_secret" => canary(nas, column),
                "password" if row.scheme == "Ssh" && !given => canary(nas, column),
                _ if given => canary(nas, column),
                _ => String::new(),
            }
        };
        let login = if row.scheme == "Http" { "" } else { LOGIN };
        let values = ["password", "enable_password", "coa_secret", "ssh_key"].map(value);
        lab.sql(&format!(
            "insert into nas_secret (nas_id, login, password, enable_password, coa_secret, ssh_key)
             values ({nas}, '{login}', '{}')",
            values.join("', '")
        ))
        .await;
        lab.accounts(nas, [nas * 100]).await;
    }
    let daemon = lab.start().await;
    let mut ids = Vec::new();
    let last = i64::try_from(rows.len()).unwrap();
    for nas in 1..=last {
        ids.push(lab.event(nas * 100, "user_drop").await);
    }
    let mut arguments = String::new();
    lab.until("every NAS was tried", async || {
        arguments.push_str(&argument_lists());
        let tried = |nas| lab.nas_log(nas).iter().any(|l| l.contains("end result="));
        (1..=last).all(tried).then_some(())
    })
    .await;

    // The canaries were used where they belong, and said back.
    for (n, nas) in [(0, 1), (1, 2), (4, 5), (6, 7), (8, 9), (10, 11)] {
        assert_eq!(lab.ended(ids[n]).await.1, "done", "NAS {nas}");
    }
    assert_eq!((by_key.seen().logins, ssh.seen().logins), (1, 1));
    assert!(ssh.seen().logins_refused > 0 && telnet.seen().logins_refused > 0);
    assert!(telnet.seen().logins > 0 && radius.seen().acks > 0 && radius.seen().forged > 0);
    assert!(http.seen().unauthorized > 0 && api.seen().logins_refused > 0);
    for nas in [1, 2, 7, 9] {
        let log = lab.nas_log(nas).join("\n");
        assert!(log.contains("***"), "NAS {nas} said nothing back: {log}");
    }

    let mut told = BTreeMap::from([("argument lists".to_owned(), arguments)]);
    let asked = (1..=last).map(async |nas| {
        let (nas, account) = (nas.to_string(), format!("{nas}00"));
        let path = format!("/api/v1/nas/{nas}/test");
        let answer = lab.try_post(&path, &json!({}), None).await;
        [
            (path, format!("{answer:?}")),
            (
                format!("nas test {nas}"),
                shown(&lab, &["nas", "test", &nas]).await,
            ),
            (
                format!("why {account}"),
                shown(&lab, &["why", &account]).await,
            ),
        ]
    });
    told.extend(join_all(asked).await.into_iter().flatten());
    for args in [
        &["nas", "list"][..],
        &["status"],
        &["event", "list", "--state", "all"],
    ] {
        told.insert(args.join(" "), shown(&lab, args).await);
    }
    let body: Vec<&str> = private
        .lines()
        .filter(|l| !l.starts_with("-----"))
        .collect();
    assert!(body.len() > 3);
    // The first line of a key is the same in all of them.
    let marks = [&[MARK][..], &body[1..]].concat();
    no_place_tells(&lab, &ids, told, &marks).await;
    daemon.stop().await;
}
