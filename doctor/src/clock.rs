//! Whether the clock is near the truth: tickets expire by it.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::Finding;

const CHECK: &str = "clock";
/// The first second of the year in which this program was written, since 1970: no clock that goes shows an earlier time.
const WRITTEN_UNIX: u64 = 1_767_225_600;
/// Later than this program will run, since 1970: the year 2100.
const FAR_UNIX: u64 = 4_102_444_800;
const FIX: &str = "set it, and let it be kept (timedatectl set-ntp true)";

/// Looks at this machine's clock, and at when a ticket expires, if there is one.
pub fn check(ticket_expires_unix: Option<u64>) -> Finding {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    judge(now, ticket_expires_unix)
}

fn judge(now: u64, ticket_expires: Option<u64>) -> Finding {
    let date = date(now);
    if now < WRITTEN_UNIX {
        return Finding::fail(CHECK, format!("it says {date}, when this program was not yet written"), FIX);
    }
    if now >= FAR_UNIX {
        return Finding::fail(CHECK, format!("it says {date}"), FIX);
    }
    match ticket_expires {
        // The coordinator's clock decides, and may be another one.
        Some(expires) if expires <= now => Finding::warn(
            CHECK,
            format!("it says {date}, and the ticket expired {} ago", span(now - expires)),
            "get a new ticket from the coordinator (`coordinator ticket`), or set the clock where it is wrong",
        ),
        Some(expires) => Finding::ok(CHECK, format!("it says {date}; the ticket is good for {}", span(expires - now))),
        None => Finding::ok(CHECK, format!("it says {date}")),
    }
}

/// The largest unit of which there is at least one.
fn span(seconds: u64) -> String {
    let unit =
        [("days", 86_400), ("hours", 3600), ("minutes", 60)].into_iter().find(|(_, length)| seconds >= 2 * length);
    unit.map_or_else(|| format!("{seconds} s"), |(name, length)| format!("{} {name}", seconds / length))
}

/// A day in the calendar of UTC, by Howard Hinnant's way to count days in years that begin in March.
fn date(unix: u64) -> String {
    let days = unix / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Verdict;

    #[test]
    fn days_have_dates() {
        for (unix, expected) in [
            (0, "1970-01-01 UTC"),
            (951_782_400, "2000-02-29 UTC"),
            (WRITTEN_UNIX - 1, "2025-12-31 UTC"),
            (WRITTEN_UNIX, "2026-01-01 UTC"),
            (FAR_UNIX, "2100-01-01 UTC"),
        ] {
            assert_eq!(date(unix), expected);
        }
    }

    #[test]
    fn a_clock_that_stands_in_another_time_fails() {
        for now in [0, WRITTEN_UNIX - 1, FAR_UNIX, u64::MAX / 2] {
            let finding = judge(now, None);
            assert_eq!(finding.verdict, Verdict::Fail, "{now}");
            assert!(finding.fix.unwrap().contains("set it"));
        }
        assert_eq!(judge(WRITTEN_UNIX + 10, None), Finding::ok(CHECK, "it says 2026-01-01 UTC"));
    }

    #[test]
    fn a_ticket_that_has_expired_is_worth_a_warning() {
        let now = WRITTEN_UNIX + 1_000_000;
        let good = judge(now, Some(now + 86_400 * 7));
        assert_eq!((good.verdict, good.found.ends_with("good for 7 days")), (Verdict::Ok, true), "{good:?}");
        let expired = judge(now, Some(now - 90));
        assert_eq!((expired.verdict, expired.found.contains("expired 90 s ago")), (Verdict::Warn, true), "{expired:?}");
    }
}
