//! `fresh` of a native scheme: variables that are read again at the attempt, because they may
//! have changed while the event waited. All others stay as they were when it was expanded.

use nix::sys::signal::Signal;
use serde_json::json;

use crate::lab::daemon::Lab;
use crate::lab::db::Kind;
use crate::lab::on_each_store;

on_each_store!(only_fresh_names_are_read_again_at_the_attempt);

/// Renders what it would send; two variables, of which one is fresh.
const SCHEME: &str = r#"
driver = "record"
fresh = ["ceil_out"]
[[on.user_rate_set]]
call = "/queue/simple/set"
args = { numbers = "u{{ user_id }}", max-limit = "{{ ceil_in }}/{{ ceil_out }}" }
"#;

async fn only_fresh_names_are_read_again_at_the_attempt(kind: Kind) {
    let lab = Lab::new(kind, "").await;
    lab.native("Fresh", SCHEME);
    lab.nas(1, "Fresh", 2, &[("mode", "'off'".to_owned())])
        .await;
    lab.accounts(1, [10, 11, 12]).await;
    let daemon = lab.start().await;
    let plain = lab.event(10, "user_rate_set").await;
    let own = json!({"cmd": "user_rate_set", "user_id": 11, "params": {"ceil_out": 777}});
    let own = lab.post(own).await[0];
    let gone = lab.event(12, "user_rate_set").await;
    lab.until("all are expanded and wait", async || {
        (lab.number("select count(*) from events_stack").await == 3).then_some(())
    })
    .await;
    lab.sql("update users set ceil_in = 111, ceil_out = 222")
        .await;
    lab.sql("delete from users where id = 12").await;
    lab.sql("update nas set mode = 'active'").await;
    daemon.signal(Signal::SIGHUP);
    for (id, user, rates, why) in [
        (plain, 10, "10240/222", "one is fresh, one is as expanded"),
        (own, 11, "10240/777", "what the event brought itself stays"),
        (gone, 12, "10240/20480", "without an account all stays"),
    ] {
        assert_eq!(lab.ended(id).await, ("done".into(), "done".into()));
        let log = lab.account_log(user);
        let sent = format!("event={id} user={user} cmd=user_rate_set try=1 > ");
        let sent = log.iter().find(|line| line.contains(&sent)).unwrap();
        assert!(
            sent.contains(&format!("max-limit={rates}")),
            "{why}: {sent}"
        );
    }
    daemon.stop().await;
}
