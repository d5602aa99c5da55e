//! A machine in its folder: prepared, started, found again, ended.

use super::{
    Accel, Agent, Console, DiskBus, DiskFormat, DiskImage, Firmware, MachineSpec, Net, Qemu, Qmp, Seed, argv::files,
};
use crate::{
    files::NewFile,
    io::socket,
    reexec::{self, Launcher, Lifetime},
};
use anyhow::{Context as _, Result, anyhow, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::AsFd as _,
    process::{Signal, pidfd_send_signal},
};
use serde_json::Value;
use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How long QEMU may take from its start to its first answer.
const START: Duration = Duration::from_secs(30);
/// How long QEMU may take to end after it was told to quit.
const END: Duration = Duration::from_secs(10);
/// Bytes of QEMU's output that an error repeats.
const TAIL: usize = 2048;

/// A machine to be prepared.
#[derive(Debug, Clone)]
pub struct MachineConfig {
    pub name: String,
    /// What it boots.
    pub image: DiskImage,
    /// The firmware it boots with.
    pub firmware: Firmware,
    /// Processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory: u64,
    /// How its disk is attached.
    pub bus: DiskBus,
    /// The size of its disk in bytes; without, as large as the image's.
    pub disk_size: Option<u64>,
    /// Where to keep the disk, or where one was kept; without, it is thrown away.
    pub keep: Option<PathBuf>,
    /// What its cloud-init reads.
    pub seed: Option<Seed>,
    /// Its network.
    pub net: Net,
    /// Its serial console.
    pub console: Console,
}

impl MachineConfig {
    /// Makes the machine's files in `folder`, which is made if it is not there: an overlay of the image as its disk, its
    /// seed, the variables of its firmware, and the machine itself as `machine.json`.
    ///
    /// # Errors
    /// A wrong request when the firmware is missing or the disk too small; when a file cannot be written.
    pub fn prepare(&self, accel: Accel, folder: &Path) -> Result<MachineSpec> {
        let uefi = self.firmware.find()?;
        fs::create_dir_all(folder).with_context(|| format!("making the folder {}", folder.display()))?;
        let (disk, format) = match &self.keep {
            None => {
                self.image.linked(&folder.join(files::IMAGE)).overlay(&folder.join(files::DISK), self.disk_size)?;
                (PathBuf::from(files::DISK), DiskFormat::Qcow2)
            }
            Some(kept) => {
                if !kept.exists() {
                    self.image.overlay(kept, self.disk_size)?;
                }
                let kept = DiskImage::open(kept)?;
                (kept.path, kept.format)
            }
        };
        if let Some(seed) = &self.seed {
            seed.write(&folder.join(files::SEED))?;
        }
        if let Some(uefi) = &uefi {
            let variables = folder.join(files::VARIABLES);
            let bytes = fs::read(&uefi.variables).with_context(|| format!("reading {}", uefi.variables.display()))?;
            let mut file = NewFile::beside(&variables)?;
            file.write_all(&bytes).with_context(|| format!("writing {}", variables.display()))?;
            file.publish(&variables)?;
        }
        let spec = MachineSpec {
            name: self.name.clone(),
            accel,
            uefi,
            cpus: self.cpus,
            memory: self.memory,
            bus: self.bus,
            disk,
            format,
            volatile: self.keep.is_none(),
            seed: self.seed.is_some(),
            net: self.net.clone(),
            console: self.console,
        };
        spec.store(folder)?;
        Ok(spec)
    }
}

/// A running machine. On drop, a tied one ends; a detached one goes on.
#[derive(Debug)]
pub struct Machine {
    folder: PathBuf,
    process: OwnedFd,
    tied: Option<Child>,
}

impl Machine {
    /// The file of its folder that has what its serial console said.
    pub const CONSOLE_LOG: &str = files::CONSOLE_LOG;

    /// Starts the machine that was prepared in `folder`.
    ///
    /// # Errors
    /// When there is none, it is running already, or QEMU does not start; the error then has QEMU's output.
    pub fn start(qemu: &Qemu, folder: &Path, lifetime: Lifetime, launcher: &Launcher) -> Result<Machine> {
        let spec = MachineSpec::load(folder)?;
        let starting = || format!("starting the machine {}", spec.name);
        if Machine::open(folder)?.is_some() {
            return Err(anyhow!("it is running already")).with_context(starting);
        }
        let log = folder.join(files::QEMU_LOG);
        let words = File::create(&log).with_context(|| format!("writing {}", log.display()))?;
        let mut command = launcher.command(lifetime, "program");
        command.arg(&qemu.program).args(spec.argv()).current_dir(folder);
        match spec.console {
            Console::Log => command.stdin(Stdio::null()).stdout(words.try_clone()?),
            Console::Terminal => command.stdin(Stdio::inherit()).stdout(Stdio::inherit()),
        };
        command.stderr(words);
        let mut child = reexec::spawn(command).with_context(starting)?;
        let monitor = folder.join(files::MONITOR);
        let end = Instant::now() + START;
        let process = loop {
            // QEMU listens before it opens its disks; whether it then ends is the first thing to see.
            let answered = Qmp::connect(&monitor).and_then(|monitor| monitor.process());
            if let Some(status) = child.try_wait().with_context(starting)? {
                return Err(anyhow!("QEMU ended ({status}){}", said(&log))).with_context(starting);
            }
            match answered {
                Ok(process) => break process,
                Err(error) if Instant::now() > end => {
                    let _ = child.kill().and_then(|()| child.wait());
                    return Err(error.context(format!("QEMU does not answer{}", said(&log)))).with_context(starting);
                }
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        };
        let tied = match lifetime {
            Lifetime::Tied => Some(child),
            Lifetime::Detached => {
                // It usually outlives this program; if not, it must be waited for.
                thread::spawn(move || child.wait());
                None
            }
        };
        Ok(Machine { folder: folder.to_owned(), process, tied })
    }

    /// Finds the machine that runs in `folder`; `None` if none does.
    ///
    /// # Errors
    /// When a QEMU listens there and does not answer.
    pub fn open(folder: &Path) -> Result<Option<Machine>> {
        let monitor = folder.join(files::MONITOR);
        // A machine that has ended leaves its socket.
        if socket::connect(&monitor).is_err() {
            return Ok(None);
        }
        let process = Qmp::connect(&monitor)?.process()?;
        Ok(Some(Machine { folder: folder.to_owned(), process, tied: None }))
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What its serial console said so far.
    pub fn console_log(&self) -> PathBuf {
        self.folder.join(files::CONSOLE_LOG)
    }

    /// A connection to its monitor. There is one at a time; let it go soon.
    ///
    /// # Errors
    /// When the machine has ended.
    pub fn monitor(&self) -> Result<Qmp> {
        Qmp::connect(&self.folder.join(files::MONITOR))
    }

    /// A connection to the guest agent, which must answer until `deadline`. There is one at a time.
    ///
    /// # Errors
    /// When the machine has ended, or no agent answers.
    pub fn agent(&self, deadline: Instant) -> Result<Agent> {
        Agent::connect(&self.folder.join(files::AGENT), deadline)
    }

    /// Stops its processors.
    ///
    /// # Errors
    /// When the machine has ended.
    pub fn pause(&self) -> Result<()> {
        self.monitor()?.execute("stop", Value::Null).map(drop)
    }

    /// Lets its processors go on.
    ///
    /// # Errors
    /// When the machine has ended.
    pub fn resume(&self) -> Result<()> {
        self.monitor()?.execute("cont", Value::Null).map(drop)
    }

    /// Presses its power button: a guest that reacts to it shuts down, and the machine ends.
    ///
    /// # Errors
    /// When the machine has ended.
    pub fn press_power_button(&self) -> Result<()> {
        self.monitor()?.execute("system_powerdown", Value::Null).map(drop)
    }

    /// Cuts its power: the guest gets no signal. What it wrote to its disk is there, synced or not.
    ///
    /// # Errors
    /// When the machine does not end.
    pub fn cut_power(&self) -> Result<()> {
        // It may end before it answers; whether it did is seen below.
        let _ = self.monitor().and_then(|mut monitor| monitor.execute("quit", Value::Null));
        if self.wait(END)? {
            return Ok(());
        }
        match pidfd_send_signal(&self.process, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error).context("killing QEMU"),
        }
        if !self.wait(END)? {
            bail!("the machine in {} does not stop", self.folder.display());
        }
        Ok(())
    }

    /// Waits until the machine has ended; whether it has within `limit`.
    ///
    /// # Errors
    /// When the kernel reports an error.
    pub fn wait(&self, limit: Duration) -> Result<bool> {
        let end = Instant::now() + limit;
        loop {
            let left = Timespec::try_from(end.saturating_duration_since(Instant::now())).context("waiting for QEMU")?;
            match poll(&mut [PollFd::from_borrowed_fd(self.process.as_fd(), PollFlags::IN)], Some(&left)) {
                Ok(ready) => return Ok(ready > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("waiting for QEMU"),
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(mut child) = self.tied.take() {
            let _ = self.cut_power();
            let _ = child.wait();
        }
    }
}

/// The end of what QEMU said.
fn said(log: &Path) -> String {
    let bytes = fs::read(log).or_else(|_| io::Result::Ok(Vec::new())).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(TAIL)..]).trim().to_owned();
    if text.is_empty() { String::new() } else { format!(": {text}") }
}
