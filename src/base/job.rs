//! The job that makes a base layer, inside the namespaces.

use super::{
    BaseSpec, Package, Place, accounts, bootstrap,
    capture::{self, Before, Clamp},
    check_epoch, clean,
    dpkg::{self, Dpkg, Progress},
    materialise::materialise,
    order::{self, Round, field},
    patterns::Patterns,
    root::{Attributes, Root},
};
use crate::{
    model::{Digest, GuestPath},
    progress,
    rootfs::tar::StoredLayer,
    sandbox::{Bind, Reporter, SandboxRoot},
    store::Store,
};
use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::mount::{MountFlags, UnmountFlags};
use serde::{Deserialize, Serialize};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

/// The request of [`super::build`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// The store's folder.
    pub store: PathBuf,
    /// An empty folder, for this job alone.
    pub scratch: PathBuf,
    /// The layers that the packages are installed on.
    pub below: Vec<StoredLayer>,
    /// What is to be built.
    pub spec: BaseSpec,
}

/// A part of the work with a progress step of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepName {
    Bootstrap,
    Install,
    Configure,
    Initramfs,
    Capture,
}

impl StepName {
    pub fn name(self) -> &'static str {
        match self {
            StepName::Bootstrap => "bootstrap",
            StepName::Install => "install",
            StepName::Configure => "configure",
            StepName::Initramfs => "initramfs",
            StepName::Capture => "capture",
        }
    }
}

/// What the job reports while it works.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobReport {
    Begin { step: StepName, total: u64 },
    Advance { count: u64, detail: String },
    End { outcome: String },
}

/// Where packages lie inside the root, read-only.
const MATERIAL: &str = "/run/pgha-image";
/// The folder there for programs that replace others.
const BIN: &str = "bin";
/// The file of dpkg's settings that stays, so that packages upgraded in the guest leave out the same paths.
const DPKG_SETTINGS: &str = "/etc/dpkg/dpkg.cfg.d/pgha-image";
/// More processes than this at once is not a package's configuration.
const PROCESSES: usize = 500;

/// Makes a base layer: [`super::JOB`].
pub fn work(request: serde_json::Value, reporter: &Reporter) -> Result<serde_json::Value> {
    let request: Request = serde_json::from_value(request).context("reading what base is to be built")?;
    let root = request.scratch.join("root");
    let layer = make(&request, &root, reporter);
    // Whoever asked cannot remove files of other ids.
    let _ = rustix::mount::unmount(&root, UnmountFlags::DETACH);
    let removed = fs::remove_dir_all(&root).with_context(|| format!("removing {}", root.display()));
    let layer = layer?;
    removed?;
    Ok(serde_json::to_value(layer)?)
}

fn make(request: &Request, folder: &Path, reporter: &Reporter) -> Result<StoredLayer> {
    let began = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())?;
    check_epoch(request.spec.epoch, began)?;
    let store = Store::open(&request.store)?;
    make_folder(folder, &request.spec, &request.below)?;
    let root = Root::open(folder)?;
    root.set_top(Attributes::root(0o755))?;
    let material = request.scratch.join("material");
    lay_out(&material, &request.spec)?;
    let sandbox_root = SandboxRoot {
        root: folder.to_owned(),
        binds: vec![Bind { host: material.clone(), guest: MATERIAL.parse()? }],
        environment: environment(&request.spec),
        limit: request.spec.limit,
        processes: PROCESSES,
    };
    let before = materialise(&store, &root, &request.below)?;
    let verifier = Verifier::start(&store);
    let checks = verifier.send.clone();
    let worker = Worker {
        spec: &request.spec,
        store: &store,
        root: &root,
        sandbox_root: &sandbox_root,
        material: &material,
        checks,
        reporter,
        reached: RefCell::default(),
        counted: Cell::new(""),
    };
    let installed = worker
        .install(request.below.is_empty())
        .and_then(|()| worker.make_initramfs())
        .and_then(|()| worker.run_programs());
    let layer = installed.and_then(|()| worker.capture(&before, Clamp { epoch: request.spec.epoch, began }));
    drop(worker);
    // A damaged package explains whatever else went wrong.
    verifier.finish()?;
    layer
}

/// Makes the folder for the root: in memory, where there is plenty of it, else in the store.
///
/// In memory, no other process sees it, and nothing of it is left when this process is killed.
fn make_folder(folder: &Path, spec: &BaseSpec, below: &[StoredLayer]) -> Result<()> {
    fs::create_dir(folder).with_context(|| format!("making {}", folder.display()))?;
    let in_memory = match spec.place {
        Place::Memory => true,
        Place::Disk => false,
        Place::Auto => {
            let kib = |package: &Package| field(package, "Installed-Size").parse().unwrap_or(0_u64);
            let packages: u64 = spec.packages.iter().map(kib).sum();
            let root = packages * 1024 + below.iter().map(|layer| layer.size).sum::<u64>();
            // Twice what the root takes for the packages themselves and the layer, which are in the page cache.
            available_memory().is_some_and(|available| available >= 4 * root + (1 << 30))
        }
    };
    if in_memory {
        rustix::mount::mount("tmpfs", folder, "tmpfs", MountFlags::empty(), c"mode=0755")
            .with_context(|| format!("mounting memory on {}", folder.display()))?;
    }
    Ok(())
}

/// Bytes of memory that are available without swapping (proc_meminfo(5), `MemAvailable`).
fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// The environment of maintainer scripts, added to that of every program.
fn environment(spec: &BaseSpec) -> Vec<(String, String)> {
    [
        ("DEBIAN_FRONTEND", "noninteractive"),
        ("DEBCONF_NONINTERACTIVE_SEEN", "true"),
        // Kernel packages ask for an initramfs each time they are touched; it is made once, at the end.
        ("INITRD", "No"),
        // Compiled Python depends on the order of sets otherwise.
        ("PYTHONHASHSEED", "0"),
        // Compiled Python comes from py3compile alone, whose files packages remove again; not from the first import.
        ("PYTHONDONTWRITEBYTECODE", "1"),
        (dpkg::STAND_INS, &format!("{MATERIAL}/{BIN}")),
        ("SOURCE_DATE_EPOCH", &spec.epoch.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

/// Writes what programs in the root see in addition to it: answers for debconf, and replacements of programs.
fn lay_out(material: &Path, spec: &BaseSpec) -> Result<()> {
    let stand_in = material.join(BIN).join("py3compile");
    fs::create_dir_all(material.join(BIN))
        .and_then(|()| fs::write(material.join("preseed"), &spec.preseed))
        .and_then(|()| fs::write(&stand_in, dpkg::DEFER_COMPILING))
        .and_then(|()| fs::set_permissions(&stand_in, Permissions::from_mode(0o755)))
        .with_context(|| format!("writing in {}", material.display()))
}

/// Links a package into the folder that programs see.
fn link(store: &Store, package: &Digest, target: &Path) -> Result<()> {
    let blob = store.blob_path(package);
    // A blob of another user may not be linked.
    fs::hard_link(&blob, target)
        .or_else(|_| fs::copy(&blob, target).map(drop))
        .with_context(|| format!("linking {} to {}", blob.display(), target.display()))
}

/// Checks packages beside everything else: what was made of a damaged one is thrown away.
struct Verifier {
    send: mpsc::Sender<(String, Digest)>,
    thread: thread::JoinHandle<Result<()>>,
}

impl Verifier {
    fn start(store: &Store) -> Verifier {
        let (send, packages) = mpsc::channel::<(String, Digest)>();
        let store = store.clone();
        let thread = thread::spawn(move || {
            for (name, package) in packages {
                ensure!(
                    store.verify_blob(&package)?,
                    "the expanded package `{name}` was damaged and has been removed from the store; build again"
                );
            }
            Ok(())
        });
        Verifier { send, thread }
    }

    /// Waits until all packages are checked.
    fn finish(self) -> Result<()> {
        drop(self.send);
        self.thread.join().unwrap_or_else(|_| Err(anyhow!("checking packages ended unexpectedly")))
    }
}

fn file_name(at: usize) -> String {
    format!("{at}.deb")
}

struct Worker<'a> {
    spec: &'a BaseSpec,
    store: &'a Store,
    root: &'a Root,
    sandbox_root: &'a SandboxRoot,
    material: &'a Path,
    checks: mpsc::Sender<(String, Digest)>,
    reporter: &'a Reporter,
    /// What packages have reached.
    reached: RefCell<BTreeSet<String>>,
    /// The state that counts for the step at hand.
    counted: Cell<&'static str>,
}

impl Worker<'_> {
    fn report(&self, report: &JobReport) {
        self.reporter.report(serde_json::to_value(report).unwrap_or_default());
    }

    fn begin(&self, step: StepName, total: usize) {
        self.report(&JobReport::Begin { step, total: total as u64 });
    }

    fn end(&self, outcome: impl Into<String>) {
        self.report(&JobReport::End { outcome: outcome.into() });
    }

    fn install(&self, into_nothing: bool) -> Result<()> {
        let plan = order::plan(&self.spec.packages, into_nothing)?;
        let on_progress = |progress: Progress<'_>| self.on_progress(progress);
        let mut dpkg = Dpkg::new(self.sandbox_root, &on_progress);
        if into_nothing {
            self.begin(StepName::Bootstrap, plan.essential.len());
            self.bootstrap(&plan.essential)?;
            self.end(format!("{} essential packages", plan.essential.len()));
        }
        self.counted.set("unpacked");
        self.begin(StepName::Install, self.spec.packages.len());
        self.furnish()?;
        if into_nothing {
            dpkg.run(&with(&["--force-depends", "--install"], &self.paths(&plan.essential)))
                .context("installing the essential packages")?;
        }
        accounts::add(self.root, self.spec.users.as_slice(), &self.spec.groups, self.spec.epoch)?;
        if !self.spec.preseed.is_empty() {
            dpkg.program(&["debconf-set-selections", &format!("{MATERIAL}/preseed")])
                .context("answering debconf's questions")?;
        }
        // Triggers wait for the end: what they make is made once.
        for round in &plan.rounds {
            match round {
                Round::Unpack(packages) => {
                    self.supply(packages)?;
                    dpkg.run(&with(&["--no-triggers", "--unpack"], &self.paths(packages)))
                        .context("unpacking packages")?;
                }
                Round::Configure(packages) => dpkg
                    .run(&with(&["--no-triggers", "--configure"], &self.names(packages)))
                    .context("configuring packages that others pre-depend on")?,
            }
        }
        self.end(format!("{} packages unpacked", self.spec.packages.len()));
        self.counted.set("installed");
        self.begin(StepName::Configure, self.spec.packages.len() - self.installed());
        dpkg.configure_pending().context("configuring packages")?;
        self.end(format!("{} packages", self.spec.packages.len()));
        Ok(())
    }

    /// How many packages are configured.
    fn installed(&self) -> usize {
        self.reached.borrow().iter().filter(|reached| reached.ends_with(" installed")).count()
    }

    /// Waits for packages, and lays them out; returns the blobs of them.
    fn supply(&self, packages: &[usize]) -> Result<Vec<Digest>> {
        let reply = self.reporter.ask(serde_json::to_value(packages)?)?;
        let blobs: Vec<Digest> = serde_json::from_value(reply).context("reading the list of packages")?;
        ensure!(blobs.len() == packages.len(), "{} packages were requested, {} arrived", packages.len(), blobs.len());
        for (&at, blob) in packages.iter().zip(&blobs) {
            link(self.store, blob, &self.material.join(file_name(at)))?;
            // The verifier ends early only with an error of its own.
            let _ = self.checks.send((self.name(at).to_owned(), *blob));
        }
        Ok(blobs)
    }

    fn on_progress(&self, progress: Progress<'_>) {
        match progress {
            Progress::Begins(action, package) => {
                self.report(&JobReport::Advance { count: 0, detail: format!("{action} {package}") });
            }
            // Essential packages are unpacked twice, and triggers bring packages back to where they were.
            Progress::Reached(package, state) => {
                if self.reached.borrow_mut().insert(format!("{package} {state}")) && self.counted.get() == state {
                    self.report(&JobReport::Advance { count: 1, detail: String::new() });
                }
            }
        }
    }

    /// Puts enough into the empty root for dpkg to run there.
    fn bootstrap(&self, essential: &[usize]) -> Result<()> {
        let patterns = Patterns::new(&self.spec.exclude, &self.spec.include);
        let mut blobs: Vec<_> = essential.iter().map(|&at| self.name(at)).zip(self.supply(essential)?).collect();
        // base-files has the links that merge /bin into /usr/bin; everything else goes through them.
        blobs.sort_by_key(|(name, _)| *name != "base-files");
        for (name, blob) in blobs {
            bootstrap::unpack(self.store, self.root, &blob, patterns).with_context(|| format!("unpacking `{name}`"))?;
            self.report(&JobReport::Advance { count: 1, detail: name.to_owned() });
        }
        for file in ["/var/lib/dpkg/status", "/var/lib/dpkg/available"] {
            let path: GuestPath = file.parse()?;
            self.root.make_parents(&path)?;
            self.root.write(&path, Attributes::root(0o644), &b""[..])?;
        }
        Ok(())
    }

    /// Puts in place what must be there before packages are installed.
    fn furnish(&self) -> Result<()> {
        let put = |path: &GuestPath, mode: u32, bytes: &[u8]| -> Result<()> {
            self.root.make_parents(path)?;
            self.root.write(path, Attributes::root(mode), bytes)
        };
        put(&clean::POLICY.parse()?, 0o755, b"#!/bin/sh\nexit 101\n")?;
        let settings = Patterns::new(&self.spec.exclude, &self.spec.include).settings();
        if !settings.is_empty() {
            put(&DPKG_SETTINGS.parse()?, 0o644, settings.as_bytes())?;
        }
        self.spec.skeleton.iter().try_for_each(|file| put(&file.path, file.mode, &file.bytes))
    }

    fn name(&self, at: usize) -> &str {
        field(&self.spec.packages[at], "Package")
    }

    fn paths(&self, packages: &[usize]) -> Vec<String> {
        packages.iter().map(|&at| format!("{MATERIAL}/{}", file_name(at))).collect()
    }

    fn names(&self, packages: &[usize]) -> Vec<String> {
        packages.iter().map(|&at| instance(&self.spec.packages[at])).collect()
    }

    /// Makes the initramfs of every kernel that has none.
    fn make_initramfs(&self) -> Result<()> {
        let update = "/usr/sbin/update-initramfs";
        let kernels: Vec<String> = self
            .root
            .list(&"/boot".parse()?)?
            .into_iter()
            .filter_map(|name| name.strip_prefix("vmlinuz-").map(str::to_owned))
            .collect();
        if kernels.is_empty() || !self.root.exists(&update.parse()?)? {
            return Ok(());
        }
        self.begin(StepName::Initramfs, kernels.len());
        for kernel in &kernels {
            let action = if self.root.exists(&format!("/boot/initrd.img-{kernel}").parse()?)? { "-u" } else { "-c" };
            Dpkg::new(self.sandbox_root, &|_| {})
                .program(&[update, action, "-k", kernel])
                .with_context(|| format!("making the initramfs of Linux {kernel}"))?;
            // The kernel's package could not link to an initramfs that was not there.
            let link = "/usr/bin/linux-update-symlinks";
            if self.root.exists(&link.parse()?)? {
                Dpkg::new(self.sandbox_root, &|_| {})
                    .program(&["env", "--unset=INITRD", link, "install", kernel, &format!("/boot/vmlinuz-{kernel}")])
                    .with_context(|| format!("linking to Linux {kernel}"))?;
            }
            self.report(&JobReport::Advance { count: 1, detail: kernel.clone() });
        }
        self.end(kernels.join(", "));
        Ok(())
    }

    fn run_programs(&self) -> Result<()> {
        for program in &self.spec.programs {
            let words: Vec<&str> = program.iter().map(String::as_str).collect();
            Dpkg::new(self.sandbox_root, &|_| {})
                .program(&words)
                .with_context(|| format!("running {}", program.join(" ")))?;
        }
        Ok(())
    }

    fn capture(&self, before: &Before, clamp: Clamp) -> Result<StoredLayer> {
        self.begin(StepName::Capture, 0);
        clean::clean(self.root).context("cleaning the root")?;
        let (layer, tree) = capture::capture(self.store, self.root, before, clamp).context("capturing the root")?;
        clean::check(&tree)?;
        self.end(format!("{} paths, {}", tree.entries.len(), progress::size(layer.size)));
        Ok(layer)
    }
}

/// A package as dpkg names it.
fn instance(package: &Package) -> String {
    let (name, architecture) = (field(package, "Package"), field(package, "Architecture"));
    match field(package, "Multi-Arch") {
        "same" => format!("{name}:{architecture}"),
        _ => name.to_owned(),
    }
}

fn with<'a>(options: &[&'a str], operands: &'a [String]) -> Vec<&'a str> {
    options.iter().copied().chain(operands.iter().map(String::as_str)).collect()
}
