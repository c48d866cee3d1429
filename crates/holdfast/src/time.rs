//! Moments, as people write and read them.

use std::fmt;

use holdfast_types::Micros;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

/// A moment and how its text was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Understood {
    pub(crate) at: Micros,
    /// A remark for the operator where the text left something open.
    pub(crate) zone: Option<String>,
}

/// Reads RFC 3339, or a local time without a zone.
pub(crate) fn parse(text: &str, local: &TimeZone) -> Result<Understood, String> {
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Ok(Understood { at: Micros::new(moment.as_microsecond()), zone: None });
    }
    let expected = "expected 2026-11-21T10:15:00Z, 2026-11-21 10:15:00+01:00 or, in local time, 2026-11-21 10:15:00";
    // Before the civil time, which would pass over what follows it.
    let civil: DateTime = text.parse().map_err(|_| format!("`{text}` is not a time ({expected})"))?;
    let ambiguous = local.to_ambiguous_timestamp(civil);
    if ambiguous.is_ambiguous() {
        return Err(format!("`{text}` is twice or never there in the local time zone: add an offset, as in +01:00"));
    }
    let moment = ambiguous.unambiguous().map_err(|error| format!("`{text}` is not a time ({error})"))?;
    let name = local.iana_name().unwrap_or("the system's");
    Ok(Understood { at: Micros::new(moment.as_microsecond()), zone: Some(format!("local time zone {name}")) })
}

/// `2026-11-21 10:15:00Z`, which `--at` takes back; fractions only where there are any.
pub(crate) fn show(at: Micros) -> String {
    match Timestamp::from_microsecond(at.get()) {
        Ok(moment) => format!("{moment}").replace('T', " "),
        Err(_) => format!("{} µs", at.get()),
    }
}

/// The same to the second, for tables.
pub(crate) fn show_seconds(at: Micros) -> String {
    show(Micros::new(at.get().div_euclid(1_000_000) * 1_000_000))
}

/// RFC 3339, for JSON.
pub(crate) fn rfc3339(at: Micros) -> String {
    show(at).replacen(' ', "T", 1)
}

/// RFC 3339 in UTC, always with milliseconds: how lines on stderr begin that have a time.
pub(crate) fn stamp(at: Micros) -> String {
    Timestamp::from_microsecond(at.get()).map_or_else(|_| show(at), |moment| format!("{moment:.3}"))
}

/// The same for what is logged.
#[derive(Debug)]
pub(crate) struct Stamp;

impl FormatTime for Stamp {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        writer.write_str(&stamp(now()))
    }
}

/// Now, by this machine's clock.
pub(crate) fn now() -> Micros {
    Micros::new(Timestamp::now().as_microsecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_have_one_length() {
        let stamps = [0, 250_000, 999_999].map(|micros| stamp(Micros::new(1_795_256_100_000_000 + micros)));
        assert_eq!(stamps, ["2026-11-21T10:15:00.000Z", "2026-11-21T10:15:00.250Z", "2026-11-21T10:15:00.999Z"]);
    }

    #[test]
    fn times_with_and_without_a_zone() {
        let zone = TimeZone::get("Europe/Rome").unwrap();
        let at = |text: &str| parse(text, &zone).map(|understood| show(understood.at));
        let expected = Ok("2026-11-21 10:15:00Z".to_owned());
        for text in
            ["2026-11-21T10:15:00Z", "2026-11-21 10:15:00Z", "2026-11-21 11:15:00+01:00", "2026-11-21 11:15:00+01"]
        {
            assert_eq!(at(text), expected, "{text}");
            assert_eq!(parse(text, &zone).unwrap().zone, None, "{text}");
        }
        assert_eq!(at("2026-11-21 11:15:00"), expected);
        assert_eq!(at("2026-11-21 11:15"), expected);
        assert_eq!(parse("2026-11-21 11:15", &zone).unwrap().zone.as_deref(), Some("local time zone Europe/Rome"));
        assert_eq!(at("2026-11-21T10:15:00.25Z").as_deref(), Ok("2026-11-21 10:15:00.25Z"));
        // The clock goes back: 02:30 is there twice. It goes forward: not at all.
        assert!(at("2026-10-25 02:30:00").is_err() && at("2026-03-29 02:30:00").is_err());
        for text in ["", "yesterday", "10:15", "2026-13-01 00:00:00", "2026-11-21 10:15:00 CEST"] {
            assert!(at(text).is_err(), "{text}");
        }
    }
}
