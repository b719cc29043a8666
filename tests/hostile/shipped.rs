//! Hostile names, logins and the like through a door's parser, PARAMS and every shipped scheme to
//! strict simulated devices. Each event runs twice: once with a harmless mark in the place of each
//! hostile text, then as it is. The device must be told the same both times, the text where the
//! mark was and nothing else: no sentence, line, attribute or field more. What a scheme refuses
//! ends the event with no more than the first part of it said. A neighbour on the same device
//! keeps what he has, each line of the log stays one line, and bash reads every logged command as
//! the words that it stands for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nas_event_daemon::attempt::{FailureClass, LineKind};
use nas_event_daemon::attempt::{Line, Scope, Verdict};
use nas_event_daemon::event::{Cmd, EventId, Params, StoredParams, UserId};
use nas_event_daemon::intake::{compact, form, json as door};
use nas_event_daemon::logs::line::{Key, Origin, Records};
use serde_json::{Map, Value, json};

use crate::shell::words_by_bash;
use crate::stand::{ACCOUNT, Did, Sentence, Stand, flat};
use crate::{Dice, from_environment, hostile, say};

/// Texts of the quick form, unless `NED_HOSTILE` says otherwise.
const TEXTS: u64 = 20_000;
/// Bash costs a process for each event, and a telnet dialogue waits after each line.
const SLOW_SHARE: u64 = 8;
/// Command lines that one bash reads.
const BATCH: usize = 400;

/// Variables that may be any text, and the mark of each.
const FREE: [(&str, &str); 12] = [
    ("login", "mLOGINm"),
    ("acct_session_id", "mSESSIONm"),
    ("ifname", "mIFNAMEm"),
    ("comment", "mCOMMENTm"),
    ("abonent_name", "mABONENTm"),
    ("circuit_id", "mCIRCUITm"),
    ("old_rate_service", "mOLDm"),
    ("switch_port", "mPORTm"),
    // Of the service.
    ("policy", "mPOLICYm"),
    ("profile", "mPROFILEm"),
    ("number", "mNUMBERm"),
    ("list", "mLISTm"),
];
const SERVICE: [&str; 4] = ["policy", "profile", "number", "list"];
/// Variables that have a form, what is harmless, and how that is seen on a device: one of them is
/// hostile in some events. Filters change it on its way, so only its place is compared then.
const FORMED: [(&str, &str, &str); 9] = [
    ("mac", "02:00:00:00:00:15", "02:00:00:00:00:15"),
    ("ip", "10.88.0.15", "10.88.0.15"),
    ("address", "10.88.0.15", "10.88.0.15"),
    ("ceil_in", "71001", "71001"),
    ("ceil_out", "72002", "72002"),
    ("rate_in", "73003", "73003"),
    ("rate_out", "74004", "74004"),
    ("snatip", "198.51.100.7", "198.51.100.7"),
    ("slot", "590", "24e"),
];

/// Schemes of our own for the places where no shipped scheme has a free text: words of a shell's
/// command line, and lines of a device without quoting, over telnet and over ssh.
const OWN: [(&str, &str); 3] = [
    (
        "Words-posix",
        "driver = \"ssh\"\nshell = \"posix\"\n[[on.user_add]]\n\
         exec = [\"show {{ login }} for={{ comment }}\", \"note {{ abonent_name }} {{ circuit_id }}\"]\n\
         [[on.user_del]]\nexec = [\"batch\"]\nstdin = \"del {{ login }} {{ comment }}\"\n",
    ),
    (
        "Words-telnet",
        "driver = \"telnet\"\n[[on.user_add]]\n\
         exec = [\"configure terminal\", \"description {{ login }} x{{ ifname }}\", \"end\"]\nabort = [\"end\"]\n\
         [[on.user_del]]\nexec = [\"configure terminal\", \"description {{ ip }}\", \"end\"]\nabort = [\"end\"]\n",
    ),
    (
        "Words-plain",
        "driver = \"ssh\"\nshell = \"plain\"\n[[on.user_add]]\nexec = [\"show {{ login }} x{{ ifname }}\"]\n\
         [[on.user_del]]\nexec = [\"show {{ ip }}\"]\n",
    ),
];

/// What stands for what.
struct Put {
    marks: Vec<(&'static str, String)>,
    /// How the one hostile variable with a form is seen where it is harmless.
    formed: Option<&'static str>,
}

impl Put {
    fn filled(&self, text: &str) -> String {
        let put = |text: String, (mark, hostile): &(&str, String)| text.replace(mark, hostile);
        self.marks.iter().fold(text.to_owned(), put)
    }

    /// Whether `found` is what `twin` must become.
    fn fits(&self, twin: &str, found: &str) -> bool {
        self.filled(twin) == found || self.formed.is_some_and(|mark| twin.contains(mark))
    }

    /// Why `found` is not `twin` with the texts in their places. `whole`: nothing may be missing
    /// at its end. Lines for a shell are left to bash.
    fn differs(&self, twin: &[Sentence], found: &[Sentence], whole: bool) -> Option<String> {
        if found.len() > twin.len() || (whole && found.len() < twin.len()) {
            return Some(format!("{} sentences, not {}", found.len(), twin.len()));
        }
        for (twin, found) in twin.iter().zip(found) {
            let names = |sentence: &Sentence| -> Vec<String> {
                sentence.iter().map(|(name, _)| name.clone()).collect()
            };
            if names(twin) != names(found) {
                return Some(format!("{found:?}, not {twin:?}"));
            }
            for ((name, twin), (_, found)) in twin.iter().zip(found) {
                if name != "sh" && !self.fits(twin, found) {
                    let wanted = self.filled(twin);
                    return Some(format!("{name} is {found:?}, not {wanted:?}"));
                }
            }
        }
        None
    }
}

/// Command lines of two runs, for bash to read.
struct Pasted {
    what: String,
    twin: String,
    found: String,
    put: Arc<Put>,
    /// The word with this number is a line for another shell.
    inner: Option<usize>,
}

/// An event: the variables that are not its marks, and what else differs from event to event.
struct Event {
    free: BTreeMap<&'static str, String>,
    formed: Option<(usize, String)>,
    cmd: Cmd,
    flags: [u64; 2],
}

impl Event {
    fn of(dice: &mut Dice, cmds: &[Cmd], canary: &str) -> Self {
        let free = FREE.map(|(name, _)| (name, hostile(dice, canary)));
        let formed = (dice.roll(4) == 0).then(|| {
            let which = dice.index(FORMED.len());
            (which, hostile(dice, canary))
        });
        Self {
            free: BTreeMap::from(free),
            formed,
            cmd: cmds[dice.index(cmds.len())].clone(),
            flags: [dice.roll(2), dice.roll(2)],
        }
    }

    /// Whether this variable, which has a form, is hostile.
    fn forms(&self, name: &str) -> bool {
        let formed = self.formed.as_ref();
        formed.is_some_and(|(which, _)| FORMED[*which].0 == name)
    }

    fn texts(&self) -> u64 {
        (self.free.len() + usize::from(self.formed.is_some())) as u64
    }

    /// What is empty stays empty in the harmless twin: a scheme may ask for it.
    fn put(&self) -> Put {
        let free = FREE
            .into_iter()
            .map(|(name, mark)| (mark, self.free[name].clone()));
        let mut marks: Vec<_> = free.filter(|(_, text)| !text.is_empty()).collect();
        let mut formed = None;
        if let Some((which, text)) = &self.formed
            && !text.is_empty()
        {
            let (_, harmless, seen) = FORMED[*which];
            marks.push((harmless, text.clone()));
            formed = Some(seen);
        }
        Put { marks, formed }
    }

    /// The value of one variable, in the event or in its twin.
    fn value(&self, name: &str, twin: bool) -> String {
        if let Some((_, mark)) = FREE.iter().find(|(known, _)| *known == name) {
            let text = &self.free[name];
            let kept = !twin || text.is_empty();
            return if kept {
                text.clone()
            } else {
                (*mark).to_owned()
            };
        }
        let at = FORMED
            .iter()
            .position(|(known, ..)| *known == name)
            .unwrap();
        match &self.formed {
            Some((which, text)) if *which == at && (!twin || text.is_empty()) => text.clone(),
            _ => FORMED[at].1.to_owned(),
        }
    }

    /// The body that a billing posts.
    fn body(&self, twin: bool) -> Value {
        let mut params = Map::new();
        for name in FREE
            .iter()
            .map(|(n, _)| *n)
            .chain(FORMED.iter().map(|(n, ..)| *n))
        {
            if !SERVICE.contains(&name) && name != "address" {
                params.insert(name.to_owned(), Value::from(self.value(name, twin)));
            }
        }
        let value = |name| self.value(name, twin);
        params.insert(
            "addresses".to_owned(),
            json!([value("address"), "2001:db8:1::/56"]),
        );
        params.insert(
            "service".to_owned(),
            json!({"policy": value("policy"), "profile": value("profile"),
                "number": value("number"), "lists": [value("list")]}),
        );
        params.insert("accept".to_owned(), self.flags[0].into());
        params.insert("redirect".to_owned(), self.flags[1].into());
        json!({"cmd": self.cmd.as_str(), "user_id": ACCOUNT, "usluga_id": 7, "params": params,
            "params_complete": true})
    }

    /// Through the parser of a door and the column of the stack.
    fn params(&self, twin: bool) -> Params {
        let body = self.body(twin).to_string();
        let value = if self.flags[0] == 0 {
            door::strict_json(&body).unwrap()
        } else {
            let raw = format!("method1=objects.create&arg1={body}");
            form::read(raw.as_bytes()).unwrap().calls.remove(0).arg
        };
        let event = compact::read(value, "lab", std::slice::from_ref(&self.cmd)).unwrap();
        let params = Params::overlaid(Map::new(), None, event.params.as_ref()).unwrap();
        StoredParams(serde_json::to_string(&params).unwrap()).read()
    }
}

/// What became of one scheme's events.
#[derive(Default)]
struct Count {
    texts: u64,
    done: u64,
    refused: u64,
    /// Values that reached the device and were not the mark.
    arrived: u64,
}

fn is_done(did: &Did) -> bool {
    matches!(did.report.verdict, Verdict::Done | Verdict::Observed)
}

/// Refused means: this event can never work. Never that the NAS is at fault, or that nobody knows.
fn check_verdict(what: &str, did: &Did) {
    match &did.report.verdict {
        Verdict::Done | Verdict::Observed | Verdict::Exit(1) => {}
        Verdict::Failed(failure) => {
            let own = failure.scope == Scope::Event && !failure.parks;
            let final_word =
                failure.class == FailureClass::Permanent || failure.text.starts_with("assert ");
            assert!(own && final_word, "{what}: {failure:?}");
        }
        other => panic!("{what}: {other:?}"),
    }
}

/// Each line of the transcript is one record, and forges nothing in a terminal.
fn check_records(what: &str, lines: &[Line]) {
    let mut records = Records::new(Origin::new("bras", 1));
    let key = Key {
        event: EventId(7),
        user: Some(UserId(ACCOUNT)),
        cmd: "user_add",
        try_count: 1,
    };
    for line in lines {
        let mut out = Vec::new();
        records.line(&mut out, &key, line);
        let out = String::from_utf8(out).unwrap();
        assert_eq!(out.matches('\n').count(), 1, "{what}: {out:?}");
        let forged = out.contains(['\r', '\u{1b}', '\u{9b}', '\u{2028}', '\u{202e}']);
        assert!(!forged, "{what}: {out:?}");
    }
}

async fn one_scheme(
    stand: Stand,
    mut dice: Dice,
    texts: u64,
    canary: String,
) -> (String, Count, Vec<Pasted>) {
    let mut count = Count::default();
    let mut pasted = Vec::new();
    while count.texts < texts {
        let event = Event::of(&mut dice, &stand.cmds, &canary);
        let what = format!(
            "{} {} {:?} {:?}",
            stand.name, event.cmd, event.free, event.formed
        );
        let put = Arc::new(event.put());
        let usluga = event.cmd.as_str().starts_with("usluga_").then_some(7);
        let run = async |twin: bool| {
            let (login, session) = (
                event.value("login", twin),
                event.value("acct_session_id", twin),
            );
            // A router knows the account by its MAC, too: it is unknown both times then.
            let unknown = stand.is_router() && event.forms("mac");
            let own = (!unknown).then_some((&*login, &*session));
            let held = stand.prepare(own);
            if !held {
                assert!(stand.prepare(None), "{what}");
            }
            // Without its id a session is known by the address, which the twin has.
            let taken = held && !(event.forms("ip") && session.is_empty());
            let did = stand.run(&event.cmd, usluga, event.params(twin)).await;
            let harm = stand.harm(&login);
            assert!(harm.is_none(), "{what}: {harm:?}");
            (did, taken)
        };
        let (found, taken) = run(false).await;
        let (twin, _) = run(true).await;
        count.texts += event.texts();
        // What the device itself could not hold was not there for this account to be found.
        if taken {
            check_verdict(&what, &found);
            check_verdict(&what, &twin);
            let done = is_done(&found);
            assert!(!done || is_done(&twin), "{what}: only as it is it is done");
            if let Some(why) = put.differs(&twin.sent, &found.sent, done) {
                let said: Vec<&str> = found.lines.iter().map(|l| l.text.as_str()).collect();
                panic!("{what}: {why}\n{:?}\n{:?}\n{said:?}", twin.sent, found.sent);
            }
            let more = if done {
                found.sentences != twin.sentences
            } else {
                found.sentences > twin.sentences
            };
            assert!(
                !more,
                "{what}: {} sentences, not {}",
                found.sentences, twin.sentences
            );
            let same = found.commands().len() == twin.commands().len();
            assert!(same || !done, "{what}: {:?}", found.commands());
            count.done += u64::from(done);
            count.refused += u64::from(!done);
            count.arrived += arrived(&twin.sent, &found.sent);
            pasted.extend(to_paste(&stand, &what, &twin, &found, &put));
        }
        check_records(&what, &found.lines);
    }
    (stand.name.clone(), count, pasted)
}

fn arrived(twin: &[Sentence], found: &[Sentence]) -> u64 {
    let pairs = twin.iter().flatten().zip(found.iter().flatten());
    pairs.filter(|(twin, found)| twin != found).count() as u64
}

/// What bash shall read: logged commands, and lines that a device's shell was given.
fn to_paste(stand: &Stand, what: &str, twin: &Did, found: &Did, put: &Arc<Put>) -> Vec<Pasted> {
    let line = |twin: &str, found: &str, inner| Pasted {
        what: what.to_owned(),
        twin: twin.to_owned(),
        found: found.to_owned(),
        put: Arc::clone(put),
        inner,
    };
    let mut all = Vec::new();
    // The command of a session is the script with its variables, which tests/session pastes.
    if !stand.is_script() {
        let inner = stand.is_ssh().then_some(3);
        let pairs = twin.commands().into_iter().zip(found.commands());
        all.extend(pairs.map(|(twin, found)| line(twin, found, inner)));
    }
    let shells = |did: &Did| -> Vec<String> {
        let all = did.sent.iter().flatten();
        let lines = all.filter(|(name, _)| name == "sh");
        lines.map(|(_, line)| line.clone()).collect()
    };
    let pairs = shells(twin).into_iter().zip(shells(found));
    all.extend(pairs.map(|(twin, found)| line(&twin, &found, None)));
    all
}

/// The words of each line, by bash.
fn words<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<Vec<String>> {
    let lines: Vec<&str> = lines.collect();
    let mut all = Vec::with_capacity(lines.len());
    for some in lines.chunks(BATCH) {
        let script = some
            .iter()
            .map(|line| format!("set -- {line}\nprintf '%s\\0' \"$#\" \"$@\"\n"));
        let mut flat = words_by_bash(&script.collect::<String>()).into_iter();
        let mut next = || String::from_utf8_lossy(&flat.next().unwrap_or_default()).into_owned();
        for line in some {
            let n = next();
            let n: usize = n
                .parse()
                .unwrap_or_else(|_| panic!("bash stumbles before {line:?}"));
            all.push((0..n).map(|_| next()).collect());
        }
    }
    all
}

/// A router is asked for a host's address in both spellings; what is none has one only.
fn one_spelling(words: &mut Vec<String>) {
    let bare = |word: &String| {
        let bare = word.strip_suffix("/32").or(word.strip_suffix("/128"))?;
        word.starts_with("?address=").then(|| bare.to_owned())
    };
    while let Some(at) = words
        .windows(3)
        .position(|three| bare(&three[1]).is_some_and(|bare| three[0] == bare) && three[2] == "?#|")
    {
        words.drain(at + 1..at + 3);
    }
}

/// Whether bash reads the same words in both, the texts in their places.
fn check_pasted(pasted: &[Pasted]) {
    let twins = words(pasted.iter().map(|p| p.twin.as_str()));
    let found = words(pasted.iter().map(|p| p.found.as_str()));
    let mut inner = Vec::new();
    for ((pasted, twin), found) in pasted.iter().zip(&twins).zip(&found) {
        let what = format!("{}\n{}\n{}", pasted.what, pasted.twin, pasted.found);
        let (mut twin, found) = (twin.clone(), found);
        if found.len() != twin.len() {
            one_spelling(&mut twin);
        }
        // What could have many forms is compared by us, and the router is asked for all.
        let looks = twin.iter().any(|word| word.ends_with("/print"));
        if looks && found.len() != twin.len() {
            twin.retain(|word| match word.split_once('=') {
                Some((key, _)) if key.starts_with('?') => found
                    .iter()
                    .any(|f| f.split_once('=').is_some_and(|(k, _)| k == key)),
                Some(_) | None => true,
            });
        }
        assert_eq!(found.len(), twin.len(), "{what}: {found:?}");
        for (n, (twin, found)) in twin.iter().zip(found).enumerate() {
            if pasted.inner == Some(n) {
                inner.push(Pasted {
                    what: pasted.what.clone(),
                    twin: twin.clone(),
                    found: found.clone(),
                    put: Arc::clone(&pasted.put),
                    inner: None,
                });
                continue;
            }
            // A number that the router gave to a row.
            let row = |word: &str| word.starts_with(".id=*") || word.starts_with("numbers=*");
            let object = |word: &str| serde_json::from_str::<Map<String, Value>>(word).ok();
            let fits = match (object(twin), object(found)) {
                (Some(twin), Some(found)) => {
                    let told = |map| {
                        let mut all = Vec::new();
                        flat("", &Value::Object(map), &mut all);
                        vec![all]
                    };
                    pasted
                        .put
                        .differs(&told(twin), &told(found), true)
                        .is_none()
                }
                _ => pasted.put.fits(twin, found) || (row(twin) && row(found)),
            };
            assert!(fits, "{what}: {found:?}, not {:?}", pasted.put.filled(twin));
        }
    }
    if !inner.is_empty() {
        check_pasted(&inner);
    }
}

fn shipped() -> Vec<PathBuf> {
    let core = Path::new(env!("CARGO_MANIFEST_DIR")).join("oss/core");
    let all = std::fs::read_dir(core).unwrap();
    let mut all: Vec<_> = all.map(|entry| entry.unwrap().path()).collect();
    all.sort();
    assert!(all.len() >= 13, "{all:?}");
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_text_becomes_syntax_in_any_shipped_scheme() {
    let seed = from_environment("NED_SEED").unwrap_or(11);
    say(&format!("NED_SEED={seed}"));
    let place = tempfile::tempdir().unwrap();
    let canary = place.path().join("canary").to_string_lossy().into_owned();
    let mut schemes = shipped();
    for (name, text) in OWN {
        let dir = place.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("scheme.toml"), text).unwrap();
        schemes.push(dir);
    }
    let all = from_environment("NED_HOSTILE").unwrap_or(TEXTS);
    let mut stands = Vec::new();
    for scheme in &schemes {
        stands.push(Stand::new(scheme, place.path()).await);
    }
    let quick = stands.iter().filter(|stand| !stand.is_slow()).count();
    let share = all.div_ceil(quick as u64);
    let mut running = tokio::task::JoinSet::new();
    for (n, stand) in (0..).zip(stands) {
        let share = if stand.is_slow() {
            share / SLOW_SHARE
        } else {
            share
        };
        let dice = Dice(seed.wrapping_mul(1_000).wrapping_add(n));
        running.spawn(one_scheme(stand, dice, share, canary.clone()));
    }
    let (mut texts, mut lines, mut arrived) = (0, 0, 0);
    while let Some(ended) = running.join_next().await {
        let (name, count, pasted) = ended.unwrap();
        let Count { done, refused, .. } = count;
        say(&format!(
            "{name}: {} texts, {done} events done, {refused} refused, {} values arrived",
            count.texts, count.arrived
        ));
        assert!(
            done > 0,
            "{name}: everything is refused, the test proves nothing"
        );
        texts += count.texts;
        arrived += count.arrived;
        lines += pasted.len();
        tokio::task::spawn_blocking(move || check_pasted(&pasted))
            .await
            .unwrap();
    }
    say(&format!(
        "{texts} texts, {arrived} values arrived, {lines} lines read by bash"
    ));
    assert!(texts >= all, "{texts}");
    assert!(arrived > all / 20, "only {arrived} arrived");
    assert!(!Path::new(&canary).exists(), "something was executed");
}

/// The negative control: what a careless scheme or driver would do is found.
#[test]
fn what_is_planted_is_found() {
    let put = Put {
        marks: vec![("mLOGINm", "x; reboot".to_owned())],
        formed: None,
    };
    let one = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
    let twin = [one("path", "/remove"), one("name", "mLOGINm")];
    let good = [one("path", "/remove"), one("name", "x; reboot")];
    assert_eq!(put.differs(&twin, &good, true), None);
    assert_eq!(put.differs(&twin, &good[..1], false), None);
    for bad in [
        // One more, one less, cut, widened, another field.
        vec![good[0].clone(), good[1].clone(), one("path", "/reboot")],
        vec![good[0].clone()],
        vec![good[0].clone(), one("name", "x")],
        vec![one("path", "/set"), good[1].clone()],
        vec![good[0].clone(), [&good[1][..], &one("list", "x")].concat()],
    ] {
        assert!(put.differs(&twin, &bad, true).is_some(), "{bad:?}");
    }
    let line = |found: &str| Pasted {
        what: String::new(),
        twin: "send 'mLOGINm' end".to_owned(),
        found: found.to_owned(),
        put: Arc::new(Put {
            marks: put.marks.clone(),
            formed: None,
        }),
        inner: None,
    };
    check_pasted(&[line("send 'x; reboot' end")]);
    for bad in ["send x\\; reboot end", "send 'x; reboot' end more"] {
        let found = std::panic::catch_unwind(|| check_pasted(&[line(bad)]));
        assert!(found.is_err(), "{bad}");
    }
    let forged = Line {
        at_ms: 0,
        kind: LineKind::Answer,
        text: "a\nevent=1".to_owned(),
    };
    check_records("one line", &[forged]);
}
