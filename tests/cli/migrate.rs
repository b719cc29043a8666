//! `migrate compare`: the classic daemon's logs of two NASes against what observe mode rendered.

use serde_json::json;

use crate::lab::daemon::{Lab, address};
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::ned;

on_each_store!(old_logs_are_held_against_what_was_rendered);

async fn old_logs_are_held_against_what_was_rendered(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    for nas in [1, 2] {
        let mode = ("mode", "'observe'".to_owned());
        lab.nas(nas, "Mikrotik-Simple", 2, &[mode]).await;
    }
    lab.accounts(1, [10, 11]).await;
    // They come on the second page of accounts.
    lab.sql(
        "insert into users (id, nas_id, login)
         with recursive n(i) as (select 1 union all select i + 1 from n where i < 1200)
         select -i, 2, 'other-' || i from n",
    )
    .await;
    let daemon = lab.start().await;
    for (user, cmd) in [
        (10, "user_add"),
        (10, "user_redirect"),
        (11, "user_redirect_cancel"),
    ] {
        let id = lab.event(user, cmd).await;
        assert_eq!(lab.ended(id).await, ("done".into(), "observed".into()));
    }
    daemon.stop().await;

    let old = lab.path("old");
    std::fs::create_dir(&old).unwrap();
    let (ten, eleven) = (address(10), address(11));
    let send = "send_mikrotik_cmd -s 127.0.0.1 admin servicemode";
    let log = format!(
        "{send} /queue simple add name=crb_{ten} target={ten}/32 max-limit=10240k/20480k comment=crb_{ten}\n\
         {send} /ip firewall address-list add list=crb_negbal address={ten} comment=crb_{ten}\n\
         {send} /ip firewall address-list remove list=crb_negbal comment=crb_{eleven}\n"
    );
    // Found by its name; the second by the address in it.
    std::fs::write(old.join("bras1_127.0.0.1.log"), &log).unwrap();
    let dir = old.to_str().unwrap();
    let compare = [
        "-o",
        "json",
        "migrate",
        "compare",
        "--old-log",
        dir,
        "--nas",
        "1",
    ];
    let numbers = ned(&lab, &compare).await.json();
    assert_eq!(
        (&numbers[0]["same"], &numbers[0]["match_percent"]),
        (&json!(3), &json!(100)),
        "{numbers}"
    );

    // Another speed, something that ours does not do, and something that only ours does.
    let other = log
        .replace("20480k", "10240k")
        .replace("list=crb_negbal address", "list=vip address");
    std::fs::write(old.join("bras1_127.0.0.1.log"), other).unwrap();
    let said = ned(&lab, &compare).await;
    said.failed(9, &["--differences lists"]);
    let numbers: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    for (word, count) in [("same", 1), ("different", 1), ("missing", 1), ("extra", 1)] {
        assert_eq!(numbers[0][word], count, "{word}: {numbers}");
    }
    assert_eq!(numbers[0]["match_percent"], 25);
    let said = ned(&lab, &[&compare[..], &["--differences"]].concat()).await;
    assert_eq!(said.code, 9, "{said:?}");
    let list: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    let speed = list
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["verdict"] == "different");
    let speed = speed.unwrap();
    assert_eq!(speed["account"], "user 10");
    assert_eq!(speed["what"], "/queue/simple");
    assert!(
        speed["old"]
            .as_str()
            .unwrap()
            .contains("max-limit=10240000/10240000"),
        "{speed}"
    );
    assert!(
        speed["ours"]
            .as_str()
            .unwrap()
            .contains("max-limit=10240000/20480000"),
        "{speed}"
    );

    // Before anything was sent there is nothing of ours to compare.
    let early = [&compare[..], &["--to", "2001-01-01"]].concat();
    let said = ned(&lab, &early).await;
    let numbers: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(numbers[0]["ours"], 0, "{numbers}");
    let all = ["-o", "json", "migrate", "compare", "--old-log", dir];
    let numbers: serde_json::Value = serde_json::from_str(&ned(&lab, &all).await.out).unwrap();
    assert_eq!(numbers[1]["note"], "no log of ours", "{numbers}");
    ned(&lab, &["migrate", "compare", "--old-log", "/nowhere"])
        .await
        .failed(5, &["/nowhere", "hint: the classic daemon's"]);
    ned(
        &lab,
        &["migrate", "compare", "--old-log", dir, "--nas", "9"],
    )
    .await
    .failed(5, &["there is no such NAS"]);
}
