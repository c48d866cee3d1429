//! Showing what a job has done: a bar on a terminal, a line now and then elsewhere, JSON lines with `--json`.

use std::time::{Duration, Instant};

use holdfast_runtime::{LogPosition, Progress, Reading};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tokio::task::JoinHandle;

use crate::output::{self, Output};
use crate::{table, time};

/// Shows a job's progress until it is dropped.
#[derive(Debug)]
pub(crate) struct Shown {
    task: Option<JoinHandle<()>>,
    bar: Option<ProgressBar>,
}

/// Work that is done sooner is not worth a bar.
const DELAY: Duration = Duration::from_millis(250);
const BAR_STEP: Duration = Duration::from_millis(100);
const LINE_STEP: Duration = Duration::from_secs(10);
const JSON_STEP: Duration = Duration::from_secs(1);

pub(crate) fn show(progress: &Progress, output: Output) -> Shown {
    let progress = progress.clone();
    if output.json {
        Shown { task: Some(tokio::spawn(lines(progress, JSON_STEP, json_line))), bar: None }
    } else if output.quiet {
        Shown { task: None, bar: None }
    } else if output::is_terminal() {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        Shown { task: Some(tokio::spawn(draw(progress, bar.clone()))), bar: Some(bar) }
    } else {
        Shown { task: Some(tokio::spawn(lines(progress, LINE_STEP, text_line))), bar: None }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// With and without a total. A position in the log takes a line of its own: both do not fit into 80 columns.
const KNOWN: &str = "{msg}  {wide_bar} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left";
const FOLLOWING: &str = "{msg}\n{wide_bar} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left";
const UNKNOWN: &str = "{spinner} {msg}  {bytes}  {bytes_per_sec}";
/// Where there is nothing to count.
const WAITING: &str = "{spinner} {msg}  {elapsed}";

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates above are valid")
}

async fn draw(progress: Progress, bar: ProgressBar) {
    tokio::time::sleep(DELAY).await;
    bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
    let (mut phase, mut template) = (None, "");
    loop {
        let reading = progress.read();
        let remark = progress.read_remark();
        let remark = remark.as_deref();
        if reading.phase != phase {
            phase = reading.phase;
            bar.reset();
        }
        if template != template_of(reading, remark) {
            template = template_of(reading, remark);
            bar.set_style(style(template));
        }
        bar.set_message(what(reading, remark));
        bar.set_length(reading.total);
        bar.set_position(reading.done);
        bar.tick();
        tokio::time::sleep(BAR_STEP).await;
    }
}

fn template_of(reading: Reading, remark: Option<&str>) -> &'static str {
    match reading {
        _ if remark.is_some() => WAITING,
        Reading { total: 0, .. } => UNKNOWN,
        Reading { position: Some(_), .. } => FOLLOWING,
        _ => KNOWN,
    }
}

/// The phase, with what there is to say of it, and the position and time reached in one that follows the log.
fn what(Reading { phase, position, .. }: Reading, remark: Option<&str>) -> String {
    let phase = phase.map_or("", |phase| phase.0);
    match (remark, position) {
        (Some(remark), _) => format!("{phase}: {remark}"),
        (None, None) => phase.to_owned(),
        (None, Some(LogPosition { lsn, time: None })) => format!("{phase}, {lsn}"),
        (None, Some(LogPosition { lsn, time: Some(at) })) => format!("{phase}, {lsn}, {}", time::show_seconds(at)),
    }
}

async fn lines(progress: Progress, step: Duration, line: fn(Reading, Option<&str>, f64) -> String) {
    let mut ticks = tokio::time::interval(step);
    ticks.tick().await;
    let (mut before, mut at) = (progress.read(), Instant::now());
    loop {
        ticks.tick().await;
        let (reading, now) = (progress.read(), Instant::now());
        // A new phase counts from zero.
        let base = if reading.phase == before.phase { before.done } else { 0 };
        let rate = reading.done.saturating_sub(base) as f64 / (now - at).as_secs_f64().max(0.001);
        if reading.phase.is_some() {
            output::talk(&line(reading, progress.read_remark().as_deref(), rate));
        }
        (before, at) = (reading, now);
    }
}

fn text_line(reading: Reading, remark: Option<&str>, rate: f64) -> String {
    let Reading { done, total, .. } = reading;
    let phase = what(reading, remark);
    if remark.is_some() {
        return phase;
    }
    let rate_text = table::size(rate as u64);
    if total == 0 {
        return format!("{phase}: {}, {rate_text}/s", table::size(done));
    }
    let left = match total.saturating_sub(done) as f64 / rate {
        seconds if seconds.is_finite() => format!(", {} left", table::duration(Duration::from_secs(seconds as u64))),
        _ => String::new(),
    };
    let percent = done * 100 / total;
    format!("{phase}: {} of {} ({percent} %), {rate_text}/s{left}", table::size(done), table::size(total))
}

fn json_line(reading: Reading, remark: Option<&str>, rate: f64) -> String {
    #[derive(Serialize)]
    struct Line<'a> {
        phase: Option<&'static str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        remark: Option<&'a str>,
        done: u64,
        total: u64,
        bytes_per_second: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        lsn: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        time: Option<String>,
    }
    let Reading { phase, done, total, position } = reading;
    let line = Line {
        phase: phase.map(|phase| phase.0),
        remark,
        done,
        total,
        bytes_per_second: rate as u64,
        lsn: position.map(|position| position.lsn.to_string()),
        time: position.and_then(|position| position.time).map(time::show_seconds),
    };
    serde_json::to_string(&line).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_runtime::Phase;
    use holdfast_types::{Lsn, Micros};

    #[test]
    fn templates_are_valid() {
        let _styles = [KNOWN, FOLLOWING, UNKNOWN, WAITING].map(style);
    }

    #[test]
    fn lines_say_where_a_job_stands() {
        let reading = Reading { phase: Some(Phase("copying files")), done: 50 << 20, total: 200 << 20, position: None };
        let rate = f64::from(25 << 20);
        assert_eq!(
            text_line(reading, None, rate),
            "copying files: 50.0 MiB of 200.0 MiB (25 %), 25.0 MiB/s, 6.00 s left"
        );
        assert_eq!(text_line(Reading { total: 0, ..reading }, None, rate), "copying files: 50.0 MiB, 25.0 MiB/s");
        assert!(!text_line(reading, None, 0.0).contains("left"));
        assert_eq!(text_line(reading, Some("up to 4 min"), rate), "copying files: up to 4 min");
        let position = Some(LogPosition { lsn: Lsn::new(0x4B2_4E68), time: None });
        let following = Reading { phase: Some(Phase("replaying the log")), position, ..reading };
        let expected = "replaying the log, 0/4B24E68: 50.0 MiB of 200.0 MiB (25 %), 25.0 MiB/s, 6.00 s left";
        assert_eq!(text_line(following, None, rate), expected);
        assert_eq!((template_of(following, None), template_of(following, Some("x"))), (FOLLOWING, WAITING));
        let time = Some(Micros::new(1_763_716_500_123_456));
        let position = position.map(|position| LogPosition { time, ..position });
        let what = what(Reading { position, ..following }, None);
        assert_eq!(what, "replaying the log, 0/4B24E68, 2025-11-21 09:15:00Z");
        let line = json_line(Reading { position, ..following }, None, rate);
        assert!(line.contains("\"lsn\":\"0/4B24E68\",\"time\":\"2025-11-21 09:15:00Z\""), "{line}");
        let json: serde_json::Value = serde_json::from_str(&json_line(reading, None, rate)).unwrap();
        assert_eq!((json["phase"].as_str(), json["total"].as_u64()), (Some("copying files"), Some(200 << 20)));
    }
}
