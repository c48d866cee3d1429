//! Which snapshots are kept, why, and until when; and which log they need.
//!
//! Reasons only ever add up: a snapshot goes when none is left. So one rule more never lets anything go, and what is not
//! understood is kept.

use std::collections::BTreeMap;

use holdfast_types::{Lsn, SegmentSize, SnapshotId, SystemId, Timeline};
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, Timestamp, ToSpan as _};
use serde::Serialize;

/// What is promised of the snapshots of one source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// The newest ones.
    pub last: u32,
    /// All that are younger.
    pub within: Option<SignedDuration>,
    /// The newest of each of so many days, weeks (from Monday), months and years that have any.
    pub daily: u32,
    pub weekly: u32,
    pub monthly: u32,
    pub yearly: u32,
    /// Any moment of this last time can be recovered.
    pub window: Option<SignedDuration>,
    /// So many that were verified stay, whatever the rest says.
    pub minimum: u32,
}

/// The promises contradict themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RetentionError {
    #[error("nothing would be kept: no rule keeps any snapshot")]
    Nothing,
    #[error("a time that snapshots are kept for is not positive")]
    NotPositive,
}

impl Retention {
    pub fn check(&self) -> Result<(), RetentionError> {
        let times = [self.within, self.window];
        if times.iter().flatten().any(|time| !time.is_positive()) {
            return Err(RetentionError::NotPositive);
        }
        let counts = [self.last, self.daily, self.weekly, self.monthly, self.yearly];
        if counts.iter().all(|count| *count == 0) && times.iter().all(Option::is_none) {
            return Err(RetentionError::Nothing);
        }
        Ok(())
    }
}

/// A snapshot, as far as it counts here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    pub id: SnapshotId,
    /// When it was complete, by a clock that whoever made it does not set: the store's.
    pub taken_at: Timestamp,
    pub system_id: SystemId,
    pub timeline: Timeline,
    pub start_lsn: Lsn,
    pub stop_lsn: Lsn,
    pub segment_size: SegmentSize,
    /// Somebody read all of it back, and it was good.
    pub is_verified: bool,
    /// Somebody wants to keep it: until a moment, or until told otherwise.
    pub pin: Option<Pin>,
}

/// That a snapshot is to be kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pin {
    pub why: String,
    pub until: Option<Timestamp>,
}

/// Why a snapshot is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// One of the newest; its place among them, from 1.
    Last(u32),
    Within,
    /// The newest of a day, or of the week, month or year that begins with it.
    Daily(Date),
    Weekly(Date),
    Monthly(Date),
    Yearly(Date),
    /// The recoverable time begins with it.
    Window,
    Pinned(String),
    /// Fewer verified ones would be left than there have to be.
    Minimum,
    /// It is younger than now: a clock is wrong, and nothing is decided by it.
    Future,
}

/// What becomes of one snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decision {
    pub id: SnapshotId,
    /// Empty: it goes.
    pub reasons: Vec<Reason>,
    /// When the last of its reasons ends at the earliest, if time alone ends them.
    pub until: Option<Timestamp>,
}

impl Decision {
    pub fn is_kept(&self) -> bool {
        !self.reasons.is_empty()
    }
}

/// Decides on all snapshots of one source; the newest first, whatever the order in which they come.
pub fn decide(policy: &Retention, points: &[Point], now: Timestamp, zone: &TimeZone) -> Vec<Decision> {
    let mut sorted: Vec<&Point> = points.iter().collect();
    sorted.sort_by(|a, b| (b.taken_at, &b.id).cmp(&(a.taken_at, &a.id)));
    let mut kept: Vec<Kept> = sorted.iter().map(|_| Kept::default()).collect();

    for (number, (point, kept)) in sorted.iter().zip(&mut kept).enumerate() {
        if (number as u64) < u64::from(policy.last) {
            kept.forever(Reason::Last(number as u32 + 1));
        }
        if let Some(within) = policy.within {
            kept.until(Reason::Within, later(point.taken_at, within), now);
        }
        if let Some(pin) = &point.pin {
            let reason = Reason::Pinned(pin.why.clone());
            match pin.until {
                Some(until) => kept.until(reason, until, now),
                None => kept.forever(reason),
            }
        }
        if point.taken_at > now {
            kept.forever(Reason::Future);
        }
    }
    for (count, period) in [
        (policy.daily, Period::Day),
        (policy.weekly, Period::Week),
        (policy.monthly, Period::Month),
        (policy.yearly, Period::Year),
    ] {
        let mut seen: Vec<Date> = Vec::new();
        for (point, kept) in sorted.iter().zip(&mut kept) {
            let begins = period.begins(point.taken_at.to_zoned(zone.clone()).date());
            if seen.last() == Some(&begins) {
                continue;
            }
            if seen.len() as u64 >= u64::from(count) {
                break;
            }
            seen.push(begins);
            // With a snapshot in each period from now on.
            let end = period.add(begins, i64::from(count)).and_then(|date| date.to_zoned(zone.clone()).ok());
            match end {
                Some(end) => kept.expected(period.reason(begins), end.timestamp(), now),
                None => kept.forever(period.reason(begins)),
            }
        }
    }
    if let Some(window) = policy.window {
        let begins = earlier(now, window);
        for cluster in clusters(&sorted) {
            // The newest that was complete when the window began: everything in it is replayed from there. What comes later
            // is kept as well, since the log is, and a recovery from far back takes long.
            let base = cluster.iter().position(|number| at(&sorted, *number).is_some_and(|p| p.taken_at <= begins));
            for number in cluster.iter().take(base.map_or(cluster.len(), |base| base + 1)) {
                if let (Some(kept), Some(point)) = (kept.get_mut(*number), at(&sorted, *number)) {
                    kept.expected(Reason::Window, later(point.taken_at, window), now);
                }
            }
        }
    }
    let verified = |kept: &[Kept]| {
        sorted.iter().zip(kept).filter(|(point, kept)| point.is_verified && !kept.reasons.is_empty()).count() as u64
    };
    let mut missing = u64::from(policy.minimum).saturating_sub(verified(&kept));
    for (point, kept) in sorted.iter().zip(&mut kept) {
        if missing > 0 && point.is_verified && kept.reasons.is_empty() {
            kept.forever(Reason::Minimum);
            missing -= 1;
        }
    }
    if missing > 0 {
        // There are not as many: nothing that might still be good goes before others are proved to be.
        for kept in kept.iter_mut().filter(|kept| kept.reasons.is_empty()) {
            kept.forever(Reason::Minimum);
        }
    }
    let decision = |(point, kept): (&&Point, Kept)| Decision {
        id: point.id.clone(),
        until: kept.until.filter(|_| !kept.is_forever && !kept.reasons.is_empty()),
        reasons: kept.reasons,
    };
    sorted.iter().zip(kept).map(decision).collect()
}

/// The reasons to keep one snapshot.
#[derive(Clone, Debug, Default)]
struct Kept {
    reasons: Vec<Reason>,
    until: Option<Timestamp>,
    is_forever: bool,
}

impl Kept {
    /// No moment ends it.
    fn forever(&mut self, reason: Reason) {
        self.reasons.push(reason);
        self.is_forever = true;
    }

    /// Ends at a moment, which may have come.
    fn until(&mut self, reason: Reason, until: Timestamp, now: Timestamp) {
        if until > now {
            self.expected(reason, until, now);
        }
    }

    /// Holds now, and will end at about a moment.
    fn expected(&mut self, reason: Reason, until: Timestamp, now: Timestamp) {
        self.reasons.push(reason);
        self.until = self.until.max(Some(until.max(now)));
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Period {
    Day,
    Week,
    Month,
    Year,
}

impl Period {
    fn begins(self, date: Date) -> Date {
        match self {
            Self::Day => date,
            Self::Week => {
                let since_monday = i64::from(date.weekday().to_monday_zero_offset());
                date.checked_sub(since_monday.days()).unwrap_or(date)
            }
            Self::Month => date.first_of_month(),
            Self::Year => date.first_of_year(),
        }
    }

    fn add(self, date: Date, count: i64) -> Option<Date> {
        let span = match self {
            Self::Day => Span::new().try_days(count),
            Self::Week => Span::new().try_weeks(count),
            Self::Month => Span::new().try_months(count),
            Self::Year => Span::new().try_years(count),
        };
        date.checked_add(span.ok()?).ok()
    }

    fn reason(self, begins: Date) -> Reason {
        match self {
            Self::Day => Reason::Daily(begins),
            Self::Week => Reason::Weekly(begins),
            Self::Month => Reason::Monthly(begins),
            Self::Year => Reason::Yearly(begins),
        }
    }
}

fn later(at: Timestamp, time: SignedDuration) -> Timestamp {
    at.checked_add(time).unwrap_or(Timestamp::MAX)
}

fn earlier(at: Timestamp, time: SignedDuration) -> Timestamp {
    at.checked_sub(time).unwrap_or(Timestamp::MIN)
}

fn at<'a>(sorted: &[&'a Point], number: usize) -> Option<&'a Point> {
    sorted.get(number).copied()
}

/// The numbers of the snapshots of each cluster, in the order in which they are given.
fn clusters(sorted: &[&Point]) -> Vec<Vec<usize>> {
    let mut found: BTreeMap<SystemId, Vec<usize>> = BTreeMap::new();
    for (number, point) in sorted.iter().enumerate() {
        found.entry(point.system_id).or_default().push(number);
    }
    found.into_values().collect()
}

/// The same, for each timeline of each cluster.
fn timelines(sorted: &[&Point]) -> Vec<Vec<usize>> {
    let mut found: BTreeMap<(SystemId, Timeline), Vec<usize>> = BTreeMap::new();
    for (number, point) in sorted.iter().enumerate() {
        found.entry((point.system_id, point.timeline)).or_default().push(number);
    }
    found.into_values().collect()
}

/// Log that has to stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct LogNeed {
    pub system_id: SystemId,
    pub timeline: Timeline,
    /// Where a segment begins.
    pub from: Lsn,
    /// `None`: all that there is, on this timeline and on those that come after it.
    pub to: Option<Lsn>,
}

impl LogNeed {
    /// Whether any of a stretch has to stay.
    pub fn covers(&self, timeline: Timeline, start: Lsn, end: Lsn) -> bool {
        match self.to {
            Some(to) => timeline == self.timeline && start < to && end > self.from,
            // What came after a switch belongs to it wherever it begins.
            None => timeline > self.timeline || timeline == self.timeline && end > self.from,
        }
    }
}

/// The log that the kept snapshots need: each its own, and behind the one with which the recoverable time begins all.
pub fn log_needs(policy: &Retention, points: &[Point], decisions: &[Decision], now: Timestamp) -> Vec<LogNeed> {
    let is_kept = |point: &Point| {
        // One that nobody decided on stays, and so does its log.
        decisions.iter().find(|decision| decision.id == point.id).is_none_or(Decision::is_kept)
    };
    let kept: Vec<&Point> = points.iter().filter(|point| is_kept(point)).collect();
    let first = |point: &Point| Lsn::new(point.start_lsn.get() / point.segment_size.get() * point.segment_size.get());
    let mut needs: Vec<LogNeed> = kept
        .iter()
        .map(|point| LogNeed {
            system_id: point.system_id,
            timeline: point.timeline,
            from: first(point),
            to: Some(point.stop_lsn),
        })
        .collect();
    let begins = policy.window.map(|window| earlier(now, window));
    // On each timeline as well: the newest snapshot may be of one that was left again.
    let histories = clusters(&kept).into_iter().chain(timelines(&kept));
    for cluster in histories {
        let of_cluster = || cluster.iter().filter_map(|number| at(&kept, *number));
        // Without a window all log since the oldest kept snapshot would have to stay to be of use; only what follows the
        // newest is promised.
        let base = match begins {
            Some(begins) => of_cluster().filter(|point| point.taken_at <= begins).max_by_key(|point| point.taken_at),
            None => None,
        };
        let oldest = || of_cluster().min_by_key(|point| point.taken_at);
        let newest = || of_cluster().max_by_key(|point| point.taken_at);
        let base = if begins.is_some() { base.or_else(oldest) } else { newest() };
        needs.extend(base.map(|point| LogNeed {
            system_id: point.system_id,
            timeline: point.timeline,
            from: first(point),
            to: None,
        }));
    }
    needs.sort();
    needs.dedup();
    needs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ts(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn point(number: usize, taken_at: Timestamp) -> Point {
        Point {
            id: format!("20261121T101500Z-{number:08x}").parse().unwrap(),
            taken_at,
            system_id: SystemId::new(7),
            timeline: Timeline::new(1),
            start_lsn: Lsn::new(number as u64 * 0x100_0000 + 0x28),
            stop_lsn: Lsn::new(number as u64 * 0x100_0000 + 0x100),
            segment_size: SegmentSize::DEFAULT,
            is_verified: true,
            pin: None,
        }
    }

    /// One for each hour up to a moment, the oldest first.
    fn hourly(count: usize, now: Timestamp) -> Vec<Point> {
        let at = |number: usize| earlier(now, SignedDuration::from_hours((count - 1 - number) as i64));
        (0..count).map(|number| point(number, at(number))).collect()
    }

    fn kept(decisions: &[Decision]) -> usize {
        decisions.iter().filter(|decision| decision.is_kept()).count()
    }

    #[test]
    fn counts_and_calendars_add_up() {
        let now = ts("2026-11-21T12:30:00Z");
        let points = hourly(24 * 40, now);
        let policy = Retention { last: 3, daily: 7, weekly: 4, monthly: 2, ..Retention::default() };
        let decisions = decide(&policy, &points, now, &TimeZone::UTC);
        let days = |reason: fn(&Reason) -> bool| decisions.iter().filter(|d| d.reasons.iter().any(reason)).count();
        assert_eq!(days(|reason| matches!(reason, Reason::Last(_))), 3);
        assert_eq!(days(|reason| matches!(reason, Reason::Daily(_))), 7);
        assert_eq!(days(|reason| matches!(reason, Reason::Weekly(_))), 4);
        assert_eq!(days(|reason| matches!(reason, Reason::Monthly(_))), 2);
        // The newest is one of each; the weeks share one more with the days.
        let newest = &decisions[0].reasons;
        assert_eq!(newest.len(), 4, "{newest:?}");
        // A day's one stays until seven later days have one. That of the 15th, a Sunday, is its week's as well.
        let oldest_day = decisions.iter().rfind(|d| matches!(d.reasons.as_slice(), [Reason::Daily(_)]));
        assert_eq!(oldest_day.unwrap().until, Some(ts("2026-11-23T00:00:00Z")));
    }

    /// A promotion that was taken back: the log of the timeline that lives on is needed, whatever the newest base is of.
    #[test]
    fn a_timeline_that_was_left_does_not_take_the_log_of_the_other() {
        let now = ts("2026-11-21T12:00:00Z");
        let of = |number, timeline, hours| {
            let mut point = point(number, earlier(now, SignedDuration::from_hours(hours)));
            point.timeline = Timeline::new(timeline);
            point
        };
        let points = [of(0, 1, 24 * 9), of(1, 2, 24 * 8), of(2, 1, 24 * 2)];
        let policy = Retention { window: Some(SignedDuration::from_hours(24 * 7)), last: 3, ..Retention::default() };
        let decided = decide(&policy, &points, now, &TimeZone::UTC);
        let needs = log_needs(&policy, &points, &decided, now);
        let (from, to) = (Lsn::new(u64::MAX / 4), Lsn::new(u64::MAX / 2));
        for timeline in [1, 2] {
            assert!(needs.iter().any(|need| need.covers(Timeline::new(timeline), from, to)), "timeline {timeline}");
        }
    }

    #[test]
    fn days_are_those_of_the_zone() {
        // Half past midnight in Berlin.
        let points = [point(0, ts("2026-11-20T22:30:00Z")), point(1, ts("2026-11-20T23:30:00Z"))];
        let policy = Retention { daily: 1, ..Retention::default() };
        let now = ts("2026-11-21T12:00:00Z");
        let berlin =
            decide(&Retention { daily: 2, ..policy.clone() }, &points, now, &TimeZone::get("Europe/Berlin").unwrap());
        assert_eq!(kept(&berlin), 2);
        let utc = decide(&Retention { daily: 2, ..policy }, &points, now, &TimeZone::UTC);
        assert_eq!(kept(&utc), 1);
    }

    #[test]
    fn a_window_keeps_what_its_beginning_needs() {
        let now = ts("2026-11-21T12:00:00Z");
        let points = hourly(10, now);
        let policy = Retention { window: Some(SignedDuration::from_mins(150)), ..Retention::default() };
        let decisions = decide(&policy, &points, now, &TimeZone::UTC);
        // Those of 12, 11, 10 o'clock, and of 9: half past nine is recovered from there.
        assert_eq!(kept(&decisions), 4);
        let needs = log_needs(&policy, &points, &decisions, now);
        let open: Vec<_> = needs.iter().filter(|need| need.to.is_none()).collect();
        assert_eq!(open.len(), 1);
        assert_eq!(open[0].from, Lsn::new(6 * 0x100_0000));
        assert_eq!(needs.len(), 5);
    }

    #[test]
    fn verified_ones_are_not_left_too_few() {
        let now = ts("2026-11-21T12:00:00Z");
        let mut points = hourly(5, now);
        for point in &mut points[2..] {
            point.is_verified = false;
        }
        let policy = Retention { last: 1, minimum: 2, ..Retention::default() };
        let decisions = decide(&policy, &points, now, &TimeZone::UTC);
        let of = |number: usize| decisions.iter().find(|decision| decision.id == points[number].id).unwrap();
        assert_eq!(of(4).reasons, [Reason::Last(1)]);
        assert_eq!((&of(1).reasons, &of(0).reasons), (&vec![Reason::Minimum], &vec![Reason::Minimum]));
        assert!(!of(2).is_kept() && !of(3).is_kept());
        // Where there are not as many, nothing goes.
        let policy = Retention { minimum: 3, ..policy };
        assert_eq!(kept(&decide(&policy, &points, now, &TimeZone::UTC)), 5);
    }

    #[test]
    fn pins_hold_and_end() {
        let now = ts("2026-11-21T12:00:00Z");
        let mut points = hourly(4, now);
        points[0].pin = Some(Pin { why: "case 17".to_owned(), until: None });
        points[1].pin = Some(Pin { why: "release".to_owned(), until: Some(ts("2026-11-21T12:00:00Z")) });
        points[2].pin = Some(Pin { why: "release".to_owned(), until: Some(ts("2026-11-21T12:00:01Z")) });
        let decisions = decide(&Retention { last: 1, ..Retention::default() }, &points, now, &TimeZone::UTC);
        let is_kept: Vec<bool> = decisions.iter().rev().map(Decision::is_kept).collect();
        assert_eq!(is_kept, [true, false, true, true]);
        assert_eq!(decisions[1].until, Some(ts("2026-11-21T12:00:01Z")));
    }

    #[test]
    fn a_policy_that_keeps_nothing_is_none() {
        assert_eq!(Retention::default().check(), Err(RetentionError::Nothing));
        let policy = Retention { within: Some(SignedDuration::ZERO), ..Retention::default() };
        assert_eq!(policy.check(), Err(RetentionError::NotPositive));
        assert_eq!(Retention { last: 1, ..Retention::default() }.check(), Ok(()));
    }

    fn policies() -> impl Strategy<Value = Retention> {
        let hours = || prop::option::of((1i64..500).prop_map(SignedDuration::from_hours));
        (0u32..5, hours(), 0u32..5, 0u32..5, 0u32..5, 0u32..3, hours(), 0u32..5).prop_map(
            |(last, within, daily, weekly, monthly, yearly, window, minimum)| Retention {
                last,
                within,
                daily,
                weekly,
                monthly,
                yearly,
                window,
                minimum,
            },
        )
    }

    fn histories() -> impl Strategy<Value = Vec<Point>> {
        prop::collection::vec((0i64..40_000, any::<bool>(), prop::bool::weighted(0.1)), 0..60).prop_map(|all| {
            let now = ts("2026-11-21T12:00:00Z");
            let made = |(number, (hours, is_verified, is_pinned)): (usize, (i64, bool, bool))| Point {
                is_verified,
                pin: is_pinned.then(|| Pin { why: "x".to_owned(), until: None }),
                ..point(number, earlier(now, SignedDuration::from_mins(hours * 7)))
            };
            all.into_iter().enumerate().map(made).collect()
        })
    }

    proptest! {
        #[test]
        fn nothing_that_was_promised_goes(policy in policies(), points in histories()) {
            let now = ts("2026-11-21T12:00:00Z");
            let decisions = decide(&policy, &points, now, &TimeZone::UTC);
            prop_assert_eq!(decisions.len(), points.len());
            let is_kept = |point: &Point| decisions.iter().any(|d| d.id == point.id && d.is_kept());
            for point in &points {
                prop_assert!(point.pin.is_none() || is_kept(point));
                let age = now.duration_since(point.taken_at);
                prop_assert!(policy.within.is_none_or(|within| age >= within) || is_kept(point));
            }
            let all = points.iter().filter(|point| point.is_verified).count();
            let left = points.iter().filter(|point| point.is_verified && is_kept(point)).count();
            prop_assert!(left >= all.min(policy.minimum as usize));
            prop_assert!(kept(&decisions) >= points.len().min(policy.last as usize));
            // Every moment of the window that was recoverable still is, and its log stays.
            if let Some(window) = policy.window {
                let needs = log_needs(&policy, &points, &decisions, now);
                let begins = earlier(now, window);
                let base = points.iter().filter(|point| point.taken_at <= begins).max_by_key(|p| (p.taken_at, p.id.clone()));
                if let Some(base) = base {
                    prop_assert!(is_kept(base));
                    prop_assert!(needs.iter().any(|need| need.to.is_none() && need.from <= base.start_lsn));
                }
            }
        }

        #[test]
        fn the_order_does_not_matter_and_more_rules_keep_more(policy in policies(), more in policies(), points in histories()) {
            let now = ts("2026-11-21T12:00:00Z");
            let decisions = decide(&policy, &points, now, &TimeZone::UTC);
            let mut turned = points.clone();
            turned.reverse();
            prop_assert_eq!(&decide(&policy, &turned, now, &TimeZone::UTC), &decisions);
            let both = Retention {
                last: policy.last.max(more.last),
                within: policy.within.max(more.within),
                daily: policy.daily.max(more.daily),
                weekly: policy.weekly.max(more.weekly),
                monthly: policy.monthly.max(more.monthly),
                yearly: policy.yearly.max(more.yearly),
                window: policy.window.max(more.window),
                minimum: 0,
            };
            let of_both = decide(&both, &points, now, &TimeZone::UTC);
            let without = decide(&Retention { minimum: 0, ..policy }, &points, now, &TimeZone::UTC);
            for (one, other) in without.iter().zip(&of_both) {
                prop_assert!(!one.is_kept() || other.is_kept());
            }
        }
    }
}
