//! `pgha-image seed`.

use super::{print, project::ProjectArgs, recovery};
use crate::{
    document::Document,
    error::UserError,
    files::{NewFile, read_text},
    model::scope::Machine,
    progress::{Progress, Style},
    seed::{
        Addressing, Extras, Seeds,
        compose::{Compose, ControlGroups, DEFAULT_IMAGE},
        preview, with_secret,
    },
};
use anyhow::{Context as _, Result};
use std::{
    fmt::Write as _,
    io::Write as _,
    net::IpAddr,
    path::{Path, PathBuf},
};

/// Write the seeds that cloud-init reads on the nodes of a cluster.
///
/// SPEC is the cluster's document. If it has no secret, one is generated and kept in cluster.yaml in the output folder,
/// so that a second run gives the same seeds. Each node's folder has the files of cloud-init's data source NoCloud.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pgha-image seed cluster.yaml -o seeds
  pgha-image seed cluster.yaml --check
  pgha-image seed cluster.yaml --dry-run --node pg-1
  pgha-image seed cluster.yaml -o seeds --compose && docker compose -f seeds/compose.yaml up --detach")]
pub struct Args {
    /// The cluster's document.
    spec: PathBuf,
    /// The folder for the seeds.
    #[arg(short, long, value_name = "DIR", default_value = "seeds")]
    output: PathBuf,
    /// Check the document and print the recovery times that follow from it; write nothing.
    #[arg(long, conflicts_with_all = ["dry_run", "compose"])]
    check: bool,
    /// Print every file that each node would get, with secrets hidden; write nothing.
    #[arg(long, conflicts_with = "compose")]
    dry_run: bool,
    /// With --dry-run: print the files of this node only.
    #[arg(long, value_name = "NAME", requires = "dry_run")]
    node: Option<String>,
    /// With --dry-run: the recipe whose templates are rendered.
    #[arg(long, value_name = "RECIPE", default_value = "ha-postgres")]
    recipe: String,
    /// Also write a Compose file that starts the nodes as containers.
    #[arg(long)]
    compose: bool,
    /// With --compose: the image.
    #[arg(long, value_name = "NAME", default_value = DEFAULT_IMAGE)]
    image: String,
    /// Configure each node's address in its seed, with a network prefix of this length [default: DHCP].
    #[arg(long = "static", value_name = "PREFIX", conflicts_with = "compose")]
    static_prefix: Option<u8>,
    /// With --static: the router to other networks.
    #[arg(long, value_name = "ADDRESS", requires = "static_prefix")]
    gateway: Option<IpAddr>,
    /// With --static: a name server.
    #[arg(long = "nameserver", value_name = "ADDRESS", requires = "static_prefix")]
    nameservers: Vec<IpAddr>,
    /// A file with public SSH keys that may log in.
    #[arg(long = "ssh-keys", value_name = "FILE")]
    ssh_keys: Option<PathBuf>,
    #[command(flatten)]
    project: ProjectArgs,
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        let progress = Progress::new(Style::Plain);
        let name = self.spec.display().to_string();
        let document = Document::new(&name, read_text(&self.spec)?);
        let kept = self.output.join("cluster.yaml");
        let earlier = match kept.is_file() {
            true => Some(Document::new(kept.display().to_string(), read_text(&kept)?)),
            false => None,
        };
        let (document, new) = with_secret(document, earlier.as_ref())?;
        let seeds = Seeds::new(document, self.extras()?)?;
        for warning in &seeds.warnings {
            progress.warn(warning);
        }
        if self.check {
            return print(&recovery::text(&seeds.spec));
        }
        if self.dry_run {
            return self.preview(&seeds);
        }
        let folders = seeds.write(&self.output)?;
        let mut paths = String::new();
        for folder in &folders {
            let _ = writeln!(paths, "{}", folder.display());
        }
        if self.compose {
            let path = self.output.join("compose.yaml");
            self.write_compose(&seeds, &path)?;
            let _ = writeln!(paths, "{}", path.display());
        }
        progress.note(&self.guide(new));
        print(&paths)
    }

    fn extras(&self) -> Result<Extras> {
        let mut ssh_keys = Vec::new();
        if let Some(path) = &self.ssh_keys {
            let text = read_text(path)?;
            let keys = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            ssh_keys.extend(keys.map(ToOwned::to_owned));
            if text.contains("PRIVATE KEY") {
                return Err(UserError::usage(format!("{} is a private key", path.display()))
                    .hint("name the file with the public key, which usually has the same name with .pub")
                    .into());
            }
        }
        let addressing = match (self.compose, self.static_prefix) {
            (true, _) => Addressing::Preset,
            (_, Some(prefix)) => {
                Addressing::Static { prefix, gateway: self.gateway, nameservers: self.nameservers.clone() }
            }
            _ => Addressing::Dynamic,
        };
        Ok(Extras { ssh_keys, addressing })
    }

    /// The files that each node would write.
    fn preview(&self, seeds: &Seeds) -> Result<()> {
        let plan = self.project.draft(&self.recipe)?.plan().clone();
        let members = &seeds.spec.members;
        if let Some(name) = &self.node
            && !members.iter().any(|member| member.name == *name)
        {
            let known: Vec<_> = members.iter().map(|member| member.name.as_str()).collect();
            return Err(UserError::usage(format!("the document has no member `{name}`"))
                .hint(format!("its members are {}", known.join(", ")))
                .into());
        }
        let mut text = String::new();
        for (own, member) in members.iter().enumerate() {
            if self.node.as_ref().is_some_and(|name| *name != member.name) {
                continue;
            }
            for (name, content) in &seeds.seed(own).files {
                let content = content.replace(seeds.spec.secret.expose(), "***");
                let _ = writeln!(text, "=== {} seed: {name}\n{content}", member.name);
            }
            for file in preview::files(seeds, own, &plan, &Machine::sample())? {
                let _ =
                    writeln!(text, "=== {} {} {} {:04o}\n{}", member.name, file.path, file.owner, file.mode, file.text);
            }
        }
        print(&text)
    }

    fn write_compose(&self, seeds: &Seeds, path: &Path) -> Result<()> {
        let prefix = match (&seeds.spec.vip, seeds.spec.members[0].address.is_ipv4()) {
            (Some(vip), _) => vip.address.prefix,
            (None, true) => 24,
            (None, false) => 64,
        };
        let groups = ControlGroups::of_this_host();
        let text = Compose { image: self.image.clone(), prefix, groups }.text(seeds)?;
        let mut file = NewFile::beside(path)?;
        file.write_all(text.as_bytes()).with_context(|| format!("writing {}", path.display()))?;
        file.publish(path)
    }

    /// What to do with the seeds.
    fn guide(&self, new: bool) -> String {
        let folder = self.output.display();
        let mut text = String::new();
        if new {
            let _ = writeln!(
                text,
                "A new secret is in {folder}/cluster.yaml: keep that file, every password follows from it."
            );
        }
        let _ = write!(
            text,
            "Each folder is one node's seed, for its owner's eyes alone. Give it to the node in one of these ways:\n\
             \x20 VM, local       a small volume labelled CIDATA: xorriso -as mkisofs -V CIDATA -o seed.iso {folder}/NODE\n\
             \x20 VM, over HTTP   SMBIOS serial ds=nocloud;s=http://HOST/NODE/\n\
             \x20 cloud           user-data alone, the same for every node; a node finds itself by its address\n\
             \x20 container       mount the folder at /var/lib/cloud/seed/nocloud"
        );
        if self.compose {
            let _ = write!(text, "\nOr all at once: docker compose -f {folder}/compose.yaml up --detach");
        }
        text
    }
}
