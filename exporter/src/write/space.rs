//! Room on a disk.

use std::path::Path;

/// Bytes that this user can still write on the disk of `folder`; `None` where the system does not tell, which
/// is everywhere but on Linux.
pub fn free_space(folder: &Path) -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        let disk = rustix::fs::statvfs(folder).ok()?;
        Some(disk.f_bavail.saturating_mul(disk.f_frsize))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = folder;
        None
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_room_and_what_is_not_there_has_none() {
        assert!(free_space(&std::env::temp_dir()).is_some_and(|bytes| bytes > 1 << 20));
        assert_eq!(free_space(Path::new("/no such folder")), None);
    }
}
