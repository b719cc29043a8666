//! What `why --live` reads in a device's answer to `user_info`: in the words of the schemes that
//! it can read it compares flag by flag, of any other it says that it cannot.

use super::verdict::{Case, Verdict, say};
use crate::store::AccountFlags;

/// Whether the device holds what was confirmed.
pub(super) fn of_the_device(case: &Case, flags: &AccountFlags) -> Option<Verdict> {
    let device = case.device.as_ref()?;
    let resync = format!("account resync {}", case.user);
    if let Some(failed) = &device.failed {
        return Some(say(
            "device_silent",
            format!("everything was confirmed, but the device could not be asked: {failed}"),
            "nas test, then ask again",
        ));
    }
    if let Some(other) = &device.elsewhere {
        return Some(say(
            "session_elsewhere",
            format!("the subscriber's session is on another NAS: {other}"),
            "correct users.nas_id in the billing, or end that session; then account resync",
        ));
    }
    let answer = device.answer.to_ascii_lowercase();
    let said = |words: &[&str]| {
        let mut lines = answer.lines();
        lines.any(|line| words.iter().any(|word| line.starts_with(word)))
    };
    // Lists alone prove a difference, not that nothing is in the way: other schemes have them, too.
    let whole_answer = said(&["queue: ", "class ", "no class"]);
    let differs = |text: String| {
        say(
            "device_differs",
            format!("everything was confirmed, but {text}"),
            resync.clone(),
        )
    };
    let compared = || device.differs.clone().map(differs);
    if !whole_answer && !said(&["list "]) {
        // Another scheme's words, or a protocol that cannot ask: no all-clear for what was not seen.
        return Some(compared().unwrap_or_else(|| unread(case, &device.answer)));
    }
    if flags.deleted {
        if let Some(found) = compared() {
            return Some(found);
        }
        let held = answer.lines().find(|line| {
            let mine = ["list ", "queue: ", "class ", "negbal", "blocked"];
            mine.iter().any(|word| line.starts_with(word)) && *line != "queue: none"
        });
        return match held {
            Some(line) => Some(differs(format!(
                "the account is deleted, and the device still holds him: {line:?}"
            ))),
            None => Some(say(
                "gone",
                "the account is deleted, and the device holds nothing of him any more",
                "nothing; who shall work again needs users.deleted = 0 in the billing",
            )),
        };
    }
    // Each family by itself: who is redirected over IPv4 only still gets everything over IPv6.
    let marks = [
        (
            "negbal",
            flags.redirect,
            "redirect",
            "to the \"no money\" page",
        ),
        (
            "blocked",
            !flags.accept,
            "block",
            "although he shall be let through",
        ),
    ];
    for (word, wanted, does, why) in marks {
        let listed = listed(&answer, word);
        if !wanted && let Some(address) = listed.first() {
            return Some(differs(format!("the device still {does}s {address} {why}")));
        }
        let missing = device
            .addresses
            .iter()
            .find(|a| !listed.contains(&whole(a)));
        if wanted && (listed.is_empty() || missing.is_some()) {
            let address = missing.map_or("the account", String::as_str);
            return Some(differs(format!("the device does not {does} {address}")));
        }
    }
    if let Some(found) = compared() {
        return Some(found);
    }
    if !whole_answer {
        return Some(unread(case, &device.answer));
    }
    if said(&["queue: none", "no class"]) && flags.rated {
        return Some(differs(
            "the device has no queue for the account".to_owned(),
        ));
    }
    session_address(&device.answer)
        .filter(|address| !device.addresses.is_empty() && !device.addresses.contains(address))
        .map(|address| {
            say(
                "other_address",
                format!(
                    "the subscriber's session has the address {address}, the billing says {}",
                    device.addresses.join(", ")
                ),
                "correct the address in the billing, or end the session so that he gets his own",
            )
        })
}

/// The device answered, and nothing here can judge the answer.
fn unread(case: &Case, answer: &str) -> Verdict {
    let first = answer.lines().map(str::trim).find(|line| !line.is_empty());
    let answer = first.map_or("nothing".to_owned(), |first| format!("{first:?}"));
    say(
        "device_unread",
        format!(
            "the device answered {answer}: that cannot be compared here with what the billing wants"
        ),
        format!(
            "judge `device` by the scheme's README; if it is not as wanted: account resync {}",
            case.user
        ),
    )
}

/// The addresses on a list, in the words of `Mikrotik-Simple` (`list crb_negbal: 10.0.0.1`) or
/// `Linux-SSH` (`negbal4 10.0.0.1`).
fn listed(answer: &str, word: &str) -> Vec<String> {
    let of = |line: &str| {
        let mut words = line
            .strip_prefix("list ")
            .unwrap_or(line)
            .split_whitespace();
        let list = words.next()?;
        let mine = list.contains(word) && (line.starts_with("list ") || list.starts_with(word));
        words.next().filter(|_| mine).map(whole)
    };
    answer.lines().filter_map(of).collect()
}

/// An address without the mask of a single one, in one form.
fn whole(address: &str) -> String {
    let bare = ["/32", "/128"]
        .iter()
        .find_map(|mask| address.strip_suffix(mask));
    let bare = bare.unwrap_or(address);
    bare.parse::<std::net::IpAddr>()
        .map_or_else(|_| bare.to_ascii_lowercase(), |ip| ip.to_string())
}

/// The address in `ppp: 10.0.0.1 for 1h from …`.
fn session_address(answer: &str) -> Option<String> {
    let line = answer.lines().find_map(|line| line.strip_prefix("ppp: "))?;
    let word = line.split_whitespace().next()?;
    word.parse::<std::net::IpAddr>()
        .ok()
        .map(|ip| ip.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::verdict::{Device, tests, verdict};

    #[test]
    fn the_device_is_read() {
        let of = |answer: &str, redirect: bool| {
            let mut case = tests::well();
            case.flags = Some(tests::flags(redirect));
            case.device = Some(Device {
                answer: answer.to_owned(),
                addresses: vec!["10.0.0.1".to_owned(), "2001:db8::1".to_owned()],
                ..Device::default()
            });
            verdict(&case).cause
        };
        let open = "queue: 1M/2M, now 0/0\nppp: 10.0.0.1 for 1h from x";
        assert_eq!(of(open, false), "open");
        assert_eq!(of(open, true), "device_differs");
        let half = format!("list crb_negbal: 10.0.0.1\n{open}");
        assert_eq!(of(&half, true), "device_differs", "IPv6 is open");
        let stub = format!("list crb_negbal: 2001:DB8:0::1/128\n{half}");
        let linux = "class htb 1:2 rate 1Mbit";
        assert_eq!(of(linux, false), "open");
        assert_eq!(of("no class", false), "device_differs");
        let both = format!("negbal4 10.0.0.1\nnegbal6 2001:db8::1\n{linux}");
        assert_eq!(of(&both, true), "open");
        assert_eq!(of(&both, false), "device_differs");
        assert_eq!(
            of(&format!("blocked6 2001:db8::1\n{linux}"), false),
            "device_differs"
        );
        // A list without a queue: another scheme's, which may show less.
        let list = "list crb_negbal: 10.0.0.1\nlist crb_negbal: 2001:db8::1";
        assert_eq!(of(list, false), "device_differs");
        assert_eq!(of(list, true), "device_unread");
        assert_eq!(of("list other: 10.0.0.1", false), "device_unread");
        assert_eq!(of("list other: 10.0.0.1", true), "device_differs");
        // What cannot be compared is never an all-clear: ISG, Juniper, XGE, nothing at all.
        for unread in [
            "session: 10.0.0.1",
            "no session",
            "RADIUS cannot ask; session id unknown",
            "rate in 10000 out 20000, nat 203.0.113.7",
            "",
        ] {
            assert_eq!(of(unread, true), "device_unread", "{unread:?}");
            assert_eq!(of(unread, false), "device_unread", "{unread:?}");
        }
        assert_eq!(of(&stub, false), "device_differs");
        assert_eq!(of(&stub, true), "open");
        assert_eq!(of("queue: none\nppp: no session", false), "device_differs");
        assert_eq!(
            of(&open.replace("10.0.0.1", "10.9.9.9"), false),
            "other_address"
        );
        assert_eq!(of(&open.replace("10.0.0.1", "2001:db8::1"), false), "open");
        assert_eq!(
            of(&open.replace("10.0.0.1", "2001:db8::9"), false),
            "other_address"
        );
    }

    #[test]
    fn who_is_deleted_is_to_be_gone() {
        let of = |answer: &str| {
            let mut case = tests::well();
            let mut flags = tests::flags(false);
            flags.deleted = true;
            case.flags = Some(flags);
            case.device = Some(Device {
                answer: answer.to_owned(),
                addresses: vec!["10.0.0.1".to_owned()],
                ..Device::default()
            });
            verdict(&case)
        };
        for gone in ["queue: none\nppp: no session", "no class"] {
            assert_eq!(of(gone).cause, "gone", "{gone}");
        }
        for held in [
            "queue: 1M/2M, now 0/0",
            "class htb 1:2 rate 1Mbit",
            "list crb_negbal: 10.0.0.1\nqueue: none",
            "list any: 10.0.0.1",
            "blocked4 10.0.0.1\nno class",
        ] {
            let said = of(held);
            assert_eq!(said.cause, "device_differs", "{held}");
            assert!(said.text.contains("still holds him"), "{}", said.text);
        }
        assert_eq!(of("session: 10.0.0.1").cause, "device_unread");
    }
}
