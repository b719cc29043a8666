//! What is believed of a busy menu, and when it is forgotten.

use super::*;

const PATH: &str = "/queue/simple";

/// Verb, arguments, `=ret=`.
type Said<'a> = (&'a str, &'a [(&'a str, &'a str)], Option<&'a str>);

const SEVEN: &[(&str, &str)] = &[
    ("name", "crb_7"),
    ("comment", "crb_7"),
    ("max-limit", "1M/1M"),
];

fn props() -> Vec<String> {
    [".id", "name", "max-limit", "comment", "dynamic"]
        .map(str::to_owned)
        .to_vec()
}

fn row(id: &str, name: &str, limit: &str, comment: &str) -> Row {
    let all = [
        (".id", id),
        ("name", name),
        ("max-limit", limit),
        ("comment", comment),
    ];
    all.iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn find(known: &Known, mark: &str, now: u64, ended: u64) -> Found {
    known.find(PATH, ("comment", mark), &props(), now, ended)
}

/// So many looks at once; how often the menu is to be read.
fn look(known: &Known, times: usize, now: u64, ended: u64) -> usize {
    let looks = (0..times).map(|_| known.looked(PATH, "comment", &props(), now, ended));
    looks.flatten().count()
}

/// A menu that has just been read.
fn read(rows: Vec<Row>) -> Known {
    let known = Known::default();
    assert_eq!(look(&known, 63, 1_000, 0), 0);
    let due = known.looked(PATH, "comment", &props(), 1_000, 0).unwrap();
    assert_eq!(due, [".id", "comment", "dynamic", "max-limit", "name"]);
    assert_eq!(look(&known, 1, 1_000, 0), 0, "once");
    known.read(PATH, "comment", Some(rows), 1_500, 0);
    known
}

fn two() -> Known {
    read(vec![
        row("*1", "crb_1", "1M/1M", "crb_1"),
        row("*2", "crb_2", "1M/1M", "crb_2"),
        row("*3", "engineer", "1M/1M", ""),
    ])
}

fn ids(known: &Known, mark: &str) -> Vec<String> {
    let rows = find(known, mark, 2_000, 0).rows;
    rows.iter().map(|r| r[".id"].clone()).collect()
}

fn did(known: &Known, verb: &str, args: &[(&str, &str)], ret: Option<&str>) {
    let args = args.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    let command = Command {
        path: format!("{PATH}/{verb}"),
        args: args.collect(),
        ..Command::default()
    };
    known.heard(&command, Ok(ret), 1_000);
}

#[test]
fn a_quiet_menu_is_never_read() {
    let known = Known::default();
    for n in 0..1_000 {
        assert_eq!(look(&known, 1, n * 1_000, 0), 0);
        assert_eq!(find(&known, "crb_1", n * 1_000, 0), Found::default());
    }
}

#[test]
fn our_rows_are_found_by_their_mark() {
    let known = two();
    assert_eq!(
        find(&known, "crb_2", 2_000, 0).rows,
        [row("*2", "crb_2", "1M/1M", "crb_2")]
    );
    assert!(ids(&known, "crb_9").is_empty());
    assert!(ids(&known, "").is_empty(), "rows of nobody are not kept");
}

#[test]
fn they_follow_what_goes_over_the_sessions() {
    let known = two();
    did(&known, "remove", &[(".id", "*1")], None);
    did(
        &known,
        "set",
        &[(".id", "*2"), ("max-limit", "5M/5M")],
        None,
    );
    did(&known, "add", SEVEN, Some("*7"));
    assert!(ids(&known, "crb_1").is_empty());
    assert_eq!(ids(&known, "crb_7"), ["*7"]);
    // What the router fills in by itself is not known, but no surprise either.
    did(
        &known,
        "add",
        &[("name", "crb_8"), ("comment", "crb_8")],
        Some("*8"),
    );
    assert!(ids(&known, "crb_8").is_empty());
    known.seen(
        PATH,
        "comment",
        &[row("*8", "crb_8", "9M/9M", "crb_8")],
        1_600,
    );
    assert_eq!(ids(&known, "crb_7"), ["*7"]);
    assert_eq!(
        find(&known, "crb_2", 2_000, 0).rows[0]["max-limit"],
        "5M/5M"
    );
}

#[test]
fn they_are_forgotten_when_it_is_not_known_what_stands() {
    assert_eq!(ids(&two(), "crb_2"), ["*2"]);
    let verbs: [Said<'_>; 6] = [
        ("move", &[(".id", "*1")], None),
        ("remove", &[(".id", "crb_1")], None),
        ("remove", &[("numbers", "0"), (".id", "*1")], None),
        ("add", &[("name", "x"), ("comment", "crb_1")], None),
        ("add", &[("name", "x"), ("timeout", "1h")], Some("*9")),
        ("set", &[(".id", "*1"), ("comment", "mine")], None),
    ];
    for (verb, args, ret) in verbs {
        let known = two();
        did(&known, verb, args, ret);
        assert!(ids(&known, "crb_2").is_empty(), "{verb} {args:?}");
    }
    let failed = |failure: Failure| {
        let known = two();
        let command = Command {
            path: format!("{PATH}/remove"),
            args: vec![(".id".to_owned(), "*1".to_owned())],
            ..Command::default()
        };
        known.heard(&command, Err(&failure), 1_000);
        ids(&known, "crb_2").len()
    };
    assert_eq!(failed(Failure::timeout("no answer")), 0);
    assert_eq!(failed(Failure::permanent("no such item (4)")), 0);
    assert_eq!(failed(Failure::permanent("failure: not permitted (9)")), 1);
    assert!(
        find(&two(), "crb_1", 2_000, 1).rows.is_empty(),
        "a session ended"
    );
    assert_eq!(find(&two(), "crb_1", 60_999, 0).rows.len(), 1);
    let old = find(&two(), "crb_1", 61_000, 0);
    assert!(old.rows.is_empty(), "a minute after the reading began");
    // A look finds what is not known: something was carried out late.
    let known = two();
    let late = row("*9", "crb_9", "1M/1M", "crb_9");
    let one = row("*1", "crb_1", "1M/1M", "crb_1");
    known.seen(PATH, "comment", &[one], 1_600);
    assert_eq!(ids(&known, "crb_2"), ["*2"]);
    known.seen(PATH, "comment", &[late], 1_600);
    assert!(ids(&known, "crb_2").is_empty());
    assert_eq!(look(&known, 100, 61_599, 0), 0, "and not read at once");
    assert_eq!(look(&known, 100, 61_600, 0), 1);
}

#[test]
fn changes_during_the_reading_are_not_lost() {
    let known = Known::default();
    look(&known, 64, 1_000, 0);
    did(&known, "remove", &[(".id", "*1")], None);
    did(&known, "add", SEVEN, Some("*7"));
    let rows = vec![row("*1", "crb_1", "1M/1M", "crb_1")];
    known.read(PATH, "comment", Some(rows.clone()), 1_500, 0);
    assert!(ids(&known, "crb_1").is_empty());
    assert_eq!(ids(&known, "crb_7"), ["*7"]);
    // A lost session during the reading, or an unknown outcome, which may come true later: as
    // if it had not been read.
    for (ended, again) in [(1, 2_000), (0, 61_000)] {
        let known = Known::default();
        look(&known, 64, 1_000, 0);
        if ended == 0 {
            did(&known, "move", &[], None);
        }
        known.read(PATH, "comment", Some(rows.clone()), 1_500, ended);
        assert_eq!(find(&known, "crb_1", 1_600, ended), Found::default());
        assert_eq!(look(&known, 99, again - 1, ended), usize::from(ended == 1));
        assert_eq!(look(&known, 99, again, ended), usize::from(ended == 0));
    }
}

#[test]
fn rows_that_are_marked_alike_are_not_of_one_account() {
    let rows = |n| (0..n).map(|n| row(&format!("*{n:X}"), &format!("q{n}"), "1M/1M", "ours"));
    assert_eq!(ids(&read(rows(256).collect()), "ours").len(), 256);
    assert_eq!(ids(&read(rows(257).collect()), "ours").len(), 0);
}

#[test]
fn only_so_many_menus_are_watched() {
    let known = Known::default();
    for n in 0..1_000 {
        known.looked(&format!("/menu/{n}"), "comment", &props(), 0, 0);
    }
    assert_eq!(known.menus().len(), 64);
}

#[test]
fn a_menu_that_cannot_be_read_is_left_alone_for_a_while() {
    let known = Known::default();
    look(&known, 64, 1_000, 0);
    known.read(PATH, "comment", None, 30_000, 0);
    assert_eq!(look(&known, 100, 629_999, 0), 0);
    assert_eq!(look(&known, 1, 630_000, 0), 1);
}

#[test]
fn a_busy_menu_is_read_again_before_its_rows_are_too_old() {
    let known = two();
    let spared = |now| {
        let found = find(&known, "crb_1", now, 0);
        assert_eq!(found.rows.len(), 1);
        found.read.is_some()
    };
    assert!((0..100).all(|_| !spared(45_999)));
    assert!(spared(46_000));
    assert!(!spared(46_000), "once");
}

#[test]
fn rows_with_a_property_that_was_not_read_are_not_known() {
    let known = two();
    let mut more = props();
    more.push("target".to_owned());
    let found = known.find(PATH, ("comment", "crb_1"), &more, 2_000, 0);
    assert_eq!(found, Found::default());
    let read = known.looked(PATH, "comment", &more, 1_600, 0).unwrap();
    assert!(read.contains(&"target".to_owned()));
}

#[test]
fn what_is_no_longer_believed_is_let_go_without_a_look() {
    let known = two();
    let kept = || {
        let menus = known.menus();
        let rows = menus.values().filter_map(|menu| menu.rows.as_ref());
        (menus.len(), rows.map(|rows| rows.of.len()).sum::<usize>())
    };
    known.forget(1_000 + BELIEVED_MS - 1, 0);
    assert_eq!(kept(), (1, 2), "still true");
    known.forget(2_000, 1);
    assert_eq!(kept(), (1, 0), "the router may be another one");
    known.forget(1_000 + BELIEVED_MS, 1);
    assert_eq!(kept(), (0, 0), "nobody looks into it");
}

#[test]
fn a_menu_that_is_being_read_or_in_doubt_is_not_let_go() {
    let known = Known::default();
    assert_eq!(look(&known, 64, 1_000, 0), 1);
    known.forget(1_000_000, 0);
    known.read(PATH, "comment", None, 1_000_000, 0);
    known.forget(1_000_000 + PAUSE_MS - 1, 0);
    assert_eq!(known.menus().len(), 1, "it must not be read for a while");
    known.forget(1_000_000 + PAUSE_MS, 0);
    assert_eq!(known.menus().len(), 0);
}
