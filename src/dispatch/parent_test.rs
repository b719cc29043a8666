//! Tests of the settings loop, one reading at a time.

use tempfile::TempDir;

use super::*;
use crate::dispatch::stand_test::Device;
use crate::nas::NasChange;
use crate::store::connect;

struct Loop {
    parent: Parent,
    inbox: mpsc::Receiver<Message>,
    cmds: watch::Receiver<Vec<Cmd>>,
    _dir: TempDir,
}

/// Schemes named `bad` are refused; others run on a device that has its own commands.
fn resolve(own: &[&str]) -> Resolve {
    let own = own.iter().map(|cmd| Cmd::parse(cmd).unwrap()).collect();
    let device = Arc::new(Device::with_cmds(own));
    Arc::new(move |nas: &Nas| match nas.oss_path.as_deref() {
        Some("bad") => Err("no such scheme".to_owned()),
        _ => Ok(Arc::clone(&device) as Arc<dyn Execute>),
    })
}

impl Loop {
    async fn new(own: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/ned.db", dir.path().display());
        let (sender, inbox) = mpsc::channel(8);
        let (cmds, told) = watch::channel(Vec::new());
        let parent = Parent::new(
            connect(&url).await.unwrap(),
            Logs::open(dir.path(), "bras", 1).unwrap(),
            resolve(own),
            sender,
            Arc::default(),
            cmds,
            Arc::default(),
            Duration::from_secs(60),
        );
        let this = Self {
            parent,
            inbox,
            cmds: told,
            _dir: dir,
        };
        this.sql("insert into nas (id, name, ip, mode, forks, oss_path) values
              (1, 'One', '10.90.185.1', 'active', 3, null), (2, 'Two', '10.90.185.2', 'off', 3, null),
              (3, 'Three', '10.90.185.3', 'active', 3, 'bad'), (4, 'Four', '10.90.185.4', 'nonsense', 3, null)")
            .await;
        this
    }

    async fn sql(&self, text: &str) {
        self.parent.store.sql(text, true).await.unwrap();
    }

    /// What one reading tells the scheduler, as kinds of steps.
    async fn round(&mut self) -> (Vec<(&'static str, i64)>, Settings) {
        self.parent.round().await.unwrap();
        let Ok(Message::Settings(settings)) = self.inbox.try_recv() else {
            panic!("it is told each time");
        };
        let kinds = settings.steps.iter().map(|step| match step {
            Step::Start(id, _) => ("start", id.0),
            Step::Change(id, _) => ("change", id.0),
            Step::Stop(id) => ("stop", id.0),
        });
        (kinds.collect(), settings)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.parent.logs.daemon_path()).unwrap()
    }

    fn count(&self, text: &str) -> usize {
        self.log().matches(text).count()
    }
}

#[tokio::test]
async fn each_row_is_served_or_told_why_not() {
    let mut it = Loop::new(&[]).await;
    let (kinds, settings) = it.round().await;
    assert_eq!(kinds, [("start", 1)]);
    let skipped: Vec<_> = settings
        .skipped
        .iter()
        .map(|(id, skip)| (id.0, skip))
        .collect();
    let told = |n: usize| {
        let (id, skip) = skipped[n];
        (id, skip.name.as_str(), skip.why.as_str(), skip.obstacle)
    };
    assert_eq!(told(0), (2, "Two", "mode=off", Obstacle::Off));
    assert_eq!(told(1), (3, "Three", "no such scheme", Obstacle::Scheme));
    let (id, name, why, obstacle) = told(2);
    assert_eq!((id, name, obstacle), (4, "", Obstacle::Row));
    assert!(why.contains("nonsense"), "{why}");
    assert!(skipped[0].1.log_name.contains("Two"));
    for text in [
        "Start work with nas nasid=1 nas_ip=10.90.185.1 oss_pathname=<null> script_name=<null>",
        "Skip nas nasid=2 nas_ip=10.90.185.2 reason=mode=off",
        "Skip nas nasid=3 nas_ip=10.90.185.3 reason=no such scheme",
    ] {
        assert_eq!(it.count(text), 1, "{text}");
    }
    // Nothing is new: nothing is done or said.
    let before = it.log();
    let (kinds, _) = it.round().await;
    assert!(kinds.is_empty());
    assert_eq!(it.log(), before);
    // What is skipped for another reason is told again, also after it was served.
    it.sql("update nas set oss_path = null where id = 3").await;
    assert_eq!(it.round().await.0, [("start", 3)]);
    it.sql("update nas set oss_path = 'bad' where id = 3").await;
    assert_eq!(it.round().await.0, [("stop", 3)]);
    let stop = "Stop work with nas nasid=3 nas_ip=10.90.185.3 reason=no such scheme";
    assert_eq!(it.count(stop), 1);
    assert_eq!(it.count("Skip nas nasid=3"), 2);
}

#[tokio::test]
async fn what_an_operator_says_goes_over_the_row() {
    let mut it = Loop::new(&[]).await;
    it.round().await;
    let one = NasId(1);
    let store = Arc::clone(&it.parent.store);
    store
        .change_nas(one, &NasChange::Forks(Some(900)))
        .await
        .unwrap();
    let (kinds, mut settings) = it.round().await;
    assert_eq!(kinds, [("change", 1)]);
    let Some(Step::Change(_, served)) = settings.steps.pop() else {
        panic!("a change");
    };
    assert_eq!(served.nas.forks.get(), 100);
    let warning = served.nas.forks_warning.as_deref().unwrap_or_default();
    assert!(warning.contains("forks=900"), "{warning}");
    assert_eq!(
        it.count("Change work with nas nasid=1 nas_ip=10.90.185.1 forks=100 mode=active scheme="),
        1
    );
    assert_eq!(it.count(" paused"), 0);
    let pause = NasChange::Pause {
        from: Some(5),
        until: 7,
        reason: "work".to_owned(),
    };
    store.change_nas(one, &pause).await.unwrap();
    store
        .set_host_key(one, None, Some("ssh-ed25519 AAAA"))
        .await
        .unwrap();
    let (_, mut settings) = it.round().await;
    let Some(Step::Change(_, served)) = settings.steps.pop() else {
        panic!("a change");
    };
    assert_eq!(
        (served.paused_from_ms, served.paused_until_ms),
        (Some(5), Some(7))
    );
    assert_eq!(
        served.nas.ssh_known_key.as_deref(),
        Some("ssh-ed25519 AAAA")
    );
    assert_eq!(it.count(" paused"), 1);
    it.sql("delete from nas where id = 1").await;
    assert_eq!(it.round().await.0, [("stop", 1)]);
    let gone = "Stop work with nas nasid=1 nas_ip=10.90.185.1 reason=its row is gone";
    assert_eq!(it.count(gone), 1);
}

#[tokio::test]
async fn commands_of_schemes_are_told_when_they_change() {
    let mut it = Loop::new(&["user_add", "own_thing"]).await;
    it.cmds.mark_unchanged();
    it.round().await;
    assert!(it.cmds.has_changed().unwrap());
    let own = [Cmd::parse("own_thing").unwrap()];
    assert_eq!(
        *it.cmds.borrow_and_update(),
        own,
        "the others are in the catalogue"
    );
    it.round().await;
    assert!(!it.cmds.has_changed().unwrap());
}

#[tokio::test]
async fn rows_that_failed_are_tried_at_once_when_something_changed() {
    let mut it = Loop::new(&[]).await;
    it.round().await;
    it.sql(
        "insert into events_stack_compact (id, cmd, user_id, error, next_expand_at)
           values (1, 'user_add', 7, 'user_id 7 has no row', '2199-01-01 00:00:00.000')",
    )
    .await;
    let waits = async |it: &Loop| {
        let text = "select count(*) from events_stack_compact where next_expand_at > '2100'";
        let row = it
            .parent
            .store
            .sql(text, false)
            .await
            .unwrap()
            .rows
            .remove(0);
        row[0].as_deref() == Some("1")
    };
    it.round().await;
    assert!(waits(&it).await, "nothing has changed");
    it.sql("update nas set forks = 4 where id = 1").await;
    it.round().await;
    assert!(!waits(&it).await);
}

#[tokio::test]
async fn what_nobody_heard_is_not_in_force() {
    let mut it = Loop::new(&[]).await;
    let (sender, closed) = mpsc::channel(1);
    drop(closed);
    let open = std::mem::replace(&mut it.parent.sender, sender);
    it.parent.round().await.unwrap();
    assert_eq!(it.count("Start work"), 0);
    it.parent.sender = open;
    assert_eq!(it.round().await.0, [("start", 1)]);
    assert_eq!(it.count("Start work"), 1);
}

#[tokio::test]
async fn the_loop_turns_when_it_is_poked_and_ends_when_it_is_told() {
    let mut it = Loop::new(&[]).await;
    let (reload, tick) = (Arc::clone(&it.parent.reload), Arc::clone(&it.parent.tick));
    let stop = CancellationToken::new();
    let mut turning = tokio::task::JoinSet::new();
    turning.spawn(it.parent.run(stop.clone()));
    assert!(matches!(it.inbox.recv().await, Some(Message::Settings(_))));
    reload.notify_one();
    assert!(matches!(it.inbox.recv().await, Some(Message::Settings(_))));
    assert!(tick.load(Ordering::Relaxed) > 0, "it was seen to turn");
    stop.cancel();
    turning.join_all().await;
}
