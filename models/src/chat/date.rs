//! Dates for templates: `strftime` in UTC, as far as templates go.

use std::{
    fmt::Write,
    time::{SystemTime, UNIX_EPOCH},
};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// `now` in UTC, written as `format` says.
///
/// # Errors
/// Names a directive that is not known.
pub fn strftime(format: &str, now: SystemTime) -> Result<String, String> {
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    let (year, month, day) = civil(days);
    let month_name = MONTHS[month as usize - 1];
    let day_name = DAYS[(days % 7) as usize];
    let mut text = String::with_capacity(format.len() + 8);
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let directive = match rest.next() {
            Some('-') => rest.next().map(|c| ('-', c)),
            other => other.map(|c| ('0', c)),
        };
        let written = match directive {
            Some((_, 'Y')) => write!(text, "{year}"),
            Some((_, 'y')) => write!(text, "{:02}", year % 100),
            Some(('-', 'm')) => write!(text, "{month}"),
            Some((_, 'm')) => write!(text, "{month:02}"),
            Some((_, 'B')) => write!(text, "{month_name}"),
            Some((_, 'b')) => write!(text, "{}", &month_name[..3]),
            Some(('-', 'd')) => write!(text, "{day}"),
            Some((_, 'd')) => write!(text, "{day:02}"),
            Some((_, 'A')) => write!(text, "{day_name}"),
            Some((_, 'a')) => write!(text, "{}", &day_name[..3]),
            Some((_, 'e')) => write!(text, "{day:2}"),
            Some((_, 'j')) => write!(text, "{:03}", day_of_year(year, month, day)),
            Some((_, 'F')) => write!(text, "{year}-{month:02}-{day:02}"),
            Some((_, 'T')) => write!(text, "{hour:02}:{minute:02}:{:02}", second % 60),
            Some(('-', 'H')) => write!(text, "{hour}"),
            Some((_, 'H')) => write!(text, "{hour:02}"),
            Some((_, 'I')) => write!(text, "{:02}", (hour + 11) % 12 + 1),
            Some((_, 'p')) => write!(text, "{}", if hour < 12 { "AM" } else { "PM" }),
            Some((_, 'M')) => write!(text, "{minute:02}"),
            Some((_, 'S')) => write!(text, "{:02}", second % 60),
            Some((_, '%')) => write!(text, "%"),
            Some((_, other)) => return Err(format!("strftime_now: %{other} is not supported")),
            None => return Err("strftime_now: the format ends in %".to_owned()),
        };
        written.expect("writing to a string cannot fail");
    }
    Ok(text)
}

/// How many days of the year there are up to this one.
fn day_of_year(year: u64, month: u64, day: u64) -> u64 {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][month as usize - 1];
    before + day + u64::from(leap && month > 2)
}

/// Year, month and day of the day that many after 1970-01-01, in the Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    // Years are counted from a March 1, so that the leap day is a year's last.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let full = "%Y-%m-%d %H:%M:%S %a %A %b %B %-d %y %I%p %%";
        assert_eq!(strftime(full, at(0)).unwrap(), "1970-01-01 00:00:00 Thu Thursday Jan January 1 70 12AM %");
        assert_eq!(
            strftime(full, at(1_709_213_696)).unwrap(),
            "2024-02-29 13:34:56 Thu Thursday Feb February 29 24 01PM %"
        );
        assert_eq!(strftime("%d %b %Y|%e|%j", at(4_102_444_800)).unwrap(), "01 Jan 2100| 1|001");
        assert_eq!(strftime("%F %T %j", at(1_735_689_599)).unwrap(), "2024-12-31 23:59:59 366");
        assert!(strftime("%Q", at(0)).is_err() && strftime("%", at(0)).is_err());
    }
}
