//! What machine this is, as far as it matters to whoever compares figures.

use std::fs;
use std::thread;

use serde::Serialize;

/// The machine.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Cores that this process may use.
    pub cores: usize,
    /// Model of the processor.
    pub processor: String,
    /// Memory in GiB, rounded.
    pub memory_gib: u64,
    /// Version of the kernel, without what its builder added.
    pub kernel: String,
}

impl Machine {
    /// Looks around.
    pub fn look() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let value = |text: &str, key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key))?;
            Some(line.trim_start_matches([' ', '\t', ':']).trim().to_owned())
        };
        let memory = value(&read("/proc/meminfo"), "MemTotal");
        let kib = memory.and_then(|memory| memory.strip_suffix(" kB")?.parse::<u64>().ok());
        let release = read("/proc/sys/kernel/osrelease");
        Self {
            cores: thread::available_parallelism().map_or(0, usize::from),
            processor: value(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".to_owned()),
            memory_gib: kib.unwrap_or_default().saturating_add(1 << 19) >> 20,
            kernel: release.split(['-', '\n']).next().unwrap_or_default().to_owned(),
        }
    }
}
