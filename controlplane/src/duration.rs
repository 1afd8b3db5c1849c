//! Time limits as options give them: `30s`, `500ms`, `1h30m`, or a plain number of seconds.

use std::time::Duration;

use dataplane::limits::TIME_LIMIT_MIN;

/// Milliseconds of each unit.
const UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];

/// A time limit of at least [`TIME_LIMIT_MIN`] and at most `max`.
///
/// # Errors
/// What is wrong, without the option's name.
pub fn limit(text: &str, max: Duration) -> Result<Duration, String> {
    parse(text)
        .filter(|time| (TIME_LIMIT_MIN..=max).contains(time))
        .ok_or_else(|| {
            let (min, max) = (show(TIME_LIMIT_MIN), show(max));
            format!("{text:?} is no time from {min} to {max}; write 30s, 500ms, 5m or 1h")
        })
}

fn parse(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let (mut rest, mut sum) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let (unit, tail) = tail.split_at(tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len()));
        let (_, ms) = UNITS.iter().find(|(name, _)| *name == unit)?;
        let part = number.parse::<u64>().ok()?.checked_mul(*ms)?;
        sum = sum.checked_add(Duration::from_millis(part))?;
        rest = tail;
    }
    (!text.is_empty()).then_some(sum)
}

/// In its largest whole unit.
pub fn show(time: Duration) -> String {
    let ms = time.as_millis();
    let whole = UNITS
        .iter()
        .rev()
        .find(|(_, unit)| ms.is_multiple_of(u128::from(*unit)));
    let (name, unit) = whole.unwrap_or(&UNITS[0]);
    format!("{}{name}", ms / u128::from(*unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read_and_shown() {
        for (text, ms, shown) in [
            ("45", 45_000, "45s"),
            ("500ms", 500, "500ms"),
            ("30s", 30_000, "30s"),
            ("90s", 90_000, "90s"),
            ("5m", 300_000, "5m"),
            ("1h30m", 5_400_000, "90m"),
            ("1s500ms", 1_500, "1500ms"),
            ("24h", 86_400_000, "24h"),
        ] {
            let time = limit(text, Duration::from_secs(86_400)).unwrap();
            assert_eq!((time.as_millis(), show(time).as_str()), (ms, shown), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_named_with_what_would_be() {
        for text in [
            "",
            "s",
            "-1",
            "1.5s",
            "5 s",
            "5x",
            "99ms",
            "0",
            "46s",
            "18446744073709551615h",
        ] {
            let error = limit(text, Duration::from_secs(45)).unwrap_err();
            assert!(
                error.starts_with(&format!("{text:?} is no time from 100ms to 45s")),
                "{error}"
            );
        }
    }
}
