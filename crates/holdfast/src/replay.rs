//! The log that a recovery would replay, for people and for programs.

use std::time::Duration;

use holdfast_backup::Replay;

use crate::table;

/// `120.0 MiB, about 4 s (target 30 s: kept)`.
pub(crate) fn text(replay: Replay, target: Option<Duration>) -> String {
    let estimate = format!("{}, about {}", table::size(replay.bytes), time(replay.time));
    match target {
        None => estimate,
        Some(target) => {
            let kept = if replay.keeps(target) { "kept" } else { "NOT kept" };
            format!("{estimate} (target {}: {kept})", time(target))
        }
    }
}

/// An estimate is not better than a second.
pub(crate) fn time(duration: Duration) -> String {
    match duration.as_secs_f64().round() as u64 {
        seconds @ ..60 => format!("{seconds} s"),
        _ => table::duration(duration),
    }
}

pub(crate) fn json(replay: Replay, target: Option<Duration>) -> serde_json::Value {
    let mut value = serde_json::json!({ "bytes": replay.bytes, "seconds": replay.time.as_secs_f64() });
    if let Some(target) = target {
        value["target_seconds"] = target.as_secs_f64().into();
        value["kept"] = replay.keeps(target).into();
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_types::ByteSize;

    #[test]
    fn an_estimate_says_whether_the_target_is_kept() {
        let replay = Replay::of(120 << 20, ByteSize::mib(32));
        let target = Duration::from_secs;
        assert_eq!(text(replay, None), "120.0 MiB, about 4 s");
        assert_eq!(text(replay, Some(target(30))), "120.0 MiB, about 4 s (target 30 s: kept)");
        assert_eq!(text(replay, Some(target(3))), "120.0 MiB, about 4 s (target 3 s: NOT kept)");
        assert_eq!(time(target(59)), "59 s");
        assert_eq!(time(target(200)), "3 min 20 s");
        assert_eq!(json(replay, Some(target(3)))["kept"], false);
    }
}
