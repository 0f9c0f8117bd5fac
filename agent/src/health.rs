//! How the device itself is: processor, memory, disk, temperature, throttling.
//!
//! Read from `/proc` and `/sys` each time metrics are recorded. What a device does not have is left
//! out, never guessed. Parsing is pure; every file is bounded before it is read.

use dunlin_protocol::telemetry::Scalar;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Most bytes read of one file of `/proc` or `/sys`.
const FILE_MAX_BYTES: u64 = 64 * 1024;
/// Most thermal zones, cooling devices or processors looked at.
const PARTS_MAX: usize = 256;
/// Hotter or colder than this is a sensor that is not there, in thousandths of a degree.
const PLAUSIBLE_MILLI_C: std::ops::RangeInclusive<i64> = -80_000..=250_000;
/// Of the Raspberry Pi's `get_throttled`: under-voltage, frequency capped, throttled, soft limit, now.
const PI_NOW: u64 = 0b1111;

/// Processor time since the device was started, in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ticks {
    all: u64,
    idle: u64,
}

/// Reads the device's state; keeps what is needed to tell a change.
#[derive(Debug)]
pub(crate) struct Health {
    proc: PathBuf,
    sys: PathBuf,
    disk: PathBuf,
    ticks: Option<Ticks>,
    throttle_count: Option<u64>,
    /// Least difference between this clock and the server's stamps since metrics were last recorded.
    skew_ms: Option<i64>,
}

impl Health {
    /// Of the file system that holds `disk`.
    pub(crate) fn new(disk: &Path) -> Self {
        Self::rooted(Path::new("/proc"), Path::new("/sys"), disk)
    }

    fn rooted(proc: &Path, sys: &Path, disk: &Path) -> Self {
        let mut health = Self {
            proc: proc.to_owned(),
            sys: sys.to_owned(),
            disk: disk.to_owned(),
            ticks: None,
            throttle_count: None,
            skew_ms: None,
        };
        health.ticks = health.read_ticks();
        health.throttle_count = health.read_throttle_count();
        health
    }

    /// A message that the server stamped with `server_ms` has just come, `now_ms` by this clock.
    ///
    /// The way takes time, so that a difference is never too small: the least is the nearest.
    pub(crate) fn stamped(&mut self, server_ms: i64, now_ms: i64) {
        let skew_ms = now_ms.saturating_sub(server_ms);
        self.skew_ms = Some(self.skew_ms.map_or(skew_ms, |least| least.min(skew_ms)));
    }

    /// Scalars for a `metrics` record, by name.
    pub(crate) fn read(&mut self) -> BTreeMap<String, Scalar> {
        let mut values = BTreeMap::new();
        let mut put = |name: &str, value: Option<u64>| {
            if let Some(n) = value.and_then(|n| i64::try_from(n).ok()) {
                values.insert(name.to_owned(), Scalar::Integer(n));
            }
        };
        let ticks = self.read_ticks();
        let busy = self.ticks.zip(ticks);
        put(
            "cpu_permille",
            busy.and_then(|(then, now)| load_permille(then, now)),
        );
        self.ticks = ticks;
        let memory = self.file(&self.proc.join("meminfo")).unwrap_or_default();
        put("memory_total_bytes", meminfo_bytes(&memory, "MemTotal"));
        put(
            "memory_available_bytes",
            meminfo_bytes(&memory, "MemAvailable"),
        );
        let agent = self.file(&self.proc.join("self/smaps_rollup"));
        put(
            "agent_memory_bytes",
            agent.and_then(|text| meminfo_bytes(&text, "Pss")),
        );
        if let Ok(disk) = rustix::fs::statvfs(&self.disk) {
            put(
                "disk_total_bytes",
                Some(disk.f_blocks.saturating_mul(disk.f_frsize)),
            );
            put(
                "disk_free_bytes",
                Some(disk.f_bavail.saturating_mul(disk.f_frsize)),
            );
        }
        let count = self.read_throttle_count();
        let risen = self.throttle_count.zip(count).map(|(then, now)| now > then);
        put("throttle_count", count);
        self.throttle_count = count;
        if let Some(milli_c) = self.hottest_milli_c() {
            #[allow(clippy::cast_precision_loss)] // at most 250,000
            let c = milli_c as f64 / 1000.0;
            values.insert("temperature_max_c".to_owned(), Scalar::Number(c));
        }
        let signs = [risen, self.pi_throttled(), self.cooled()];
        if let Some(throttled) = signs.into_iter().flatten().reduce(|a, b| a || b) {
            values.insert("throttled".to_owned(), Scalar::Flag(throttled));
        }
        if let Some(skew_ms) = self.skew_ms.take() {
            values.insert("clock_skew_ms".to_owned(), Scalar::Integer(skew_ms));
        }
        values
    }

    fn file(&self, path: &Path) -> Option<String> {
        let mut text = String::new();
        let file = std::fs::File::open(path).ok()?;
        file.take(FILE_MAX_BYTES).read_to_string(&mut text).ok()?;
        Some(text)
    }

    fn number(&self, path: &Path) -> Option<i64> {
        self.file(path)?.trim().parse().ok()
    }

    fn read_ticks(&self) -> Option<Ticks> {
        parse_ticks(&self.file(&self.proc.join("stat"))?)
    }

    /// Folders directly under `dir` whose names begin with `prefix`.
    fn parts(&self, dir: &str, prefix: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.sys.join(dir));
        let entries = entries.into_iter().flatten().flatten();
        let named = entries.filter(|e| e.file_name().to_string_lossy().starts_with(prefix));
        named.take(PARTS_MAX).map(|e| e.path()).collect()
    }

    fn hottest_milli_c(&self) -> Option<i64> {
        let zones = self.parts("class/thermal", "thermal_zone");
        let read = zones.iter().filter_map(|z| self.number(&z.join("temp")));
        read.filter(|t| PLAUSIBLE_MILLI_C.contains(t)).max()
    }

    /// How often the processors were slowed down for heat (x86 counts that).
    fn read_throttle_count(&self) -> Option<u64> {
        let processors = self.parts("devices/system/cpu", "cpu");
        let counts = processors
            .iter()
            .filter_map(|c| self.number(&c.join("thermal_throttle/core_throttle_count")));
        counts
            .filter_map(|n| u64::try_from(n).ok())
            .reduce(u64::saturating_add)
    }

    fn pi_throttled(&self) -> Option<bool> {
        let path = "devices/platform/soc/soc:firmware/get_throttled";
        let text = self.file(&self.sys.join(path))?;
        let digits = text.trim().trim_start_matches("0x");
        Some(u64::from_str_radix(digits, 16).ok()? & PI_NOW != 0)
    }

    /// Whether the kernel slows a processor down to cool it (ARM boards with a thermal governor).
    fn cooled(&self) -> Option<bool> {
        let devices = self.parts("class/thermal", "cooling_device");
        let slowing = devices.iter().filter(|d| {
            let kind = self.file(&d.join("type")).unwrap_or_default();
            ["cpufreq", "thermal-cpufreq", "Processor"]
                .iter()
                .any(|k| kind.starts_with(k))
        });
        slowing
            .filter_map(|d| self.number(&d.join("cur_state")))
            .map(|state| state > 0)
            .reduce(|a, b| a || b)
    }
}

/// The first line of `/proc/stat` (proc(5)): user, nice, system, idle, iowait, irq, softirq, steal;
/// what follows is part of user and nice already.
fn parse_ticks(stat: &str) -> Option<Ticks> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line
        .split_whitespace()
        .take(8)
        .map_while(|n| n.parse().ok())
        .collect();
    let idle = ticks
        .get(3)?
        .saturating_add(ticks.get(4).copied().unwrap_or_default());
    let all = ticks.iter().fold(0, |sum: u64, n| sum.saturating_add(*n));
    Some(Ticks { all, idle })
}

/// Busy share of the time between two readings, in ‰; none if no tick passed.
fn load_permille(then: Ticks, now: Ticks) -> Option<u64> {
    let all = now.all.checked_sub(then.all).filter(|n| *n > 0)?;
    // Waiting for a disk is counted by more than one processor and may go back.
    let idle = now.idle.saturating_sub(then.idle).min(all);
    (all - idle).checked_mul(1000).map(|n| n / all)
}

/// A line `Name:   123 kB`, in bytes.
fn meminfo_bytes(text: &str, name: &str) -> Option<u64> {
    let mut values = text
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib: u64 = values
        .next()?
        .trim()
        .strip_suffix("kB")?
        .trim()
        .parse()
        .ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn of(root: &Path) -> Health {
        Health::rooted(&root.join("proc"), &root.join("sys"), root)
    }

    #[test]
    fn what_a_board_says_is_what_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        write(
            root,
            "proc/stat",
            "cpu  100 0 100 700 100 0 0 0 0 0\ncpu0 1 2 3\n",
        );
        write(
            root,
            "proc/meminfo",
            "MemTotal:  1024 kB\nMemFree: 1 kB\nMemAvailable:   512 kB\n",
        );
        write(
            root,
            "proc/self/smaps_rollup",
            "55-7ff [rollup]\nRss: 9000 kB\nPss:   8000 kB\nPss_Dirty: 5 kB\n",
        );
        write(root, "sys/class/thermal/thermal_zone0/temp", "48250\n");
        write(root, "sys/class/thermal/thermal_zone1/temp", "61500\n");
        write(root, "sys/class/thermal/thermal_zone2/temp", "-274000\n");
        write(
            root,
            "sys/class/thermal/cooling_device0/type",
            "thermal-cpufreq-0\n",
        );
        write(root, "sys/class/thermal/cooling_device0/cur_state", "0\n");
        write(root, "sys/class/thermal/cooling_device1/type", "Fan\n");
        write(root, "sys/class/thermal/cooling_device1/cur_state", "3\n");
        let mut health = of(root);
        write(root, "proc/stat", "cpu  130 0 120 740 110 0 0 0 0 0\n");
        health.stamped(1000, 1500);
        health.stamped(2000, 1700);
        health.stamped(3000, 3100);
        let read = health.read();
        assert_eq!(read["cpu_permille"], Scalar::Integer(500));
        assert_eq!(read["memory_total_bytes"], Scalar::Integer(1024 * 1024));
        assert_eq!(read["memory_available_bytes"], Scalar::Integer(512 * 1024));
        assert_eq!(read["agent_memory_bytes"], Scalar::Integer(8000 * 1024));
        assert_eq!(read["temperature_max_c"], Scalar::Number(61.5));
        assert_eq!(read["throttled"], Scalar::Flag(false));
        assert_eq!(read["clock_skew_ms"], Scalar::Integer(-300));
        assert!(read.contains_key("disk_free_bytes") && !read.contains_key("throttle_count"));
        write(root, "sys/class/thermal/cooling_device0/cur_state", "2\n");
        let read = health.read();
        assert_eq!(read["throttled"], Scalar::Flag(true));
        assert!(!read.contains_key("cpu_permille"), "no tick passed");
        assert!(
            !read.contains_key("clock_skew_ms"),
            "nothing was stamped since"
        );
    }

    #[test]
    fn heat_shows_while_the_count_rises() {
        let dir = tempfile::tempdir().unwrap();
        let path =
            |n| format!("sys/devices/system/cpu/cpu{n}/thermal_throttle/core_throttle_count");
        write(dir.path(), &path(0), "4\n");
        write(dir.path(), &path(1), "5\n");
        let mut health = of(dir.path());
        assert_eq!(health.read()["throttled"], Scalar::Flag(false));
        write(dir.path(), &path(1), "6\n");
        let read = health.read();
        assert_eq!(read["throttled"], Scalar::Flag(true));
        assert_eq!(read["throttle_count"], Scalar::Integer(10));
        assert_eq!(health.read()["throttled"], Scalar::Flag(false));
    }

    #[test]
    fn a_raspberry_pi_says_it_in_bits() {
        let dir = tempfile::tempdir().unwrap();
        let path = "sys/devices/platform/soc/soc:firmware/get_throttled";
        write(dir.path(), path, "50000\n");
        assert_eq!(
            of(dir.path()).read()["throttled"],
            Scalar::Flag(false),
            "it was, it is not"
        );
        write(dir.path(), path, "0x50005\n");
        assert_eq!(of(dir.path()).read()["throttled"], Scalar::Flag(true));
    }

    #[test]
    fn what_is_not_there_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "proc/stat", "cpu  1 x\n");
        write(dir.path(), "proc/meminfo", "MemTotal: many kB\n");
        let read = of(dir.path()).read();
        let names: Vec<_> = read.keys().map(String::as_str).collect();
        assert_eq!(names, ["disk_free_bytes", "disk_total_bytes"]);
        let load =
            |then, now| load_permille(Ticks { all: then, idle: 0 }, Ticks { all: now, idle: 9 });
        assert_eq!(
            (load(10, 10), load(10, 9), load(0, 9)),
            (None, None, Some(0))
        );
    }
}
