//! Recipes: what to build.
//!
//! A recipe is a YAML file, found by its name in a project's `recipes/` folder or given as a path. Its overlays lie in
//! `overlays/` beside that folder.
//!
//! ```yaml
//! schema: 1                          # required
//! name: ha-postgres                  # required; also names what is built
//! description: One line              # required
//! extends: debian-trixie             # a recipe whose lists come before this one's and whose values hold unless set here
//! parameters:                        # set with --set NAME=VALUE, used as {{NAME}} in packages, preseed and templates
//!   postgres_version: {type: integer, default: 17, description: PostgreSQL major version}
//! sources:                           # apt archives, by a name of your choice
//!   debian: {suite: trixie, components: [main], signed-by: [keys/debian-archive-trixie-automatic.asc]}
//!   pgdg: {uri: "https://mirror.example/postgresql", suite: trixie-pgdg, components: [main], signed-by: [keys/pgdg.asc]}
//! packages: [systemd, "postgresql-{{postgres_version}}", "haproxy (>= 3.0)"]
//! forbid: [exim4]                     # packages that must not be installed, whatever wants them
//! recommends: false                  # install recommended packages too
//! preseed: ["pkg pkg/question boolean false"]
//! paths: {exclude: [/usr/share/doc/*], include: [/usr/share/doc/*/copyright]}   # dpkg's patterns; last match wins
//! users: {postgres: {uid: 940}}      # users and groups with fixed numbers
//! groups: {postgres: {gid: 940}}
//! overlays: [node, etcd]
//! disk:                              # what VM images alone have
//!   size: 4GiB                       # the disk that is written, as small as can be if not given; the root file
//!                                    # system grows to the machine's
//!   packages: [linux-image-amd64]    # what they boot with
//!   overlays: [boot]
//!   arguments: [mitigations=auto]    # of the kernel, besides those for its consoles
//! oci: {ports: [5432, 6432], labels: {key: value}}
//! ```
//!
//! A source without `uri` is part of the Debian archive; where that is comes from `--mirror`, from
//! `PGHA_IMAGE_MIRROR`, or from the builder's own apt sources, so that no recipe depends on one mirror.

#![deny(missing_docs)]

mod load;
mod schema;

pub use load::{Disk, Recipe, Source, load};
pub use schema::{Archive, DiskFile, Oci, ParameterType, Paths, RecipeFile, Size};
