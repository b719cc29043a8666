//! The dialogue against texts of many devices, in every split, and against rude ones.

use proptest::prelude::*;

use super::*;

/// What a device does: it says the first text, then one more for each line that it gets.
struct Script<'a> {
    says: &'a [&'a [u8]],
}

/// Feeds what the device says in pieces of `sizes` (then whole), always with a long silence at
/// the end, and gives back all lines that were sent and the last step.
fn play(dialogue: &mut Dialogue, script: &Script<'_>, sizes: &[usize]) -> (Vec<Vec<u8>>, Step) {
    let mut sent = Vec::new();
    let mut now = 1_000;
    let mut sizes = sizes.iter().copied().cycle();
    for text in script.says {
        let mut rest = *text;
        let mut step = Step::Wait { until: None };
        while !rest.is_empty() {
            let size = sizes.next().unwrap_or(usize::MAX).clamp(1, rest.len());
            let (piece, after) = rest.split_at(size);
            dialogue.feed(piece, now);
            step = dialogue.step(&[], now);
            assert!(
                rest.len() == piece.len() || matches!(step, Step::Wait { .. } | Step::Ready),
                "{step:?} in the middle of {text:?}"
            );
            rest = after;
        }
        if let Step::Wait { until: Some(until) } = step {
            now = until;
            step = dialogue.step(&[], now);
        }
        let out = dialogue.take_out();
        if out.is_empty() {
            return (sent, step);
        }
        sent.push(out);
        now += 1_000;
    }
    let step = dialogue.step(&[], now);
    (sent, step)
}

fn credentials() -> Credentials {
    Credentials {
        login: "ned".into(),
        password: "servicemode".into(),
        enable_password: "raised".into(),
    }
}

fn dialogue(manners: Manners) -> Dialogue {
    Dialogue::new(manners, credentials(), 0)
}

const CISCO: Script<'static> = Script {
    says: &[
        b"\r\n*** Authorised staff only. login: see NOC ***\r\n\r\nUser Access Verification\r\n\r\nUsername: ",
        b"ned\r\nPassword: ",
        b"\r\nbras1>",
        b"\r\nbras1>",
        b"enable\r\nPassword: ",
        b"\r\nbras1#",
        b"terminal length 0\r\nbras1#",
    ],
};

fn setup() -> Manners {
    Manners {
        setup: vec!["terminal length 0".into()],
        ..Manners::default()
    }
}

#[test]
fn a_cisco_like_login_with_enable() {
    let mut d = dialogue(setup());
    let (sent, step) = play(&mut d, &CISCO, &[]);
    assert_eq!(step, Step::Ready);
    let sent: Vec<_> = sent.iter().map(|s| String::from_utf8_lossy(s)).collect();
    assert_eq!(
        sent,
        [
            "ned\r",
            "servicemode\r",
            "\r",
            "enable\r",
            "raised\r",
            "terminal length 0\r"
        ]
    );
    assert_eq!(d.prompt(), Some("bras1#"));
}

#[test]
fn other_ways_in() {
    // A password only, as FRR asks; no login at all; a Linux console with colours and title; a
    // pager and a question in the message of the day; a banner whose end looks like a prompt.
    let ways: [(&[&[u8]], &str); 5] = [
        (
            &[b"\r\nHello, this is FRR\r\n\r\nPassword: ", b"\r\nnas-frr> ", b"\r\nnas-frr> ", b"enable\r\nPassword: ", b"\r\nnas-frr# "],
            "nas-frr# ",
        ),
        (&[b"\r\n~ # ", b"\r\n~ # "], "~ # "),
        (
            &[
                b"Debian\r\nbras login: ",
                b"ned\r\nPassword: ",
                b"\r\nLast login: Mon\r\n\x1b]0;ned@bras\x07\x1b[?2004h\x1b[01;32mned@bras\x1b[00m:\x1b[01;34m~\x1b[00m$ ",
                b"\r\n\x1b[?2004l\x1b]0;ned@bras\x07\x1b[?2004hned@bras:~$ ",
            ],
            "ned@bras:~$ ",
        ),
        (
            &[
                b"Login:",
                b"Password:",
                b"\r\nInfo: rules\r\n  ---- More ----",
                b"\x1b[16D                \x1b[16D more rules\r\nThe password needs to be changed. Change now? [Y/N]:",
                b"n\r\n<bras>",
                b"\r\n<bras>",
                b"enable\r\nPassword:",
                b"\r\n<bras>",
            ],
            "<bras>",
        ),
        (
            &[b"#### WARNING ####", b"\r\nUsername: ", b"ned\r\nPassword: ", b"\r\nsw#", b"\r\nsw#"],
            "sw#",
        ),
    ];
    for (n, (says, prompt)) in ways.into_iter().enumerate() {
        let manners = Manners {
            // Huawei's prompt does not tell the privilege.
            enable: (n == 3).then(|| "super".into()),
            ..Manners::default()
        };
        let mut d = dialogue(manners);
        let (sent, step) = play(&mut d, &Script { says }, &[]);
        assert_eq!(
            (step, d.prompt()),
            (Step::Ready, Some(prompt)),
            "{n} {sent:?}"
        );
    }
}

#[test]
fn refusals_are_told_apart() {
    let again: &[&[u8]] = &[
        b"Username: ",
        b"\r\nPassword: ",
        b"\r\n% Login invalid\r\n\r\nUsername: ",
    ];
    let enable: &[&[u8]] = &[
        b"Password: ",
        b"\r\nr> ",
        b"\r\nr> ",
        b"enable\r\nPassword: ",
        b"\r\nPassword: ",
    ];
    let busy: &[&[u8]] = &[
        b"Username: ",
        b"\r\nPassword: ",
        b"\r\nToo many sessions, try later\r\nUsername: ",
    ];
    for (says, is_busy) in [(again, false), (enable, false), (busy, true)] {
        let (_, step) = play(&mut dialogue(Manners::default()), &Script { says }, &[]);
        match step {
            Step::Failed(Trouble::Busy(_)) => assert!(is_busy),
            Step::Failed(Trouble::Refused(text)) => {
                assert!(!is_busy);
                assert!(
                    !text.contains("servicemode") && !text.contains("raised"),
                    "{text}"
                );
            }
            other => panic!("{other:?}"),
        }
    }
    let mut d = dialogue(Manners::default());
    d.feed(b"All vty lines are in use\r\n", 1);
    d.closed("closed by the device");
    assert!(matches!(d.step(&[], 1), Step::Failed(Trouble::Busy(t)) if t.contains("in use")));
    let mut d = Dialogue::new(Manners::default(), Credentials::default(), 0);
    d.feed(b"login: ", 1);
    assert!(
        matches!(d.step(&[], 500), Step::Failed(Trouble::Refused(t)) if t.contains("nas_secret.login"))
    );
}

/// At the prompt `bras1#` of an echoing device.
fn ready() -> Dialogue {
    let mut d = dialogue(setup());
    assert_eq!(play(&mut d, &CISCO, &[]).1, Step::Ready);
    d
}

fn ask(d: &mut Dialogue, line: &str, says: &[&[u8]], sizes: &[usize]) -> (Vec<Vec<u8>>, Step) {
    d.send(line, 0).unwrap();
    d.take_out();
    play(d, &Script { says }, sizes)
}

fn text(step: Step) -> Answer {
    match step {
        Step::Answer(answer) => answer,
        other => panic!("{other:?}"),
    }
}

#[test]
fn answers_are_without_echo_pagers_and_prompts() {
    let mut d = ready();
    let says: &[&[u8]] = &[
        b"show ip route\r\n10.0.0.0/8\r\n --More-- ",
        b"\r          \r10.1.0.0/16\r\n--More--(50%)",
        b"\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08             \r10.2.0.0/16\r\nbras1#",
    ];
    let (sent, step) = ask(&mut d, "show ip route", says, &[]);
    assert_eq!(sent, [b" ".to_vec(), b" ".to_vec()]);
    let answer = text(step);
    assert_eq!(answer.text, "10.0.0.0/8\n10.1.0.0/16\n10.2.0.0/16");
    assert!(answer.home);
    // In another mode the session belongs to nobody else; `end` brings it home.
    let (_, step) = ask(
        &mut d,
        "configure terminal",
        &[b"configure terminal\r\nbras1(config)#"],
        &[],
    );
    assert!(!text(step).home);
    let (_, step) = ask(&mut d, "end", &[b"end\r\nbras1#"], &[]);
    assert!(text(step).home);
    // A line wrapped by the device at its width, and one that it answers with nothing.
    let wrapped = b"ip route 10.88.0.15 255.255.255.255 Nu \rll0 name crb_1424\r\nbras1#";
    let (_, step) = ask(
        &mut d,
        "ip route 10.88.0.15 255.255.255.255 Null0 name crb_1424",
        &[wrapped],
        &[],
    );
    assert_eq!(text(step).text, "");
}

#[test]
fn a_system_message_between_line_and_echo_is_not_taken_for_the_answer() {
    let mut d = ready();
    d.send("show clock", 0).unwrap();
    d.take_out();
    d.feed(b"\r\n%LINK-3-UPDOWN: Interface Te0/1, up\r\nbras1#", 10);
    assert!(
        matches!(d.step(&[], 10), Step::Wait { until: Some(_) }),
        "the echo has not come yet"
    );
    d.feed(b"show clock\r\n12:00\r\nbras1#", 20);
    assert_eq!(text(d.step(&[], 20)).text, "12:00");
}

#[test]
fn questions_end_an_answer_where_they_are_expected() {
    let question = fancy_regex::Regex::new(r"\[confirm\]$").unwrap();
    let mut d = ready();
    d.send("clear subscriber 7", 0).unwrap();
    d.feed(b"clear subscriber 7\r\nClear it? [confirm]", 10);
    assert!(matches!(
        d.step(std::slice::from_ref(&question), 10),
        Step::Wait { until: Some(_) }
    ));
    let answer = text(d.step(&[question], 500));
    assert_eq!(
        (answer.text.as_str(), answer.home),
        ("Clear it? [confirm]", false)
    );
    let (_, step) = ask(&mut d, "y", &[b"y\r\nbras1#"], &[]);
    assert!(text(step).home);
}

#[test]
fn a_device_without_echo_and_one_that_says_goodbye() {
    let mut d = dialogue(Manners::default());
    let says: &[&[u8]] = &[b"$ ", b"$ "];
    assert_eq!(play(&mut d, &Script { says }, &[]).1, Step::Ready);
    let (_, step) = ask(&mut d, "true", &[b"$ "], &[]);
    assert_eq!(
        text(step),
        Answer {
            home: true,
            ..Answer::default()
        }
    );
    let (_, step) = ask(&mut d, "id", &[b"id\r\n$ "], &[]);
    assert_eq!(text(step).text, "id", "what is not an echo stays");
    d.send("exit", 0).unwrap();
    d.take_out();
    d.feed(b"Bye\r\n", 1);
    d.closed("closed by the device");
    let answer = text(d.step(&[], 1));
    assert!(answer.closed && !answer.home && answer.text == "Bye");
    assert!(matches!(d.step(&[], 1), Step::Failed(Trouble::Closed(_))));
}

#[test]
fn a_line_cut_by_the_end_of_the_connection_is_no_answer() {
    let mut d = ready();
    d.send("ip route 10.0.0.1 255.255.255.255 Null0", 0)
        .unwrap();
    d.take_out();
    d.feed(b"ip route 10.0.0.1", 1);
    d.closed("closed by the device");
    assert!(matches!(d.step(&[], 1), Step::Failed(Trouble::Closed(_))));
}

#[test]
fn what_cannot_be_one_line_is_not_sent() {
    let mut d = ready();
    for line in [
        "a\rreload",
        "a\nreload",
        "a\u{3}",
        "a\0b",
        "\u{1b}[A",
        "\u{9b}x",
        &"x".repeat(LINE_MAX + 1),
    ] {
        assert!(
            matches!(d.send(line, 0), Err(Trouble::Unfit(_))),
            "{line:?}"
        );
        assert!(d.take_out().is_empty());
    }
    assert_eq!(
        d.step(&[], 0),
        Step::Ready,
        "the session is as good as before"
    );
}

#[test]
fn endless_talk_is_cut_off() {
    for chunk in [
        &b"x"[..],
        b"banner\r\n",
        b"\x1b[1m",
        b"\xff\xfe\x00",
        b"login\r",
    ] {
        let mut d = dialogue(Manners::default());
        let many = chunk.repeat(4096);
        let mut fed = 0;
        let step = loop {
            d.feed(&many, 1);
            fed += many.len();
            match d.step(&[], 1) {
                Step::Wait { .. } => assert!(fed <= BANNER_MAX + many.len()),
                other => break other,
            }
        };
        assert!(
            matches!(step, Step::Failed(Trouble::TooLong(_))),
            "{step:?}"
        );
        let mut d = ready();
        d.send("show log", 0).unwrap();
        let step = loop {
            d.feed(&many, 1);
            if !matches!(d.step(&[], 1), Step::Wait { .. }) {
                break d.step(&[], 1);
            }
        };
        assert!(matches!(step, Step::Failed(_)), "{step:?}");
    }
    // A device that asks for ever.
    let mut d = dialogue(Manners::default());
    let mut asked = 0;
    loop {
        d.feed(b"\r\nPress any key to continue", asked * 1000);
        if let Step::Failed(trouble) = d.step(&[], asked * 1000 + 900) {
            assert!(matches!(trouble, Trouble::Refused(_)));
            break;
        }
        d.take_out();
        asked += 1;
        assert!(asked < 50);
    }
}

#[test]
fn time_is_told_with_what_was_said() {
    let mut d = dialogue(Manners::default());
    assert!(d.late(5).text().contains("nothing was said"));
    d.feed(b"Booting, please wait", 1);
    d.step(&[], 1);
    assert!(matches!(d.late(5), Trouble::Late(t) if t.contains("please wait")));
}

/// Rows that are neither prompts nor pagers.
fn rows() -> impl Strategy<Value = String> {
    let row = prop_oneof![
        "[ -~]{0,40}",
        Just("Last login: Mon from 10.0.0.1".to_owned()),
        Just("Username is asked below".to_owned()),
        Just("bras2# not ours".to_owned()),
        Just("#".repeat(70)),
        "\\PC{0,20}",
    ];
    let rows = proptest::collection::vec(row, 0..12);
    rows.prop_map(|rows| {
        let all: String = rows
            .iter()
            .filter(|row| phrases::goes_on(row).is_none() && !row.trim_start().starts_with("bras1"))
            .map(|row| format!("{row}\r\n"))
            .collect();
        all
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn however_an_answer_is_split_it_is_the_same(text_of in rows(), sizes in proptest::collection::vec(1..40_usize, 1..6)) {
        let says = format!("show x\r\n{text_of}bras1#");
        let one = ask(&mut ready(), "show x", &[says.as_bytes()], &[]);
        let other = ask(&mut ready(), "show x", &[says.as_bytes()], &sizes);
        let split = ask(&mut ready(), "show x", &[says.as_bytes()], &[1]);
        prop_assert_eq!(&one, &other);
        prop_assert_eq!(&one, &split);
        prop_assert!(matches!(one.1, Step::Answer(_)), "{:?}", one.1);
    }

    #[test]
    fn however_a_login_is_split_it_is_the_same(banner in rows(), sizes in proptest::collection::vec(1..40_usize, 1..6)) {
        let first = format!("{banner}\r\nUsername: ");
        let mut says = CISCO.says.to_vec();
        says[0] = first.as_bytes();
        let script = Script { says: &says };
        let (mut one, mut other) = (dialogue(setup()), dialogue(setup()));
        let whole = play(&mut one, &script, &[]);
        prop_assert_eq!(&whole, &play(&mut other, &script, &sizes));
        prop_assert_eq!(whole.1, Step::Ready);
    }

    #[test]
    fn whatever_it_gets_it_neither_breaks_nor_answers_without_end(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..40),
        more in proptest::collection::vec("(\r\n)?(login|Password|> |# |--More--|bras1#|: )?", 0..40),
    ) {
        let mut d = dialogue(setup());
        let mut now = 0;
        let mut sent = 0;
        for (chunk, word) in chunks.iter().zip(&more) {
            d.feed(chunk, now);
            d.feed(word.as_bytes(), now);
            now += 400;
            d.step(&[], now);
            sent += d.take_out().len();
        }
        prop_assert!(sent < 2_000, "{}", sent);
    }
}
