//! Starts that are refused: the exit code, the place, the reason and a hint; nothing
//! half-started.

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::on_each_store;

on_each_store!(what_cannot_be_used_is_told_with_place_reason_and_hint);

/// Starts and waits for the refusal; its code and text.
async fn refused(lab: &Lab) -> (i32, String) {
    let before = lab.stderr().len();
    let mut daemon = lab.spawn();
    let code = daemon.end().await.code().unwrap();
    assert!(!lab.path("run/ctl.sock").exists(), "half-started");
    assert!(!lab.path("run/nas_event_daemon.pid").exists());
    (code, lab.stderr()[before..].to_owned())
}

/// Replaces a part of the configuration.
fn change(lab: &Lab, from: &str, to: &str) {
    let file = lab.path("ned.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(&file, text.replace(from, to)).unwrap();
}

async fn what_cannot_be_used_is_told_with_place_reason_and_hint(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    let missing = match kind {
        Kind::Sqlite => "sqlite:///nonexistent-directory/ned.db".to_owned(),
        Kind::Postgres => "postgres://nobody:servicemode@127.0.0.1:1/nothing".to_owned(),
    };
    for (from, to, code, said) in [
        (
            "[dispatch]",
            "[dispatch]\nretry_bass = \"1s\"",
            3,
            "retry_bass",
        ),
        (
            "poll_interval = \"10ms\"",
            "poll_interval = 10",
            3,
            "ned.toml:",
        ),
        (
            "settings_interval = \"1h\"",
            "settings_interval = \"9h\"",
            3,
            "settings_interval",
        ),
        (
            lab.db.url.as_str(),
            missing.as_str(),
            4,
            "cannot open the database",
        ),
    ] {
        lab.configure("", "");
        change(&lab, from, to);
        let (got, text) = refused(&lab).await;
        assert_eq!(got, code, "{text}");
        assert!(text.contains(said), "{text}");
        assert!(text.contains("hint: "), "{text}");
        assert!(!text.contains("servicemode"), "{text}");
    }
    lab.configure("", "");
    let taken = std::net::TcpListener::bind(("127.0.0.1", lab.port)).unwrap();
    let (code, text) = refused(&lab).await;
    assert_eq!(code, 3, "{text}");
    assert!(text.contains(&format!("127.0.0.1:{}", lab.port)), "{text}");
    drop(taken);
    // The billing's view lacks a column that the daemon reads.
    lab.sql(
        "drop view event_params;
         create view event_params as select id as user_id, abonent_id, login from users",
    )
    .await;
    let (code, text) = refused(&lab).await;
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("event_params.nas_id"), "{text}");
    let owner = lab
        .rows("select holder from owner where holder <> ''")
        .await;
    assert_eq!(owner.len(), 0, "nobody took the ownership: {owner:?}");
    lab.sql(
        "drop view event_params;
         create view event_params as select id as user_id, abonent_id, nas_id, login from users",
    )
    .await;
    lab.start().await.stop().await;
}
