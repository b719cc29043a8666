//! Many forks and one session: all wait for their turn, which does not count against their
//! deadlines, and none is deferred. As commands, as a dialogue, and from scripts.

use std::sync::Arc;
use std::time::Duration;

use nas_event_daemon::driver::waits::Waits;
use tokio::task::JoinSet;

use crate::lab::daemon::{Lab, PATIENCE};
use crate::lab::db::Kind;
use crate::lab::queue::{Queue, all_done};
use crate::lab::sshd::{Sshd, sessions};
use crate::sessions::command;

/// A NAS with one session: every event is one command of so many ms.
async fn queued(name: &str, scheme: &str, queue: &Queue) {
    let sshd = Sshd::start(&["MaxSessions 2"]).await;
    std::fs::write(sshd.path(".bashrc"), "PS1='nas# '\n").unwrap();
    let lab = Lab::new(Kind::Sqlite, "").await;
    let seconds = queue.each.as_secs_f64();
    lab.native(name, &scheme.replace("SECONDS", &format!("{seconds:.3}")));
    let columns = [
        ("ssh_port", sshd.port.to_string()),
        ("ssh_host_key", "'tofu'".to_owned()),
        ("max_sessions", "1".to_owned()),
        ("timeout_ms", "2000".to_owned()),
    ];
    lab.nas(1, name, 100, &columns).await;
    lab.sql(&format!(
        "insert into nas_secret (nas_id, login, ssh_key) values (1, 'root', '{}')",
        sshd.client_key()
    ))
    .await;
    all_done(&lab, queue).await;
    assert_eq!(sshd.logins(), 1);
}

#[tokio::test]
async fn a_queue_of_commands_for_one_channel_defers_nothing() {
    let scheme = "driver = \"ssh\"\n[[on.user_drop]]\nexec = [\"sleep SECONDS\"]\n";
    queued("Exec", scheme, &Queue::of(250, 10)).await;
}

#[tokio::test]
async fn a_queue_of_dialogues_for_one_shell_defers_nothing() {
    let scheme =
        "driver = \"ssh\"\nshell = \"plain\"\n[[on.user_drop]]\nexec = [\"sleep SECONDS\"]\n";
    queued("Plain", scheme, &Queue::of(250, 10)).await;
}

/// What the queues above rest on, without a scheduler that starts few: a command behind others
/// waits far longer than its own limit.
#[tokio::test]
async fn the_wait_for_a_channel_has_a_limit_of_its_own() {
    let sshd = Sshd::start(&["MaxSessions 1"]).await;
    // The server allows one, which nobody knows beforehand.
    for channels in [1, 4] {
        let ssh = Arc::new(sessions(sshd.target(), channels));
        let mut forks = JoinSet::new();
        for _ in 0..8 {
            let ssh = Arc::clone(&ssh);
            forks.spawn(async move {
                let waits = Waits::up_to(PATIENCE);
                let limit = Duration::from_millis(1_500);
                let half = command("sleep 0.5");
                let ran = ssh.exec_in_turn(&half, &waits, limit).await;
                ran.map(|output| output.status)
            });
        }
        while let Some(ended) = forks.join_next().await {
            assert_eq!(ended.unwrap(), Ok(0));
        }
    }
    // And it is bounded.
    let ssh = Arc::new(sessions(sshd.target(), 1));
    let first = Arc::clone(&ssh);
    let mark = sshd.path("open/began");
    let line = format!("touch {}; sleep 5", mark.display());
    let mut running = JoinSet::new();
    running.spawn(async move { first.exec(&command(&line), PATIENCE).await });
    let begun = crate::lab::daemon::wait_for(async || mark.exists().then_some(())).await;
    assert!(begun.is_some());
    let waits = Waits::up_to(Duration::from_millis(200));
    let failure = ssh
        .exec_in_turn(&command("true"), &waits, PATIENCE)
        .await
        .unwrap_err();
    assert!(failure.text.contains("within 200 ms"), "{failure}");
}
