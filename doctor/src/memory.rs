//! How much memory this process may have, what sets that, and whether it may come in huge pages.

use std::fs;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use qmesh_models::bytes::ByteCount;
use sysinfo::System;

use crate::Finding;

const CHECK: &str = "memory";
const PAGES_CHECK: &str = "huge pages";
/// Less than a program that has not loaded anything takes.
const LEAST: ByteCount = ByteCount(64_000_000);

/// What bounds the memory of new processes, in bytes; `None` where nothing does, or the system does not tell.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Bounds {
    /// What the machine has free, or can free.
    available: Option<u64>,
    /// What the control group (container) leaves.
    group: Option<u64>,
    /// `ulimit -v`.
    address_space: Option<u64>,
    /// `ulimit -d`.
    heap: Option<u64>,
}

/// Looks at what this process may have; less than `wanted` is worth a warning.
pub fn check(wanted: ByteCount) -> Finding {
    let bounds = System::new().ok().map(|mut system| {
        system.refresh_memory();
        let limit = |resource| getrlimit(resource).ok().map(|(soft, _)| soft).filter(|&soft| soft != RLIM_INFINITY);
        Bounds {
            available: Some(system.available_memory()).filter(|&bytes| bytes > 0),
            group: system.cgroup_limits().map(|limits| limits.total_memory.saturating_sub(limits.rss)),
            address_space: limit(Resource::RLIMIT_AS),
            heap: limit(Resource::RLIMIT_DATA),
        }
    });
    judge(bounds.unwrap_or_default(), wanted)
}

/// Looks whether Linux gives huge pages to those who ask.
pub fn huge_pages() -> Finding {
    judge_huge_pages(fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok().as_deref())
}

fn judge(bounds: Bounds, wanted: ByteCount) -> Finding {
    let named = [
        (bounds.available, "are free on this machine", "free memory on this machine"),
        (bounds.group, "are left by the control group", "raise the memory limit of the control group (container)"),
        (bounds.address_space, "of address space are allowed (ulimit -v)", "raise ulimit -v, or lift it"),
        (bounds.heap, "of data are allowed (ulimit -d)", "raise ulimit -d, or lift it"),
    ];
    let told = named.into_iter().filter_map(|(bytes, what, fix)| Some((bytes?, what, fix)));
    let Some((bytes, what, fix)) = told.min_by_key(|&(bytes, ..)| bytes) else {
        return Finding::unknown(CHECK, "this system does not tell how much memory is free");
    };
    let found = format!("{} {what}", ByteCount(bytes));
    if bytes < LEAST.0 {
        Finding::fail(CHECK, found, fix)
    } else if bytes < wanted.0 {
        Finding::warn(CHECK, format!("{found}, less than {wanted}"), fix)
    } else {
        Finding::ok(CHECK, found)
    }
}

/// The setting has its words in a line, the chosen one in brackets.
fn judge_huge_pages(setting: Option<&str>) -> Finding {
    let chosen = setting.and_then(|line| line.split_once('[')?.1.split_once(']'));
    match chosen {
        Some((word @ ("always" | "madvise"), _)) => {
            Finding::ok(PAGES_CHECK, format!("weights get them (transparent_hugepage is {word})"))
        }
        Some((word, _)) => Finding::warn(
            PAGES_CHECK,
            format!("there are none (transparent_hugepage is {word}), so memory is read more slowly"),
            "as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        ),
        None => Finding::unknown(PAGES_CHECK, "this system does not tell whether there are any"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Verdict;

    #[test]
    fn the_least_bound_counts_and_says_what_to_do() {
        let wanted = ByteCount(1_000_000_000);
        let free = Bounds { available: Some(8_000_000_000), ..Bounds::default() };
        assert_eq!(judge(free, wanted), Finding::ok(CHECK, "8.00 GB are free on this machine"));
        let group = Bounds { group: Some(500_000_000), ..free };
        let finding = judge(group, wanted);
        assert_eq!(finding.verdict, Verdict::Warn);
        assert_eq!(finding.found, "500 MB are left by the control group, less than 1.00 GB");
        let limited = Bounds { address_space: Some(10_000_000), ..group };
        let finding = judge(limited, wanted);
        assert_eq!((finding.verdict, finding.fix.unwrap().contains("ulimit -v")), (Verdict::Fail, true));
        let limited = judge(Bounds { heap: Some(9_000_000), ..limited }, wanted);
        assert!(limited.fix.unwrap().contains("ulimit -d"));
        assert_eq!(judge(Bounds::default(), wanted).verdict, Verdict::Unknown);
    }

    #[test]
    fn huge_pages_may_be_off_or_not_told_of() {
        for (setting, verdict) in [
            (Some("[always] madvise never\n"), Verdict::Ok),
            (Some("always [madvise] never\n"), Verdict::Ok),
            (Some("always madvise [never]\n"), Verdict::Warn),
            (Some("always madvise never\n"), Verdict::Unknown),
            (None, Verdict::Unknown),
        ] {
            assert_eq!(judge_huge_pages(setting).verdict, verdict, "{setting:?}");
        }
    }

    #[test]
    fn this_machine_tells() {
        assert_ne!(check(ByteCount(1)).verdict, Verdict::Unknown);
    }
}
