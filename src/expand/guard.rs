//! The intent guard: is this a billing's usual day, or a mistake that is about to cut off half a
//! town? Pure: `now` is an argument. It counts the accounts that one source cuts off, per NAS
//! within a minute, an hour and a day, and over all NASes within ten minutes; more than its
//! share of the accounts there, and at least [`LEAST`], is a burst. What to do about a burst is
//! not decided here.

use std::collections::{BTreeMap, HashMap, VecDeque};

use chrono::{DateTime, Datelike, Months, Utc};

use crate::event::{Class, Cmd, UserId};
use crate::nas::NasId;

/// Accounts that anybody may cut off in any window: a small NAS must not raise an alarm for an
/// evening's debtors.
pub const LEAST: usize = 50;
/// Windows of one NAS: (length in ms, its name, share of the NAS's accounts in per cent).
const WINDOWS: [(u64, &str, usize); 3] = [
    (60_000, "a minute", 30),
    (3_600_000, "an hour", 40),
    (86_400_000, "a day", 60),
];
/// The window over all NASes.
const EVERYWHERE: (u64, &str, usize) = (600_000, "ten minutes", 10);
/// A speed below this share of the account's last one, in per cent, cuts it off.
const RATE_CUT: f64 = 10.0;
/// Pairs of source and NAS that are counted; beyond, the one that was quiet longest is
/// forgotten. Sources are tokens and scripts, of which there are a few.
const PAIRS_MAX: usize = 10_000;
/// Cuts that one window remembers: more than any limit of a NAS with as many accounts.
const CUTS_MAX: usize = 200_000;
/// Accounts whose last speed is remembered.
const RATES_MAX: usize = 500_000;
/// A burst that goes on is told again after this, ms.
const AGAIN_MS: u64 = 600_000;

/// One account is to be cut off.
#[derive(Debug, Clone, Copy)]
pub struct Cut<'a> {
    /// Whose order it is: the token, else the script that added it.
    pub source: &'a str,
    /// Command.
    pub cmd: &'a str,
    /// Where.
    pub nas: NasId,
    /// Whom.
    pub user: UserId,
}

/// Accounts that a source has cut off, this one included, in each window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    nas: [usize; 3],
    everywhere: usize,
}

/// More than its share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Burst {
    /// For the log and for the row that is held.
    pub reason: String,
    /// The operator has not been told of it lately.
    pub tell: bool,
}

/// An announced batch: what it covers is neither counted nor held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowance {
    /// Its number.
    pub id: i64,
    /// Whose.
    pub source: String,
    /// Only this command; none = any.
    pub cmd: Option<String>,
    /// Begin of the (first) window, wall ms.
    pub from_ms: i64,
    /// Length of a window, ms.
    pub for_ms: i64,
    /// Events in one window.
    pub most: u64,
    /// Again on this day and hour of each month (UTC; the last day where there are fewer).
    pub monthly: bool,
}

impl Allowance {
    /// The begin of the window in which this moment lies.
    pub fn window(&self, wall_ms: i64) -> Option<i64> {
        let within = |from: i64| {
            (from <= wall_ms && wall_ms < from.saturating_add(self.for_ms)).then_some(from)
        };
        if !self.monthly || wall_ms < self.from_ms {
            return within(self.from_ms);
        }
        let first: DateTime<Utc> = DateTime::from_timestamp_millis(self.from_ms)?;
        let now = DateTime::from_timestamp_millis(wall_ms)?;
        let months = (now.year() - first.year()) * 12 + i32::try_from(now.month()).ok()?
            - i32::try_from(first.month()).ok()?;
        // The window of last month may reach into this one.
        [months - 1, months]
            .into_iter()
            .filter_map(|n| u32::try_from(n).ok())
            .filter_map(|n| first.checked_add_months(Months::new(n)))
            .find_map(|from| within(from.timestamp_millis()))
    }
}

#[derive(Debug)]
struct Window {
    span: u64,
    cuts: VecDeque<(u64, UserId)>,
    users: HashMap<UserId, u32>,
}

impl Window {
    fn new(span: u64) -> Self {
        Self {
            span,
            cuts: VecDeque::new(),
            users: HashMap::new(),
        }
    }

    /// Notes a cut and says how many accounts were cut off within the window.
    fn note(&mut self, user: UserId, now: u64) -> usize {
        while let Some(&(at, gone)) = self.cuts.front()
            && (at.saturating_add(self.span) <= now || self.cuts.len() >= CUTS_MAX)
        {
            self.cuts.pop_front();
            if let Some(n) = self.users.get_mut(&gone) {
                *n -= 1;
                if *n == 0 {
                    self.users.remove(&gone);
                }
            }
        }
        self.cuts.push_back((now, user));
        *self.users.entry(user).or_default() += 1;
        self.users.len()
    }
}

#[derive(Debug)]
struct Pair {
    windows: [Window; 3],
    told_at: Option<u64>,
    last: u64,
}

/// What the guard remembers.
#[derive(Debug, Default)]
pub struct Guard {
    pairs: HashMap<(String, NasId), Pair>,
    everywhere: HashMap<String, Pair>,
    rates: HashMap<UserId, f64>,
    used: BTreeMap<(i64, i64), u64>,
}

impl Pair {
    fn new(spans: [u64; 3]) -> Self {
        Self {
            windows: spans.map(Window::new),
            told_at: None,
            last: 0,
        }
    }
}

impl Guard {
    /// Whether this event cuts its account off. `rate`: the speed that a `user_rate_set` sets,
    /// which is remembered for the next one; the first of an account is never a cut.
    pub fn is_cut(&mut self, cmd: &Cmd, user: UserId, rate: Option<f64>) -> bool {
        match cmd.class() {
            Class::Cut => true,
            Class::Rate => {
                let Some(rate) = rate else { return false };
                if self.rates.len() >= RATES_MAX && !self.rates.contains_key(&user) {
                    self.rates.clear();
                }
                let old = self.rates.insert(user, rate);
                old.is_some_and(|old| rate * 100.0 < old * RATE_CUT)
            }
            Class::Interactive | Class::Access | Class::Rest => false,
        }
    }

    /// Whether an announced batch covers it; if so, it is used up by one.
    pub fn is_allowed(&mut self, cut: &Cut<'_>, allowances: &[Allowance], wall_ms: i64) -> bool {
        for allowance in allowances {
            let fits = allowance.source == cut.source
                && allowance.cmd.as_deref().is_none_or(|cmd| cmd == cut.cmd);
            let Some(from) = allowance.window(wall_ms).filter(|_| fits) else {
                continue;
            };
            let used = self.used.entry((allowance.id, from)).or_default();
            if *used < allowance.most {
                *used += 1;
                return true;
            }
        }
        false
    }

    /// Notes a cut. Only a count above [`LEAST`] has to be weighed.
    pub fn count(&mut self, cut: &Cut<'_>, now: u64) -> Counted {
        let key = (cut.source.to_owned(), cut.nas);
        if self.pairs.len() >= PAIRS_MAX && !self.pairs.contains_key(&key) {
            let quiet = self.pairs.iter().min_by_key(|(_, p)| p.last);
            if let Some(quiet) = quiet.map(|(key, _)| key.clone()) {
                self.pairs.remove(&quiet);
                self.everywhere.remove(&quiet.0);
            }
        }
        let pair = self
            .pairs
            .entry(key)
            .or_insert_with(|| Pair::new(WINDOWS.map(|w| w.0)));
        pair.last = now;
        let mut nas = [0; 3];
        for (count, window) in nas.iter_mut().zip(&mut pair.windows) {
            *count = window.note(cut.user, now);
        }
        let all = self
            .everywhere
            .entry(cut.source.to_owned())
            .or_insert_with(|| Pair::new([EVERYWHERE.0; 3]));
        let everywhere = all.windows.first_mut().map_or(0, |w| w.note(cut.user, now));
        Counted { nas, everywhere }
    }

    /// Whether it is a burst. `on_nas`: accounts of the NAS, `in_all`: of all NASes.
    pub fn weigh(
        &mut self,
        cut: &Cut<'_>,
        counted: Counted,
        on_nas: usize,
        in_all: usize,
        now: u64,
    ) -> Option<Burst> {
        let over = |count: usize, accounts: usize, (_, name, share): (u64, &str, usize)| {
            let limit = LEAST.max(accounts.saturating_mul(share) / 100);
            (count > limit).then(|| {
                format!("{count} accounts within {name}, more than {limit} ({share} % of {accounts}, at least {LEAST})")
            })
        };
        let here = WINDOWS
            .into_iter()
            .zip(counted.nas)
            .find_map(|(window, count)| over(count, on_nas, window));
        let (place, what, pair) = match here {
            Some(what) => {
                let key = (cut.source.to_owned(), cut.nas);
                (format!("NAS {}", cut.nas), what, self.pairs.get_mut(&key))
            }
            None => {
                let what = over(counted.everywhere, in_all, EVERYWHERE)?;
                let pair = self.everywhere.get_mut(cut.source);
                ("all NASes".to_owned(), what, pair)
            }
        };
        let tell = pair.is_some_and(|pair| {
            let due = pair
                .told_at
                .is_none_or(|at| now.saturating_sub(at) >= AGAIN_MS);
            if due {
                pair.told_at = Some(now);
            }
            due
        });
        Some(Burst {
            reason: format!("guard: source {:?} cuts off on {place} {what}", cut.source),
            tell,
        })
    }
}

impl Counted {
    /// Whether it can be a burst at all, however few accounts there are.
    pub fn is_much(&self) -> bool {
        self.everywhere > LEAST || self.nas.iter().any(|n| *n > LEAST)
    }
}

/// A speed as billings write it: a number, perhaps with `k`, `M` or `G`; none if it is none.
pub fn speed(text: &str) -> Option<f64> {
    let text = text.trim();
    let (number, factor) = match text.chars().last()? {
        'k' | 'K' => (text.get(..text.len() - 1)?, 1e3),
        'm' | 'M' => (text.get(..text.len() - 1)?, 1e6),
        'g' | 'G' => (text.get(..text.len() - 1)?, 1e9),
        _ => (text, 1.0),
    };
    let number: f64 = number.trim().parse().ok()?;
    (number.is_finite() && number > 0.0).then_some(number * factor)
}

#[cfg(test)]
#[path = "guard_test.rs"]
mod tests;
