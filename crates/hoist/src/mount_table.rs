//! The mount table as the kernel tells it.

use std::io;
use std::path::Path;

/// Whether something is mounted on `target`, and of what type (mountinfo of this process); the topmost.
pub fn mounted_type(target: &Path) -> io::Result<Option<String>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(find_mount(&String::from_utf8_lossy(&table), target))
}

// proc_pid_mountinfo(5): id parent major:minor root mountpoint options [optional...] - type source options
fn find_mount(table: &str, target: &Path) -> Option<String> {
    let mut found = None;
    for line in table.lines() {
        let Some((mount, file_system)) = line.split_once(" - ") else { continue };
        let point = mount.split(' ').nth(4).map(unescape);
        if point.is_some_and(|point| Path::new(&point) == target) {
            found = file_system.split(' ').next().map(str::to_owned);
        }
    }
    found
}

fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_table_is_read() {
        let table = "22 1 0:5 / /mnt/a\\040b rw - erofs x ro\n23 1 0:6 / /x rw shared:1 - ext4 /dev/a rw\n";
        assert_eq!(find_mount(table, Path::new("/mnt/a b")).as_deref(), Some("erofs"));
        assert_eq!(find_mount(table, Path::new("/x")).as_deref(), Some("ext4"));
        assert_eq!(find_mount(table, Path::new("/y")), None);
        assert!(mounted_type(Path::new("/proc")).unwrap().is_some());
    }
}
