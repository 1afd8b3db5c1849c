//! HTTP dates (RFC 9110 section 5.6.7): all three forms, in any case, and nothing else. Seconds since 1970, UTC.

const MONTHS: [&[u8; 3]; 12] = [
    b"jan", b"feb", b"mar", b"apr", b"may", b"jun", b"jul", b"aug", b"sep", b"oct", b"nov", b"dec",
];
const DAYS: [&str; 7] = [
    "sunday",
    "monday",
    "tuesday",
    "wednesday",
    "thursday",
    "friday",
    "saturday",
];
const SECONDS_A_DAY: u64 = 86_400;

/// A date, or `None` if it is none: then an Expires is past (RFC 9111 section 5.3). What lies before 1970 is 0. Whether
/// the name of the day is the right one is not asked; years of two digits are taken as at most 50 years after `now`.
pub fn parse(value: &[u8], now: u64) -> Option<u64> {
    imf(value).or_else(|| rfc850(value, now)).or_else(|| asctime(value))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`.
pub fn format(seconds: u64) -> String {
    let (days, second) = (seconds / SECONDS_A_DAY, seconds % SECONDS_A_DAY);
    let (year, month, day) = civil(days);
    let capital = |name: &str| name[..1].to_ascii_uppercase() + &name[1..3];
    let weekday = capital(DAYS[(days as usize + 4) % 7]);
    let month = capital(std::str::from_utf8(MONTHS[month as usize - 1]).unwrap_or_default());
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{weekday}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`
fn imf(value: &[u8]) -> Option<u64> {
    let (weekday, rest) = value.split_at_checked(3)?;
    let is_day = DAYS.iter().any(|d| d.as_bytes()[..3].eq_ignore_ascii_case(weekday));
    let rest = rest.strip_prefix(b", ")?;
    let (day, rest) = (number(rest.get(..2)?)?, rest.get(2..)?.strip_prefix(b" ")?);
    let (month, rest) = (month(rest.get(..3)?)?, rest.get(3..)?.strip_prefix(b" ")?);
    let (year, rest) = (number(rest.get(..4)?)?, rest.get(4..)?.strip_prefix(b" ")?);
    let time = gmt(rest)?;
    is_day.then_some(())?;
    seconds(year, month, day, time)
}

/// `Sunday, 06-Nov-94 08:49:37 GMT`
fn rfc850(value: &[u8], now: u64) -> Option<u64> {
    let comma = memchr::memchr(b',', value)?;
    let is_day = DAYS.iter().any(|d| d.as_bytes().eq_ignore_ascii_case(&value[..comma]));
    let rest = value[comma..].strip_prefix(b", ")?;
    let (day, rest) = (number(rest.get(..2)?)?, rest.get(2..)?.strip_prefix(b"-")?);
    let (month, rest) = (month(rest.get(..3)?)?, rest.get(3..)?.strip_prefix(b"-")?);
    let (short, rest) = (number(rest.get(..2)?)?, rest.get(2..)?.strip_prefix(b" ")?);
    let time = gmt(rest)?;
    is_day.then_some(())?;
    let (this_year, ..) = civil(now / SECONDS_A_DAY);
    let year = this_year / 100 * 100 + short;
    let year = if year > this_year + 50 { year - 100 } else { year };
    seconds(year, month, day, time)
}

/// `Sun Nov  6 08:49:37 1994`
fn asctime(value: &[u8]) -> Option<u64> {
    let (weekday, rest) = value.split_at_checked(3)?;
    let is_day = DAYS.iter().any(|d| d.as_bytes()[..3].eq_ignore_ascii_case(weekday));
    let rest = rest.strip_prefix(b" ")?;
    let (month, rest) = (month(rest.get(..3)?)?, rest.get(3..)?.strip_prefix(b" ")?);
    let day = match rest.get(..2)? {
        [b' ', digit] => number(std::slice::from_ref(digit))?,
        two => number(two)?,
    };
    let rest = rest.get(2..)?.strip_prefix(b" ")?;
    let time = clock(rest.get(..8)?)?;
    let year = rest.get(8..)?.strip_prefix(b" ")?;
    (is_day && year.len() == 4).then_some(())?;
    seconds(number(year)?, month, day, time)
}

fn gmt(value: &[u8]) -> Option<u64> {
    let zone = value.get(8..)?;
    zone.eq_ignore_ascii_case(b" GMT").then_some(())?;
    clock(&value[..8])
}

/// `08:49:37` as seconds of the day; a leap second is the last one of its minute.
fn clock(value: &[u8]) -> Option<u64> {
    let [h1, h2, b':', m1, m2, b':', s1, s2] = value else {
        return None;
    };
    let (hour, minute, second) = (number(&[*h1, *h2])?, number(&[*m1, *m2])?, number(&[*s1, *s2])?);
    (hour < 24 && minute < 60 && second <= 60).then_some(hour * 3600 + minute * 60 + second.min(59))
}

fn number(digits: &[u8]) -> Option<u64> {
    digits
        .iter()
        .try_fold(0, |n: u64, d| d.is_ascii_digit().then(|| n * 10 + u64::from(d - b'0')))
}

fn month(name: &[u8]) -> Option<u64> {
    let at = MONTHS.iter().position(|m| m.eq_ignore_ascii_case(name))?;
    Some(at as u64 + 1)
}

fn seconds(year: u64, month: u64, day: u64, time: u64) -> Option<u64> {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let length = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    (1..=length).contains(&day).then_some(())?;
    if year < 1970 {
        return Some(0);
    }
    Some(days(year, month, day) * SECONDS_A_DAY + time)
}

/// Days since 1970, counted in years that begin in March so that the leap day is the last one.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year * 365 + year / 4 - year / 100 + year / 400 + of_year - 719_468
}

/// The date of so many days after 1970: year, month, day.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-09-16.
    const NOW: u64 = 1_789_516_800;

    #[test]
    fn all_three_forms_in_any_case() {
        for (text, want) in [
            ("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777),
            ("Sunday, 06-Nov-94 08:49:37 GMT", 784_111_777),
            ("Sun Nov  6 08:49:37 1994", 784_111_777),
            ("Sun Nov 16 08:49:37 1994", 784_975_777),
            ("sUN, 06 nOV 1994 08:49:37 gMt", 784_111_777),
            // Not the day's name: it is not asked for.
            ("Thu Aug  8 02:01:18 2050", 2_543_536_878),
            ("Thu, 18 Aug 2050 02:01:18 GMT", 2_544_400_878),
            ("Thursday, 18-Aug-50 02:01:18 GMT", 2_544_400_878),
            ("Tue, 19 Jan 2038 14:14:08 GMT", 2_147_523_248),
            ("Sun, 21 Nov 2286 04:46:39 GMT", 10_000_039_599),
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
            ("Mon, 01 Jan 1601 00:00:00 GMT", 0),
            ("Sat, 29 Feb 2020 23:59:60 GMT", 1_583_020_799),
        ] {
            assert_eq!(parse(text.as_bytes(), NOW), Some(want), "{text}");
        }
    }

    #[test]
    fn what_is_no_date_is_refused() {
        for text in [
            "",
            "0",
            "-1",
            "Sun, 06 Nov 1994 08:49:37",
            "Sun, 06 Nov 1994 08:49:37 UTC",
            "Sun, 06 Nov 1994 08:49:37 AEST",
            "Sun, 06 Nov 1994 08:49:37 GMT+1",
            "Sun, 06 Nov 1994 08:49:37  GMT",
            "Sun 06 Nov 1994 08:49:37 GMT",
            "Sun,06 Nov 1994 08:49:37 GMT",
            "Sun, 6 Nov 1994 08:49:37 GMT",
            "Sun, 06  Nov  1994 08:49:37 GMT",
            "Sun, 06 Nov 94 08:49:37 GMT",
            "Sun, 06-Nov-1994 08:49:37 GMT",
            "Sun, 06-Nov-94 08:49:37 GMT",
            "Sunday, 06-Nov-1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 8:49:37 GMT",
            "Sun, 06 Nov 1994 08.49.37 GMT",
            "Sun, 06 Nov 1994 24:00:00 GMT",
            "Sun, 06 Nov 1994 08:60:00 GMT",
            "Sun, 31 Nov 1994 08:49:37 GMT",
            "Sun, 29 Feb 2021 08:49:37 GMT",
            "Sun, 00 Nov 1994 08:49:37 GMT",
            "Son, 06 Nov 1994 08:49:37 GMT",
            "Sun, 06 Okt 1994 08:49:37 GMT",
            "Sun Nov  6 08:49:37 94",
            "Sun Nov 6 08:49:37 1994",
            "Sun Nov  6 08:49:37 1994 GMT",
            "Sun, 06 Nov 19x4 08:49:37 GMT",
            "784111777",
        ] {
            assert_eq!(parse(text.as_bytes(), NOW), None, "{text}");
        }
    }

    #[test]
    fn two_digits_mean_at_most_fifty_years_ahead() {
        let year = |short: &str| {
            let text = format!("Sunday, 06-Nov-{short} 08:49:37 GMT");
            civil(parse(text.as_bytes(), NOW).unwrap() / SECONDS_A_DAY).0
        };
        assert_eq!(
            [year("26"), year("76"), year("77"), year("99")],
            [2026, 2076, 1977, 1999]
        );
    }

    #[test]
    fn every_day_is_written_as_it_is_read() {
        for day in (0..60_000).step_by(17) {
            let moment = day * SECONDS_A_DAY + day % SECONDS_A_DAY;
            assert_eq!(parse(format(moment).as_bytes(), NOW), Some(moment));
        }
        assert_eq!(format(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
    }
}
