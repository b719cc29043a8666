//! Bringing NASes and accounts of a CSV file into the sample billing.

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::on_each_store;
use crate::ned;

on_each_store!(
    nases_and_accounts_come_from_csv,
    what_belongs_to_a_billing_is_left_alone,
);

/// Rows of `-o csv`, without the header.
fn rows(csv: &str) -> Vec<&str> {
    csv.lines().skip(1).collect()
}

async fn nases_and_accounts_come_from_csv(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.nas(5, "Mine", 2, &[]).await;
    lab.accounts(5, [50]).await;
    let file = lab.path("nas.csv");
    let nas = file.to_str().unwrap();
    let import = async |what: &str, file: &str, more: &[&str]| {
        let mut args = vec!["-o", "csv", "import", what, file];
        args.extend(more);
        ned(&lab, &args).await
    };
    let canary = "canary, \"of the file\"";
    std::fs::write(
        &file,
        format!(
            "id,name,ip,forks,oss_path,max_rate,login,password,vars\n\
             7,BRAS-7,10.0.0.7,5,Mikrotik-Simple,2.5,api,\"{}\",\"{{\"\"a\"\": 1}}\"\n\
             8,\"B, 8\",10.0.0.8,3,Mikrotik-Simple,,,,\n",
            canary.replace('"', "\"\"")
        ),
    )
    .unwrap();
    // What would be done is what is done, and is not done before.
    let would = import("nas", nas, &["--dry-run"]).await;
    assert!(
        would.err.contains("dry run: nothing was written"),
        "{would:?}"
    );
    let would = would.fine();
    assert_eq!(rows(&would), ["nas,2,2,0,0,1", "nas_secret,1,1,0,0,0"]);
    assert_eq!(lab.number("select count(*) from nas").await, 1);
    let did = import("nas", nas, &[]).await;
    assert!(did.err.contains("nas activate ID"), "{did:?}");
    assert!(!did.err.contains("canary"), "{did:?}");
    assert_eq!(did.fine(), would);
    let own = "select id, name, ip, forks, mode, max_rate, vars from nas where id > 5 order by id";
    let kept = lab.rows(own).await;
    assert_eq!(
        kept[0][..6],
        ["7", "BRAS-7", "10.0.0.7", "5", "observe", "2.5"]
    );
    let vars: serde_json::Value = serde_json::from_str(&kept[0][6]).unwrap();
    assert_eq!(vars["a"], 1);
    assert_eq!(kept[1][..6], ["8", "B, 8", "10.0.0.8", "3", "observe", ""]);
    let secret = lab
        .db
        .store
        .secret(nas_event_daemon::nas::NasId(7))
        .await
        .unwrap();
    assert_eq!(
        (secret.login.as_str(), secret.password.as_str()),
        ("api", canary)
    );
    // The same again changes nothing; the mode that an operator gave stays.
    lab.sql("update nas set mode = 'active', forks = 9 where id = 7")
        .await;
    let again = import("nas", nas, &[]).await.fine();
    assert_eq!(rows(&again), ["nas,2,0,1,1,1", "nas_secret,1,0,0,1,0"]);
    assert_eq!(lab.rows(own).await[0][3..5], ["5", "active"]);
    // A mistake anywhere, and nothing is written.
    std::fs::write(&file, "id,forks\n9,1\n7,many\n").unwrap();
    import("nas", nas, &[]).await.failed(
        1,
        &["line 3: forks is not a whole number", "nothing was written"],
    );
    assert_eq!(lab.number("select count(*) from nas").await, 3);
    // What the daemon could not serve is said.
    std::fs::write(&file, "id,ip,mode\n9,10.0.0.9,sometimes\n").unwrap();
    import("nas", nas, &[])
        .await
        .failed(8, &["nas 9 cannot be served: mode"]);

    let file = lab.path("accounts.csv");
    let accounts = file.to_str().unwrap();
    let mut text =
        "id;abonent_id;abonent_name;nas_id;login;ip;accept;redirect;rate_in\n".to_owned();
    for user in 100..1_700 {
        text.push_str(&format!(
            "{user};{};Ann {};7;u{user};10.1.{}.{};1;0;1024\n",
            user / 2,
            user / 2,
            user / 256,
            user % 256
        ));
    }
    std::fs::write(&file, text).unwrap();
    let did = import("accounts", accounts, &[]).await.fine();
    assert_eq!(
        rows(&did),
        ["users,1600,1600,0,0,1", "abonents,800,800,0,0,1"]
    );
    let params = lab
        .rows("select abonent_name, login, nas_id from event_params where user_id = 1699")
        .await;
    assert_eq!(params, [["Ann 849", "u1699", "7"]]);
    let again = import("accounts", accounts, &[]).await.fine();
    assert_eq!(
        rows(&again),
        ["users,1600,0,0,1600,1", "abonents,800,0,0,800,1"]
    );
    let audit = ned(&lab, &["audit"]).await.fine();
    assert!(
        audit.contains("what=accounts added=2400 changed=0"),
        "{audit}"
    );
    assert!(!audit.contains("canary"), "{audit}");
    ned(&lab, &["import", "accounts"])
        .await
        .failed(2, &["<FILE>"]);
}

async fn what_belongs_to_a_billing_is_left_alone(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let file = lab.path("nas.csv");
    std::fs::write(&file, "id,name\n7,BRAS-7\n").unwrap();
    let args = ["import", "nas", file.to_str().unwrap()];
    // A table with one more column is the billing's own, and so is a view.
    lab.sql("alter table nas add column price integer").await;
    ned(&lab, &args)
        .await
        .failed(6, &["nas belongs to your billing", "hint"]);
    lab.sql("alter table nas rename to billing_nas").await;
    lab.sql("create view nas as select * from billing_nas")
        .await;
    ned(&lab, &args)
        .await
        .failed(6, &["nas belongs to your billing"]);
    assert_eq!(lab.number("select count(*) from nas").await, 0);
}
