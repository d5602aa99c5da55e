//! Overlays: one component's packages, files and service.
//!
//! ```text
//! overlays/NAME/overlay.yaml     what this module reads
//! overlays/NAME/rootfs/…         mirrors the guest's `/`
//! ```
//!
//! The suffix of a file below `rootfs` says who writes it and when:
//!
//! | suffix  | written by             | when                | installed as                             |
//! |---------|------------------------|---------------------|------------------------------------------|
//! | none    | the build              | in the image        | its own path                             |
//! | `.hbs`  | `pgha-node`            | once, at first boot | `/usr/share/pgha/templates/NAME/PATH.hbs` |
//! | `.tmpl` | confd                  | while running       | `/etc/confd/templates/PATH.tmpl`         |
//!
//! # overlay.yaml
//!
//! ```yaml
//! schema: 1                          # required
//! description: One line              # required
//! packages: [haproxy]                # Debian packages; `{{parameter}}` stands for a recipe's parameter
//! needs: [node]                      # overlays that must be in the image too
//! after: [confd]                     # overlays whose service starts before this one's
//! preseed: ["pkg pkg/question boolean false"]   # debconf answers, as debconf-set-selections(1) takes them
//! users: {postgres: {uid: 940}}      # users and groups with fixed numbers, there before packages are configured
//! groups: {postgres: {gid: 940}}
//! files:                             # what the files below rootfs/ need beyond the default (root:root, 0644 or 0755)
//!   /etc/haproxy/haproxy.cfg: {writer: confd, owner: root, group: haproxy, mode: "0640", check: [haproxy, -c, -f, "{file}"]}
//!   /usr/bin/pgha-node: {program: pgha-node}      # a program that was built beside this one
//!   /etc/pkg.conf: {before-packages: true}        # in place before any package is installed
//! directories: {/var/lib/thing: {owner: thing, mode: "0700"}}
//! links: {/etc/thing: /usr/share/thing}
//! remove: [/etc/unwanted]
//! enable: [a.service]                # units, as systemctl enable, disable and mask
//! disable: [b.service]
//! mask: [c.service]
//! service: {unit: haproxy.service, ready: {tcp: 5000, within: 30s}}   # what pgha-node starts
//! ```
//!
//! Overlays hold plain files: a symbolic link below `rootfs` is refused, since it could lead out of the folder.
//! Links in the guest are declared under `links`.

#![deny(missing_docs)]

mod load;
mod schema;

pub use load::{File, Origin, Overlay, load};
pub use schema::{Directory, FileRule, Mode, OverlayFile, Writer};
