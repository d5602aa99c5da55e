//! What follows from the size of a machine: PostgreSQL's memory and disk space, and how many connections the programs take.

use super::Setting;
use serde::Serialize;
use std::collections::BTreeMap;

const MIB: u64 = 1 << 20;

/// The size of a node's machine, and what it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "builder", derive(schemars::JsonSchema))]
pub struct Machine {
    /// Memory that the services may use, in bytes.
    pub memory: u64,
    /// The number of processors.
    pub processors: u64,
    /// The size of the file system of the databases, in bytes.
    pub disk: u64,
    /// The most files that one service may have open.
    pub open_files: u64,
    /// Whether there is a watchdog that resets the machine.
    pub watchdog: bool,
    /// The network interface with the member's address, empty if it is unknown.
    pub interface: String,
}

impl Machine {
    /// A small machine, for trying templates.
    pub fn sample() -> Machine {
        Machine {
            memory: 4 << 30,
            processors: 2,
            disk: 40 << 30,
            open_files: 524_288,
            watchdog: true,
            interface: "ens3".to_owned(),
        }
    }

    /// The memory that the database servers share, in MiB: a quarter of all, 32 to 32,768.
    fn shared_buffers(&self) -> u64 {
        (self.memory / MIB / 4).clamp(32, 32_768)
    }

    /// PostgreSQL's parameters that follow from memory, processors and disk.
    pub fn parameters(&self) -> BTreeMap<String, Setting> {
        let memory = self.memory / MIB;
        let disk = self.disk / MIB;
        let size = |mib: u64| Setting::Text(format!("{mib}MB"));
        let workers = self.processors.clamp(2, 16) as i64;
        [
            ("shared_buffers", size(self.shared_buffers())),
            ("effective_cache_size", size((memory * 3 / 4).max(64))),
            ("maintenance_work_mem", size((memory / 16).clamp(32, 2048))),
            ("work_mem", size((memory / 256).clamp(4, 64))),
            ("max_wal_size", size((disk / 20).clamp(256, 16_384))),
            ("min_wal_size", size((disk / 80).clamp(80, 4096))),
            // A replica that stays away must not fill the primary's disk: beyond this it is cloned again.
            ("max_slot_wal_keep_size", size((disk / 5).clamp(512, 65_536))),
            ("max_parallel_workers", Setting::Integer(workers)),
            ("max_parallel_workers_per_gather", Setting::Integer((workers / 2).clamp(1, 4))),
            ("max_parallel_maintenance_workers", Setting::Integer((workers / 2).clamp(1, 4))),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into_iter()
        .collect()
    }

    /// How many huge pages of 2 MiB to reserve: from 8 GiB of shared buffers on, those and a tenth for the rest of
    /// shared memory; else 0.
    pub fn huge_pages(&self) -> u64 {
        match self.shared_buffers() {
            small if small < 8192 => 0,
            buffers => buffers * 11 / 10 / 2,
        }
    }

    /// How many clients PgBouncer accepts, of the `wanted` ones: at least 10. Each may hold a server connection, too, and
    /// some files are the program's own.
    pub fn pool_clients(&self, wanted: u32) -> u64 {
        u64::from(wanted).min(self.open_files.saturating_sub(500) / 2).max(10)
    }

    /// How many connections HAProxy accepts: at least 100. Each takes two files.
    pub fn haproxy_connections(&self) -> u64 {
        (self.open_files.min(65_536) / 2).saturating_sub(200).max(100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_follows_the_machine() {
        let large = Machine { memory: 64 << 30, open_files: 20_000, ..Machine::sample() };
        assert_eq!(large.parameters()["shared_buffers"], Setting::Text("16384MB".to_owned()));
        assert_eq!((large.huge_pages(), large.haproxy_connections()), (9011, 9800));
        assert_eq!(Machine::sample().huge_pages(), 0);
    }

    #[test]
    fn small_machines_take_few_clients_but_some() {
        let with = |open_files| Machine { open_files, ..Machine::sample() };
        assert_eq!(with(524_288).pool_clients(2000), 2000);
        assert_eq!(with(1_024).pool_clients(2000), 262);
        assert_eq!((with(256).pool_clients(2000), with(256).haproxy_connections()), (10, 100));
    }
}
