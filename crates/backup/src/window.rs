//! When backups may run. Pure.

use std::fmt;

use jiff::civil::{Date, Time};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

/// Spans of the week, by the clock of one time zone.
#[derive(Clone, Debug, PartialEq)]
pub struct Windows {
    windows: Vec<Window>,
    zone: TimeZone,
}

/// `Mon-Fri 22:00-06:00`: on each of the days from one time to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// A bit for each day on which it opens, Monday's first.
    days: u8,
    from: Time,
    /// Midnight at the end of the day is the midnight that the next day begins with.
    to: Time,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no window")]
pub struct WindowError(String);

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const EVERY_DAY: u8 = 0x7F;

impl std::str::FromStr for Window {
    type Err = WindowError;

    fn from_str(text: &str) -> Result<Self, WindowError> {
        let parsed = || {
            let (days, times) = match text.trim().rsplit_once(' ') {
                Some((days, times)) => (parse_days(days)?, times),
                None => (EVERY_DAY, text.trim()),
            };
            let (from, to) = times.split_once('-')?;
            let (from, to) = (parse_time(from)?, if to == "24:00" { Time::midnight() } else { parse_time(to)? });
            let is_whole_day = from == Time::midnight() && times.ends_with("-24:00");
            (from != to || is_whole_day).then_some(Self { days, from, to })
        };
        parsed().ok_or_else(|| WindowError(text.to_owned()))
    }
}

/// `Mon-Fri`, `Sat,Sun`, `Fri-Mon`.
fn parse_days(text: &str) -> Option<u8> {
    let day = |name: &str| DAYS.iter().position(|day| name.trim().eq_ignore_ascii_case(day));
    let mut days = 0;
    for part in text.split(',') {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (day(first)?, day(last)?),
            None => (day(part)?, day(part)?),
        };
        let mut at = first;
        loop {
            days |= 1 << at;
            if at == last {
                break;
            }
            at = (at + 1) % DAYS.len();
        }
    }
    Some(days)
}

fn parse_time(text: &str) -> Option<Time> {
    let (hour, minute) = text.split_once(':')?;
    let number = |digits: &str| (digits.len() == 2).then(|| digits.parse::<i8>().ok()).flatten();
    Time::new(number(hour)?, number(minute)?, 0, 0).ok()
}

impl Windows {
    pub fn new(windows: Vec<Window>, zone: TimeZone) -> Self {
        Self { windows, zone }
    }

    /// When the window that is open at a moment closes; `None` if none is open.
    pub fn closes(&self, now: Timestamp) -> Option<Timestamp> {
        let mut closes = None;
        // Windows that touch are one. A week of them is as good as always.
        for _ in 0..2 * DAYS.len() * self.windows.len().max(1) {
            let at = closes.unwrap_or(now);
            let next = self.around(at).filter(|(from, to)| *from <= at && at < *to).map(|(_, to)| to).max();
            match next {
                Some(next) => closes = Some(next),
                None => break,
            }
        }
        closes
    }

    /// When the next window opens.
    pub fn opens(&self, now: Timestamp) -> Option<Timestamp> {
        self.around(now).map(|(from, _)| from).filter(|from| *from > now).min()
    }

    /// All that open from the day before to a week after.
    fn around(&self, now: Timestamp) -> impl Iterator<Item = (Timestamp, Timestamp)> {
        let today = now.to_zoned(self.zone.clone()).date();
        (-1..=DAYS.len() as i64 + 1)
            .filter_map(move |offset| today.checked_add(Span::new().days(offset)).ok())
            .flat_map(move |day| self.windows.iter().filter_map(move |window| self.on(day, window)))
    }

    fn on(&self, day: Date, window: &Window) -> Option<(Timestamp, Timestamp)> {
        let number = day.weekday().to_monday_zero_offset();
        if window.days & 1 << number == 0 {
            return None;
        }
        let last = if window.to > window.from { day } else { day.tomorrow().ok()? };
        // A time that the clock leaps over, or has twice, is taken as jiff's "compatible" does.
        let moment =
            |day: Date, time| Some(self.zone.to_ambiguous_zoned(day.to_datetime(time)).compatible().ok()?.timestamp());
        // One that would end with what is leapt over does not open on that day.
        Some((moment(day, window.from)?, moment(last, window.to)?)).filter(|(from, to)| from < to)
    }

    /// A moment on the clock of the windows.
    pub fn clock(&self, at: Timestamp) -> String {
        at.to_zoned(self.zone.clone()).strftime("%a %Y-%m-%d %H:%M %Z").to_string()
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let days: Vec<_> =
            DAYS.iter().enumerate().filter(|(number, _)| self.days & 1 << number != 0).map(|(_, day)| *day).collect();
        if self.days != EVERY_DAY {
            write!(f, "{} ", days.join(","))?;
        }
        let to = if self.to == Time::midnight() { "24:00".to_owned() } else { self.to.strftime("%H:%M").to_string() };
        write!(f, "{}-{to}", self.from.strftime("%H:%M"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn windows(texts: &[&str], zone: &str) -> Windows {
        Windows::new(texts.iter().map(|text| text.parse().unwrap()).collect(), TimeZone::get(zone).unwrap())
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_window_crosses_midnight() {
        let nightly = windows(&["22:00-06:00"], "UTC");
        assert_eq!(nightly.closes(at("2026-11-21T23:30:00Z")), Some(at("2026-11-22T06:00:00Z")));
        assert_eq!(nightly.closes(at("2026-11-21T03:00:00Z")), Some(at("2026-11-21T06:00:00Z")));
        assert_eq!(nightly.closes(at("2026-11-21T06:00:00Z")), None);
        assert_eq!(nightly.opens(at("2026-11-21T06:00:00Z")), Some(at("2026-11-21T22:00:00Z")));
    }

    #[test]
    fn days_are_those_on_which_it_opens() {
        // The twenty-first of November 2026 is a Saturday.
        let weekdays = windows(&["Mon-Fri 22:00-06:00"], "UTC");
        assert_eq!(weekdays.closes(at("2026-11-21T03:00:00Z")), Some(at("2026-11-21T06:00:00Z")));
        assert_eq!(weekdays.closes(at("2026-11-21T23:00:00Z")), None);
        assert_eq!(weekdays.opens(at("2026-11-21T23:00:00Z")), Some(at("2026-11-23T22:00:00Z")));
    }

    #[test]
    fn windows_that_touch_are_one() {
        let two = windows(&["22:00-24:00", "00:00-04:00"], "UTC");
        assert_eq!(two.closes(at("2026-11-21T22:30:00Z")), Some(at("2026-11-22T04:00:00Z")));
        let always = windows(&["00:00-24:00"], "UTC");
        assert!(always.closes(at("2026-11-21T22:30:00Z")).unwrap() > at("2026-11-23T00:00:00Z"));
    }

    #[test]
    fn the_clock_is_that_of_the_zone() {
        let berlin = windows(&["01:00-04:00"], "Europe/Berlin");
        assert_eq!(berlin.closes(at("2026-11-21T00:30:00Z")), Some(at("2026-11-21T03:00:00Z")));
        // In the night in which an hour is missing it is two hours long, in the one that has an hour twice four.
        assert_eq!(berlin.closes(at("2026-03-29T00:30:00Z")), Some(at("2026-03-29T02:00:00Z")));
        assert_eq!(berlin.closes(at("2026-10-24T23:30:00Z")), Some(at("2026-10-25T03:00:00Z")));
    }

    #[test]
    fn a_window_that_the_clock_leaps_over_does_not_open() {
        // In the night of the twenty-ninth of March 03:00 comes after 02:00.
        let berlin = windows(&["02:30-03:00"], "Europe/Berlin");
        for minute in 0..120 {
            let now = at("2026-03-29T00:00:00Z").checked_add(Span::new().minutes(minute)).unwrap();
            assert_eq!(berlin.closes(now), None, "{now}");
            assert_eq!(berlin.opens(now), Some(at("2026-03-30T00:30:00Z")), "{now}");
        }
    }

    #[test]
    fn what_is_no_window_is_refused() {
        for text in
            ["", "22:00", "22:00-22:00", "25:00-26:00", "Mo 22:00-23:00", "22-23", "24:00-01:00", "Mon-22:00-23:00"]
        {
            assert!(text.parse::<Window>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_window_that_opens_is_open(days in 1u8..=EVERY_DAY, from in 0i8..24, to in 0i8..24, seconds in 1_700_000_000i64..1_900_000_000) {
            prop_assume!(from != to);
            let window = Window { days, from: Time::new(from, 0, 0, 0).unwrap(), to: Time::new(to, 0, 0, 0).unwrap() };
            prop_assert_eq!(window.to_string().parse::<Window>().unwrap(), window);
            let windows = Windows::new(vec![window], TimeZone::get("America/New_York").unwrap());
            let now = Timestamp::from_second(seconds).unwrap();
            let opens = windows.opens(now).unwrap();
            prop_assert!(opens > now);
            prop_assert!(windows.closes(opens).is_some_and(|closes| closes > opens));
        }
    }
}
