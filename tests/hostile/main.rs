//! What comes from outside and wants to be something else: subscribers' texts on their way to a
//! router and to a shell, and bytes that the parsers read. Quick forms; `scripts/faults hostile`
//! and `scripts/faults mutations` run the long ones, and `fuzz/` has the same parsers for
//! cargo-fuzz.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed step fails the test"
)]

#[path = "../lab/mod.rs"]
mod lab;

mod devices;
mod mutations;
mod secrets;
mod settings;
mod shell;
mod shipped;
mod stand;
mod subscribers;
#[path = "../../fuzz/src/lib.rs"]
mod targets;

use lab::dice::Dice;
use lab::{from_environment, say};

/// What has broken something somewhere: syntax of shells, of RouterOS and its API, of SQL, TOML,
/// JSON and templates; paths; what forges lines, directions and colours; what is empty or long.
const PIECES: &[&str] = &[
    "'",
    "\"",
    "`",
    "\\",
    "$(touch CANARY)",
    "`touch CANARY`",
    "; touch CANARY;",
    "| touch CANARY",
    "&& touch CANARY",
    "\n",
    "\r\n",
    "\r",
    "\t",
    "\u{1b}[31m",
    "\u{1b}]0;x\u{7}",
    "\u{202e}",
    "\u{2028}",
    "\u{200f}",
    "\u{9b}31m",
    "${IFS}",
    "$0",
    "!!",
    "*",
    "?",
    "[",
    "]",
    "{",
    "}",
    "#",
    "%n",
    "%s",
    "%00",
    "=.id=*1",
    "?name=x",
    "?#|",
    ".tag=7",
    "/system/reboot",
    "!done",
    "!trap",
    "[/system reboot]",
    "; /user add",
    "-rf",
    "--config=/etc/shadow",
    "../../../etc/passwd",
    "/dev/null",
    "..",
    "~",
    "' or 1=1 --",
    "\"; drop table users",
    "{{ nas_ip }}",
    "{% raw %}",
    "}}",
    "\\x00",
    "\\n",
    "event=1 user=1 cmd=user_add try=1 end result=done code=0 ms=1",
    "2026-01-01 00:00:00 bras nas_event_daemon[1]: Stopped",
    "юзер",
    "ß",
    "漢字",
    "👩‍👩‍👧",
    "e\u{301}",
    "\u{feff}",
    "\u{fffd}",
    "a",
    "0",
    "-1",
    " ",
    "null",
    "true",
    "^C",
    "\u{3}",
    "\u{4}",
    "\u{ff}",
    "&",
    "<",
    ">",
    "(",
    ")",
    "|",
    "^",
    "=",
    ":",
    ",",
    "\u{0b}",
    "\u{7f}",
    "\u{85}",
];

/// A hostile text without NUL, which no door lets in.
fn hostile(dice: &mut Dice, canary: &str) -> String {
    let pieces = match dice.roll(20) {
        0 => 0,
        1 => 60,
        _ => 1 + dice.roll(6),
    };
    let mut text = String::new();
    for _ in 0..pieces {
        match dice.roll(8) {
            0 => {
                let any = u32::try_from(1 + dice.roll(0x2_ffff)).unwrap();
                text.extend(char::from_u32(any));
            }
            _ => text.push_str(&dice.one(PIECES).replace("CANARY", canary)),
        }
    }
    text
}
