//! How much memory is free.

use std::{fs, path::Path};

/// What is assumed where the system does not tell: the memory that is free on a small machine.
pub const ASSUMED_FREE: u64 = 4 << 30;

/// Bytes that this process can still take: what the system has available or, if that is less, what
/// the limits of its control groups (containers, batch systems) leave.
///
/// `None` where this is not known, which is everywhere but on Linux.
pub fn free() -> Option<u64> {
    free_below(Path::new("/"))
}

fn free_below(root: &Path) -> Option<u64> {
    let system = line(&fs::read_to_string(root.join("proc/meminfo")).ok()?, "MemAvailable:")? << 10;
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let limits = groups.lines().flat_map(|group| limits(root, group));
    Some(limits.fold(system, u64::min))
}

/// The most memory that this process has had at once since it began, or since [`reset_peak`], in bytes: its
/// resident pages, those of mapped files among them.
///
/// `None` where the system does not tell, which is everywhere but on Linux.
pub fn peak() -> Option<u64> {
    Some(line(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")? << 10)
}

/// Lets [`peak`] count from now on; whether the system allows that.
pub fn reset_peak() -> bool {
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// The first number of the line that starts with `name`.
fn line(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// What each limit above this process leaves; `group` is a line of `/proc/self/cgroup`.
fn limits(root: &Path, group: &str) -> Vec<u64> {
    let mut parts = group.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { return Vec::new() };
    let base = root.join("sys/fs/cgroup");
    let (base, most, used, cache) = if controllers.is_empty() {
        (base, "memory.max", "memory.current", "inactive_file ")
    } else if controllers.split(',').any(|name| name == "memory") {
        let used = "memory.usage_in_bytes";
        (base.join("memory"), "memory.limit_in_bytes", used, "total_inactive_file ")
    } else {
        return Vec::new();
    };
    let number = |file: &Path| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
    let path = Path::new(path.trim_start_matches('/'));
    // Inside a container the path can be one of the host; then only the root is there.
    path.ancestors()
        .filter_map(|path| {
            let folder = base.join(path);
            // No limit is the word `max`, or in the old layout a number no machine reaches.
            let (most, used) = (number(&folder.join(most))?, number(&folder.join(used))?);
            // Cached files go when memory is short.
            let statistics = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
            let cached = line(&statistics, cache).unwrap_or(0);
            Some(most.saturating_sub(used.saturating_sub(cached)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(path, text).expect("written");
        }
        free_below(root.path())
    }

    const MEMINFO: (&str, &str) =
        ("proc/meminfo", "MemTotal: 4096 kB\nMemFree: 10 kB\nMemAvailable:   2048 kB\n");

    #[test]
    fn without_limits_it_is_what_the_system_has() {
        assert_eq!(system(&[MEMINFO]), Some(2048 << 10));
        let unlimited = [
            MEMINFO,
            ("proc/self/cgroup", "0::/a\n"),
            ("sys/fs/cgroup/a/memory.max", "max\n"),
            ("sys/fs/cgroup/a/memory.current", "1000000\n"),
        ];
        assert_eq!(system(&unlimited), Some(2048 << 10));
        assert_eq!(system(&[]), None);
    }

    #[test]
    fn the_tightest_limit_counts() {
        let nested = [
            MEMINFO,
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/memory.max", "500000\n"),
            ("sys/fs/cgroup/a/memory.current", "450000\n"),
            ("sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 30000\n"),
            ("sys/fs/cgroup/a/b/memory.max", "400000\n"),
            ("sys/fs/cgroup/a/b/memory.current", "100000\n"),
        ];
        assert_eq!(system(&nested), Some(80_000));
        let old = [
            MEMINFO,
            ("proc/self/cgroup", "5:cpu:/x\n4:hugetlb,memory:/x\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "300000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "310000\n"),
            ("sys/fs/cgroup/memory/memory.stat", "total_inactive_file 20000\n"),
        ];
        assert_eq!(system(&old), Some(10_000));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_peak_counts_anew_after_a_reset() {
        let large = vec![1u8; 256 << 20];
        let with = peak().expect("known on Linux");
        assert!(with > large.iter().map(|byte| u64::from(*byte)).sum(), "{with}");
        drop(large);
        // Some containers do not allow it. Other tests of this process take memory meanwhile, but less.
        if reset_peak() {
            let without = peak().expect("known on Linux");
            assert!(without < with - (128 << 20), "{without} of {with}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_has_some() {
        assert!(free().expect("known on Linux") > 1 << 20);
    }
}
