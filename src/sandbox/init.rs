//! The first process of a program's namespaces: it prepares the file system that the program sees, starts it, and takes the
//! whole namespace with it when it ends.

use super::run::{Request, SandboxRoot, is_below_run};
use anyhow::{Context as _, Result, bail, ensure};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{Mode, OFlags, ResolveFlags, StatVfsMountFlags},
    mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, mount_remount, unmount},
    process::{Resource, Rlimit, WaitOptions},
    thread::{CapabilitySet, UnshareFlags},
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    os::{fd::AsRawFd as _, unix::fs::symlink},
    path::Path,
    process::{Command, ExitCode, Stdio},
    thread,
    time::Duration,
};

/// What the first process says when it can be asked.
pub(super) const READY: &str = "ready";
/// Its message when the program runs; everything after that is the program's output.
pub(super) const GO: &str = "go";
/// Its exit status when there were too many processes.
pub(super) const TOO_MANY: u8 = 251;
/// Its exit status when it could not set up what was requested.
const BROKEN: u8 = 250;

/// The name of the machine, as programs see it.
const HOST_NAME: &str = "localhost";

/// What a program may do inside its root; everything that reaches beyond it, as mounting and making device nodes,
/// is left out, since for real root the capabilities are real.
const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::SETFCAP);

/// The environment that every program has, whatever the host's is.
const ENVIRONMENT: [(&str, &str); 6] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("LANG", "C.UTF-8"),
    ("LC_ALL", "C.UTF-8"),
    ("TERM", "dumb"),
    ("TZ", "UTC"),
];

/// The devices that a program sees: none has a state that outlives it.
const DEVICES: [&str; 6] = ["full", "null", "random", "tty", "urandom", "zero"];

/// Does what the request on standard input says.
pub(super) fn serve() -> ExitCode {
    match prepare() {
        Ok((request, filters)) => match launch(&request, &filters) {
            Ok(code) => ExitCode::from(code),
            Err(error) => broken(&error),
        },
        Err(error) => broken(&error),
    }
}

fn broken(error: &anyhow::Error) -> ExitCode {
    say(&format!("{error:#}"));
    ExitCode::from(BROKEN)
}

fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn prepare() -> Result<(Request, [BpfProgram; 2])> {
    super::job::die_with_parent()?;
    // From here on this process ends with the job. If the job ended before, there is no request.
    say(READY);
    let mut request = String::new();
    io::stdin().read_line(&mut request)?;
    ensure!(!request.is_empty(), "there is no request");
    let request: Request = serde_json::from_str(&request)?;
    // A session of its own has no terminal.
    rustix::process::setsid().context("leaving the terminal")?;
    super::job::unshare(UnshareFlags::NEWNS).context("making a mount namespace")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("making the mount namespace private")?;
    rustix::system::sethostname(HOST_NAME.as_bytes()).context("setting the host name")?;
    rustix::process::umask(Mode::empty());
    mount_all(&request.sandbox_root)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    limit_resources()?;
    Ok((request, filters()?))
}

/// Mounts what the program sees, and goes there.
fn mount_all(sandbox_root: &SandboxRoot) -> Result<()> {
    let root = sandbox_root.root.as_path();
    mount_bind(root, root).with_context(|| format!("mounting {}", root.display()))?;
    let root = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("opening {}", root.display()))?;
    let quiet = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_proc(&place(&root, "proc")?)?;
    // Some postinst scripts run what they wrote to /tmp.
    tmpfs(&root, "tmp", MountFlags::NOSUID | MountFlags::NODEV, c"mode=1777,size=1g")?;
    tmpfs(&root, "run", quiet, c"mode=0755,size=64m")?;
    fs::create_dir(inside(&place(&root, "run")?).join("lock")).context("making /run/lock")?;
    make_devices(&root)?;
    for bind in &sandbox_root.binds {
        ensure!(is_below_run(&bind.guest), "`{}` is not below /run", bind.guest);
        let target = inside(&root).join(bind.guest.relative());
        fs::create_dir_all(&target).with_context(|| format!("making {}", bind.guest))?;
        mount_bind(&bind.host, &target).with_context(|| format!("mounting {}", bind.host.display()))?;
        make_read_only(&target).with_context(|| format!("making {} read-only", bind.guest))?;
    }
    rustix::process::fchdir(&root)?;
    rustix::process::pivot_root(".", ".").context("changing the root")?;
    // The old root is below the new one.
    unmount(".", UnmountFlags::DETACH).context("letting go of the old root")?;
    rustix::process::chdir("/").context("entering the new root")
}

/// The directory `name` of the root, made if it is not there, never followed through a link.
fn place(root: &OwnedFd, name: &str) -> Result<OwnedFd> {
    match rustix::fs::mkdirat(root, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(error).with_context(|| format!("making /{name}")),
    }
    rustix::fs::openat2(
        root,
        name,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH,
    )
    .with_context(|| format!("/{name} is not a directory to mount on"))
}

/// A path of the open directory, for calls that take paths only.
fn inside(directory: &impl AsFd) -> std::path::PathBuf {
    format!("/proc/self/fd/{}", directory.as_fd().as_raw_fd()).into()
}

fn tmpfs(root: &OwnedFd, name: &str, flags: MountFlags, options: &std::ffi::CStr) -> Result<()> {
    mount("tmpfs", inside(&place(root, name)?), "tmpfs", flags, options).with_context(|| format!("mounting /{name}"))
}

/// Read-only, because the settings of the kernel below it obey the user's number, not its capabilities.
fn mount_proc(target: &OwnedFd) -> Result<()> {
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if mount("proc", inside(target), "proc", flags, None).is_ok() {
        return Ok(());
    }
    // A container may show its /proc in part and forbid a whole one; then that part is shown.
    let host = inside(&rustix::fs::open("/proc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?);
    rustix::mount::mount_bind_recursive(&host, inside(target)).context("mounting /proc")?;
    make_read_only(&inside(target)).context("making /proc read-only")
}

/// Adds read-only to the flags of a bind mount; those it has must be repeated, as users may not remove one.
fn make_read_only(target: &Path) -> Result<()> {
    let have = rustix::fs::statvfs(target)?.f_flag;
    let mut flags = MountFlags::BIND | MountFlags::RDONLY;
    for (is, flag) in [
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ] {
        if have.contains(is) {
            flags |= flag;
        }
    }
    Ok(mount_remount(target, flags, c"")?)
}

fn make_devices(root: &OwnedFd) -> Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    tmpfs(root, "dev", flags, c"mode=0755,size=64m")?;
    let devices = place(root, "dev")?;
    let folder = inside(&devices);
    for name in DEVICES {
        let target = folder.join(name);
        fs::write(&target, "").with_context(|| format!("making /dev/{name}"))?;
        mount_bind(Path::new("/dev").join(name), &target).with_context(|| format!("mounting /dev/{name}"))?;
    }
    for name in ["pts", "shm"] {
        fs::create_dir(folder.join(name)).with_context(|| format!("making /dev/{name}"))?;
    }
    for (link, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        symlink(target, folder.join(link)).with_context(|| format!("making /dev/{link}"))?;
    }
    let quiet = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("tmpfs", folder.join("shm"), "tmpfs", quiet, c"mode=1777,size=256m").context("mounting /dev/shm")?;
    // Nothing needs a terminal so much that its absence should stop the work.
    let options = c"newinstance,ptmxmode=0666,mode=620";
    let _ = mount("devpts", folder.join("pts"), "devpts", MountFlags::NOSUID | MountFlags::NOEXEC, options);
    Ok(())
}

/// The same limits on every machine; none is raised above what this process has.
fn limit_resources() -> Result<()> {
    for (resource, value) in [(Resource::Core, 0), (Resource::Nofile, 1024), (Resource::Stack, 8 << 20)] {
        let maximum = rustix::process::getrlimit(resource).maximum;
        let value = maximum.map_or(value, |maximum| maximum.min(value));
        rustix::process::setrlimit(resource, Rlimit { current: Some(value), maximum })
            .context("setting a resource limit")?;
    }
    Ok(())
}

/// Two filters of system calls: those that wait for the disk succeed at once, and those that no namespace confines are
/// answered as if the kernel did not have them.
fn filters() -> Result<[BpfProgram; 2]> {
    let sync = [
        libc::SYS_fsync,
        libc::SYS_fdatasync,
        libc::SYS_sync,
        libc::SYS_syncfs,
        libc::SYS_sync_file_range,
        libc::SYS_msync,
    ];
    let unconfined = [
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_keyctl,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_io_uring_setup,
        libc::SYS_open_by_handle_at,
        libc::SYS_kexec_load,
    ];
    Ok([filter(&sync, SeccompAction::Errno(0))?, filter(&unconfined, SeccompAction::Errno(libc::ENOSYS as u32))?])
}

fn filter(calls: &[i64], action: SeccompAction) -> Result<BpfProgram> {
    let rules: BTreeMap<i64, Vec<_>> = calls.iter().map(|call| (*call, Vec::new())).collect();
    let arch = std::env::consts::ARCH.try_into().context("filtering system calls")?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, arch).context("filtering system calls")?;
    filter.try_into().context("filtering system calls")
}

/// Runs the program to its end and returns its status; this process then ends, and with it every other one here.
fn launch(request: &Request, filters: &[BpfProgram]) -> Result<u8> {
    let [program, arguments @ ..] = &request.arguments[..] else { bail!("no program to run") };
    for capability in CapabilitySet::all().iter().filter(|capability| !CAPABILITIES.contains(*capability)) {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // A kernel that does not know it does not grant it.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error).context("dropping capabilities"),
        }
    }
    filters.iter().try_for_each(|filter| seccompiler::apply_filter(filter)).context("filtering system calls")?;
    say(GO);
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(ENVIRONMENT)
        .envs(request.sandbox_root.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(io::stdout().as_fd().try_clone_to_owned()?)
        .stderr(io::stdout().as_fd().try_clone_to_owned()?);
    let child = match command.spawn() {
        Ok(child) => child.id(),
        Err(error) => {
            say(&format!("starting `{program}`: {error}"));
            return Ok(127);
        }
    };
    let most = request.sandbox_root.processes;
    thread::spawn(move || watch(most));
    // Orphans come here to be buried.
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid.as_raw_nonzero().get() as u32 == child => {
                let signal = status.terminating_signal().map(|signal| 128 + signal);
                return Ok(status.exit_status().or(signal).unwrap_or(255) as u8);
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for the program"),
        }
    }
}

/// Ends everything when there are too many processes. A limit of resources would count the whole host's, and not bind
/// root.
#[allow(clippy::exit, reason = "the end of the first process is the end of them all")]
fn watch(most: usize) {
    let Ok(proc) = fs::canonicalize("/proc") else { return };
    loop {
        thread::sleep(Duration::from_millis(250));
        let Ok(entries) = fs::read_dir(&proc) else { return };
        let is_number = |name: &std::ffi::OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
        if entries.flatten().filter(|entry| is_number(&entry.file_name())).count() > most {
            std::process::exit(i32::from(TOO_MANY));
        }
    }
}
