//! Facts about this machine: its memory, its disk, its limits, its addresses.

use super::identity::HostIdentity;
use crate::{exec::Run, model::scope::Machine};
use anyhow::{Context as _, Result};
use serde::Deserialize;
use std::{fs, net::IpAddr, path::Path, time::Duration};

#[derive(Deserialize)]
struct Link {
    ifname: String,
    #[serde(default)]
    addr_info: Vec<Address>,
}

#[derive(Deserialize)]
struct Address {
    local: Option<IpAddr>,
}

/// Every address of this machine, with its interface.
///
/// # Errors
/// When `ip` cannot be asked.
pub fn addresses() -> Result<Vec<(String, IpAddr)>> {
    let text = Run::new("ip").args(["-json", "address"]).limit(Duration::from_secs(10)).text()?;
    let links: Vec<Link> = serde_json::from_str(&text).context("reading what `ip -json address` says")?;
    Ok(links
        .into_iter()
        .flat_map(|link| link.addr_info.into_iter().filter_map(move |info| Some((link.ifname.clone(), info.local?))))
        .collect())
}

/// What identifies this machine.
///
/// # Errors
/// As [`addresses`].
pub fn host_identity() -> Result<HostIdentity> {
    let instance_id = fs::read_to_string("/var/lib/cloud/data/instance-id").ok();
    Ok(HostIdentity {
        addresses: addresses()?
            .into_iter()
            .map(|(_, address)| address)
            .filter(|address| {
                !address.is_loopback() && !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
            })
            .collect(),
        host_name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        instance_id: instance_id.map(|id| id.trim().to_owned()),
    })
}

/// The facts that templates use, for the node at `address`.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn facts(address: IpAddr) -> Result<Machine> {
    let interface = addresses()?.into_iter().find(|(_, own)| *own == address).map(|(name, _)| name).unwrap_or_default();
    let disk = rustix::fs::statvfs(super::state::POSTGRESQL_DATA)
        .or_else(|_| rustix::fs::statvfs("/"))
        .context("asking for the size of the disk")?;
    Ok(Machine {
        memory: memory()?,
        processors: std::thread::available_parallelism().map_or(1, |count| count.get() as u64),
        disk: disk.f_blocks.saturating_mul(disk.f_frsize),
        open_files: open_files().unwrap_or(65_536),
        watchdog: Path::new("/dev/watchdog").exists(),
        interface,
    })
}

/// The machine's memory or its control group's, whichever is less, without the part that differs from boot to boot.
fn memory() -> Result<u64> {
    const STEP: u64 = 64 << 20;
    let text = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let total = meminfo(&text).context("finding MemTotal in /proc/meminfo")?;
    let limit = fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    Ok((total.min(limit.unwrap_or(u64::MAX)) / STEP * STEP).max(STEP))
}

fn meminfo(text: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    rest.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The most files that systemd can allow a service.
fn open_files() -> Option<u64> {
    hard_limit(&fs::read_to_string("/proc/1/limits").ok()?)
}

fn hard_limit(text: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let hard = rest.split_whitespace().nth(1)?;
    if hard == "unlimited" { Some(u64::from(u32::MAX)) } else { hard.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        assert_eq!(meminfo("MemTotal:       24608232 kB\nMemFree: 1 kB\n"), Some(24_608_232 * 1024));
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max open files            1024                 20000                files\n";
        assert_eq!(hard_limit(limits), Some(20_000));
        assert_eq!(hard_limit(""), None);
    }

    #[test]
    fn addresses_are_read_from_ip() {
        let json = r#"[{"ifname":"lo","addr_info":[{"family":"inet","local":"127.0.0.1"}]},
            {"ifname":"eth0","addr_info":[{"local":"10.0.0.11"},{"local":"fe80::1"}]},{"ifname":"dummy"},{"ifname":"x","addr_info":[{}]}]"#;
        let links: Vec<Link> = serde_json::from_str(json).unwrap();
        assert_eq!(links[1].addr_info[0].local, Some("10.0.0.11".parse().unwrap()));
    }
}
