//! What this computer is: its name, its caches and its memory; and [`probe`]s of how fast it is.

pub mod probe;

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

/// One level of cache, as one core sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache {
    /// 1, 2 or 3.
    pub level: u8,
    /// Bytes.
    pub bytes: usize,
}

/// The data caches of the first core, smallest level first; empty where the system does not tell.
pub fn caches() -> Vec<Cache> {
    let mut found = caches_below(Path::new("/sys/devices/system/cpu/cpu0/cache"));
    found.sort_by_key(|cache| cache.level);
    found
}

/// Bytes of the last level of cache, looked up once: from 1 to 64 MiB, whatever the system says, and 8 MiB where it does not tell.
pub(crate) fn last_cache() -> usize {
    static FOUND: OnceLock<usize> = OnceLock::new();
    *FOUND.get_or_init(|| caches().last().map_or(8 << 20, |cache| cache.bytes).clamp(1 << 20, 64 << 20))
}

fn caches_below(folder: &Path) -> Vec<Cache> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let read = |path: &Path, name: &str| fs::read_to_string(path.join(name)).ok();
    let mut caches = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        let holds_data = matches!(read(&path, "type").as_deref().map(str::trim), Some("Data" | "Unified"));
        let level = read(&path, "level").and_then(|text| text.trim().parse().ok());
        let bytes = read(&path, "size").and_then(|text| parse_size(text.trim()));
        if let (true, Some(level), Some(bytes)) = (holds_data, level, bytes) {
            caches.push(Cache { level, bytes });
        }
    }
    caches
}

/// `32K` or `1M`, as the Linux kernel writes them.
fn parse_size(text: &str) -> Option<usize> {
    let (number, unit) = match text.strip_suffix('K') {
        Some(number) => (number, 1024),
        None => match text.strip_suffix('M') {
            Some(number) => (number, 1024 * 1024),
            None => (text, 1),
        },
    };
    number.parse::<usize>().ok()?.checked_mul(unit)
}

/// The processor's name for itself, where the system tells.
pub fn processor() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

/// Bytes of memory that programs can still have, where the system tells.
pub fn available_memory() -> Option<usize> {
    available_in(&fs::read_to_string("/proc/meminfo").ok()?)
}

fn available_in(text: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

/// Number of threads that this process may run at once.
pub fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_the_kernel_writes_them() {
        assert_eq!(parse_size("32K"), Some(32768));
        assert_eq!(parse_size("1M"), Some(1 << 20));
        assert_eq!(parse_size("x"), None);
        assert!(caches_below(Path::new("/nowhere")).is_empty());
        assert_eq!(available_in("MemFree: 3 kB\nMemAvailable:    17 kB\n"), Some(17 * 1024));
        assert_eq!(available_in("MemAvailable: many\n"), None);
    }
}
