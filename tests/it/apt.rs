//! What the solver chooses is what apt chooses.
//!
//! Needs apt-get and a Debian mirror that the host's own sources name; is skipped otherwise.

use pgha_image::{
    debian::{
        index::Index,
        solve::{Request, solve},
    },
    exec::Run,
    model::Arch,
};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

const SUITE: &str = "trixie";

/// An apt of its own: no state, no configuration and no packages of the host's.
struct Apt(PathBuf);

impl Apt {
    fn run(&self) -> Run {
        Run::new("apt-get").env("LC_ALL", "C.UTF-8").env("APT_CONFIG", self.0.join("apt.conf"))
    }

    /// Downloads the indices, unless a run of the last day has.
    fn new(mirror: &str) -> Result<Apt, String> {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("apt");
        for folder in ["state/lists/partial", "cache/archives/partial", "etc"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::write(root.join("status"), "").unwrap();
        let (place, arch) = (root.display(), Arch::HOST.debian());
        // Read first of all, so that the host's own configuration is not read at all.
        let settings = format!(
            "Dir::State \"{place}/state\";\nDir::State::status \"{place}/status\";\nDir::Cache \"{place}/cache\";\n\
             Dir::Etc \"{place}/etc\";\nAPT::Sandbox::User \"\";\nAPT::Architecture \"{arch}\";\n\
             APT::Architectures {{ \"{arch}\"; }};\nAPT::Solver \"internal\";\nAcquire::Languages \"none\";\n\
             Acquire::GzipIndexes \"false\";\n"
        );
        fs::write(root.join("apt.conf"), settings).unwrap();
        let keys = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/keys");
        let mut signed_by = String::new();
        for key in fs::read_dir(&keys).unwrap().map(|entry| entry.unwrap().path()) {
            if key.extension().is_some_and(|extension| extension == "asc") {
                signed_by += &format!("{} ", key.display());
            }
        }
        let stanza = |uri: &str, suites: &str| {
            format!("Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main\nSigned-By: {signed_by}\n\n")
        };
        let security = format!("{}-security", mirror.trim_end_matches('/'));
        let sources =
            stanza(mirror, &format!("{SUITE} {SUITE}-updates")) + &stanza(&security, &format!("{SUITE}-security"));
        fs::create_dir_all(root.join("etc/sources.list.d")).unwrap();
        fs::write(root.join("etc/sources.list.d/debian.sources"), sources).unwrap();
        let apt = Apt(root);
        let fresh = apt.lists().iter().all(|list| {
            fs::metadata(list)
                .and_then(|metadata| metadata.modified())
                .is_ok_and(|time| time.elapsed().is_ok_and(|age| age < Duration::from_secs(86_400)))
        });
        if !fresh || apt.lists().len() < 3 {
            apt.run().arg("update").limit(Duration::from_secs(120)).capture().map_err(|error| error.to_string())?;
            for list in apt.lists() {
                fs::File::options()
                    .append(true)
                    .open(list)
                    .unwrap()
                    .set_modified(std::time::SystemTime::now())
                    .unwrap();
            }
        }
        if apt.lists().len() < 3 { Err(format!("the mirror has not all of {SUITE}")) } else { Ok(apt) }
    }

    /// The indices, in the order in which apt reads them.
    fn lists(&self) -> Vec<PathBuf> {
        let list = |suite: &str| {
            let end = format!("_dists_{suite}_main_binary-{}_Packages", Arch::HOST.debian());
            fs::read_dir(self.0.join("state/lists"))
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .find(|path| path.to_string_lossy().ends_with(&end))
        };
        [SUITE.to_owned(), format!("{SUITE}-updates"), format!("{SUITE}-security")]
            .iter()
            .filter_map(|suite| list(suite))
            .collect()
    }

    fn choose(&self, packages: &[String], recommends: bool) -> BTreeSet<String> {
        let said = self
            .run()
            .args([
                "--simulate",
                "install",
                if recommends { "--install-recommends" } else { "--no-install-recommends" },
            ])
            .args(packages.to_vec())
            .limit(Duration::from_secs(120))
            .text()
            .unwrap();
        said.lines()
            .filter_map(|line| line.strip_prefix("Inst "))
            .map(|line| {
                let mut words = line.split([' ', '(']).filter(|word| !word.is_empty());
                format!("{} {}", words.next().unwrap(), words.next().unwrap())
            })
            .collect()
    }
}

/// The first Debian mirror that the host's apt is set to.
fn mirror() -> Option<String> {
    let mut texts = vec![fs::read_to_string("/etc/apt/sources.list").unwrap_or_default()];
    for entry in fs::read_dir("/etc/apt/sources.list.d").ok()?.flatten() {
        texts.push(fs::read_to_string(entry.path()).unwrap_or_default());
    }
    texts
        .iter()
        .flat_map(|text| text.split_whitespace())
        .find(|word| word.starts_with("http") && word.trim_end_matches('/').ends_with("/debian"))
        .map(str::to_owned)
}

#[test]
fn the_solver_chooses_what_apt_chooses() {
    let apt = match mirror().ok_or("the host's apt names no Debian mirror".to_owned()).and_then(|uri| Apt::new(&uri)) {
        Ok(apt) => apt,
        Err(reason) => {
            crate::testing::require("apt-get", false, reason);
            return;
        }
    };
    let indices: Vec<Index> = apt
        .lists()
        .iter()
        .enumerate()
        .map(|(origin, list)| Index::parse(fs::read_to_string(list).unwrap(), Arch::HOST, origin).unwrap())
        .collect();
    let essential: Vec<String> = solve(&indices, &Request { packages: vec![], ..Request::default() })
        .unwrap()
        .iter()
        .filter(|choice| choice.reason.to_string() == "essential")
        .map(|choice| choice.package.name.clone())
        .collect();
    assert!(essential.len() > 15, "{essential:?}");
    let mut faults = Vec::new();
    for wanted in [
        "systemd systemd-sysv dbus apt",
        "linux-image-cloud-amd64 initramfs-tools grub-pc-bin grub-efi-amd64-signed shim-signed",
        "postgresql-17 patroni etcd-server etcd-client pgbouncer haproxy keepalived cloud-init netplan.io openssh-server \
         chrony",
        "apt",
        "nginx certbot python3-certbot-nginx",
        "emacs-nox git-email",
        "postfix dovecot-imapd spamassassin",
        "apache2 php mariadb-server",
        "python3-django gunicorn redis-server",
        "rsyslog logrotate cron unattended-upgrades needrestart",
        "qemu-system-x86 libvirt-daemon-system virtinst",
        "podman buildah skopeo",
        "default-jdk maven tomcat10",
        "xfce4 lightdm firefox-esr",
        "build-essential cmake gdb debhelper dh-python",
    ] {
        let names: Vec<String> = wanted.split_whitespace().map(str::to_owned).collect();
        for recommends in [false, true] {
            let request = Request { packages: names.clone(), recommends, ..Request::default() };
            let ours = solve(&indices, &request).unwrap();
            let ours: BTreeSet<String> =
                ours.iter().map(|choice| format!("{} {}", choice.package.name, choice.package.version)).collect();
            let all: Vec<String> = essential.iter().chain(&names).cloned().collect();
            let theirs = apt.choose(&all, recommends);
            eprintln!("{:4} packages for {wanted} (recommends: {recommends})", theirs.len());
            if ours != theirs {
                faults.push(format!(
                    "{wanted} (recommends: {recommends}, {} packages)\n  only ours: {:?}\n  only apt's: {:?}",
                    theirs.len(),
                    ours.difference(&theirs).collect::<Vec<_>>(),
                    theirs.difference(&ours).collect::<Vec<_>>()
                ));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
