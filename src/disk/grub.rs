//! GRUB: its parts on the disk, and what it reads.
//!
//! On a BIOS, the firmware loads `boot.img` from the first sector, which loads the first sector of the core image from
//! the BIOS boot partition, which loads the rest (GRUB manual, "Images"; `grub-bios-setup` does the same to a device).
//! On UEFI, the firmware starts shim, which starts the signed GRUB beside it, which reads `EFI/debian/grub.cfg`. Both
//! go on with `/boot/grub/grub.cfg` of the root file system.

use super::{Identity, bytes::Fields as _, gpt::SECTOR, map::Data};
use crate::{error::UserError, model::Arch, rootfs::Tree};
use anyhow::{Result, ensure};
use std::collections::BTreeMap;

/// Where in the guest `boot.img` and the modules of a BIOS machine's GRUB lie (package `grub-pc-bin`).
pub const BIOS_MODULES: &str = "/usr/lib/grub/i386-pc";

/// Where in the guest a BIOS machine's GRUB is put together.
pub const BIOS_FOLDER: &str = "/boot/grub/i386-pc";

/// The core image there, as `grub-install` leaves it.
pub const BIOS_CORE: &str = "/boot/grub/i386-pc/core.img";

/// What is linked into the core image: enough for the menu here, and for what `update-grub` writes, so that no module
/// need be copied to `/boot/grub`.
pub const CORE_MODULES: &[&str] = &[
    "biosdisk",
    "part_gpt",
    "part_msdos",
    "ext2",
    "fat",
    "normal",
    "configfile",
    "linux",
    "search",
    "search_fs_uuid",
    "search_fs_file",
    "search_label",
    "serial",
    "terminal",
    "gfxterm",
    "all_video",
    "font",
    "gettext",
    "gzio",
    "xzio",
    "loadenv",
    "test",
    "true",
    "regexp",
    "echo",
    "cat",
    "ls",
    "probe",
    "sleep",
    "minicmd",
    "halt",
    "reboot",
];

/// The `grub-mkimage` (package `grub-common`) that makes the core image, as an argument vector to run in the guest's
/// root. What it makes depends on the GRUB of that root alone: it finds its configuration on the first partition of the
/// disk that it was loaded from.
pub fn core_image_argv(output: &str) -> Vec<String> {
    let options = [
        "grub-mkimage".to_owned(),
        format!("--directory={BIOS_MODULES}"),
        "--format=i386-pc".to_owned(),
        format!("--output={output}"),
        "--prefix=(,gpt1)/boot/grub".to_owned(),
    ];
    options.into_iter().chain(CORE_MODULES.iter().map(|module| (*module).to_owned())).collect()
}

/// GRUB's two images for a BIOS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BiosImages {
    /// `boot.img`: a sector.
    pub boot: Vec<u8>,
    /// What [`core_image_argv`] made.
    pub core: Vec<u8>,
}

impl BiosImages {
    /// Puts boot code into the master boot record and returns the core image ready for the BIOS boot partition, which
    /// begins at sector `first` and has `sectors` sectors.
    ///
    /// # Errors
    /// When the images are not what they should be, or the partition is too small.
    pub(super) fn embed(&self, mbr: &mut [u8], first: u64, sectors: u64) -> Result<Vec<u8>> {
        ensure!(
            self.boot.len() == SECTOR as usize && self.boot.ends_with(&[0x55, 0xaa]),
            "boot.img is not a boot sector"
        );
        let mut core = self.core.clone();
        core.resize(core.len().next_multiple_of(SECTOR as usize), 0);
        let count = core.len() as u64 / SECTOR;
        ensure!((2..=sectors).contains(&count), "a core image of {count} sectors does not fit into {sectors} sectors");
        // Kept of the record: a BIOS parameter block, and from 0x1b8 on the disk's signature and partitions.
        mbr[..0x03].copy_from_slice(&self.boot[..0x03]);
        mbr[0x5a..0x1b8].copy_from_slice(&self.boot[0x5a..0x1b8]);
        // Where the core image begins; the drive is the one that the BIOS says it booted from, and no check of that.
        mbr.put(0x5c, first.to_le_bytes());
        mbr[0x64] = 0xff;
        mbr.put(0x66, [0x90, 0x90]);
        // The core's first sector ends with a list of where the rest lies and what segment it goes to.
        core.put(0x1f4, (first + 1).to_le_bytes());
        core.put(0x1fc, (count as u16 - 1).to_le_bytes());
        core.put(0x1fe, 0x0820u16.to_le_bytes());
        Ok(core)
    }
}

/// The files of the EFI system partition: Debian's signed shim, GRUB and MOK manager, and where GRUB goes on.
///
/// # Errors
/// When the tree lacks one of them.
pub fn esp_files(tree: &Tree, arch: Arch, identity: &Identity) -> Result<BTreeMap<String, Data>> {
    let (upper, lower, platform) = match arch {
        Arch::Amd64 => ("X64", "x64", "x86_64"),
        Arch::Arm64 => ("AA64", "aa64", "arm64"),
    };
    let debian = arch.debian();
    let programs = [
        (format!("BOOT{upper}.EFI"), format!("/usr/lib/shim/shim{lower}.efi.signed"), "shim-signed".to_owned()),
        (
            format!("grub{lower}.efi"),
            format!("/usr/lib/grub/{platform}-efi-signed/grub{lower}.efi.signed"),
            format!("grub-efi-{debian}-signed"),
        ),
        (format!("mm{lower}.efi"), format!("/usr/lib/shim/mm{lower}.efi.signed"), "shim-signed".to_owned()),
    ];
    let mut files = BTreeMap::new();
    for (name, path, package) in programs {
        let content = tree.content(&path).ok_or_else(|| {
            UserError::usage(format!("the image has no `{path}` to boot with"))
                .hint(format!("add the package `{package}` to the recipe"))
        })?;
        files.insert(format!("EFI/BOOT/{name}"), Data::Content(*content));
    }
    let root = identity.root;
    let stub = format!("search.fs_uuid {root} root\nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n");
    files.insert("EFI/debian/grub.cfg".to_owned(), Data::Bytes(stub.into_bytes()));
    Ok(files)
}

/// What GRUB shows and starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Menu<'a> {
    /// The machine.
    pub arch: Arch,
    /// The name of the system.
    pub title: &'a str,
    /// Further arguments of the kernel; the consoles are given already.
    pub arguments: &'a [&'a str],
    /// Seconds that the menu stays.
    pub timeout: u32,
}

impl Menu<'_> {
    /// The kernel's arguments: graphical and serial console, the serial one for the system's own messages, then
    /// [`Menu::arguments`].
    pub fn kernel_arguments(&self) -> String {
        let consoles = match self.arch {
            Arch::Amd64 => ["console=tty0", "console=ttyS0,115200"],
            Arch::Arm64 => ["console=tty0", "console=ttyAMA0,115200"],
        };
        consoles.iter().chain(self.arguments).copied().collect::<Vec<_>>().join(" ")
    }

    /// The serial port as GRUB itself drives it; on ARM the firmware's console is one already.
    fn serial(&self) -> Option<&'static str> {
        (self.arch == Arch::Amd64).then_some("serial --unit=0 --speed=115200 --word=8 --parity=no --stop=1")
    }

    /// `/boot/grub/grub.cfg`: starts the kernel that Debian's `/vmlinuz` points to, or the one before.
    pub fn config(&self, identity: &Identity) -> String {
        let root = identity.root;
        let arguments = self.kernel_arguments();
        let mut text = format!("set default=0\nset timeout={}\n", self.timeout);
        if let Some(serial) = self.serial() {
            text += &format!("{serial}\nterminal_input console serial\nterminal_output console serial\n");
        }
        text += &format!("search --no-floppy --fs-uuid --set=root {root}\n");
        for (suffix, remark) in [("", ""), (".old", ", previous kernel")] {
            text += &format!(
                "menuentry '{}{remark}' {{\n    linux /vmlinuz{suffix} root=UUID={root} ro {arguments}\n    \
                 initrd /initrd.img{suffix}\n}}\n",
                self.title
            );
        }
        text
    }

    /// A file for `/etc/default/grub.d/`, with which `update-grub` in the guest writes the same menu.
    pub fn defaults(&self) -> String {
        let mut text = format!(
            "GRUB_TIMEOUT={}\nGRUB_DISTRIBUTOR='{}'\nGRUB_CMDLINE_LINUX='{}'\nGRUB_CMDLINE_LINUX_DEFAULT=\n\
             GRUB_DISABLE_OS_PROBER=true\n",
            self.timeout,
            self.title,
            self.kernel_arguments()
        );
        if let Some(serial) = self.serial() {
            text += &format!("GRUB_TERMINAL='console serial'\nGRUB_SERIAL_COMMAND='{serial}'\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_code_leaves_partitions_and_parameters_alone() {
        let mut boot: Vec<u8> = (0..510).map(|byte| byte as u8 | 1).collect();
        boot.extend([0x55, 0xaa]);
        let images = BiosImages { boot: boot.clone(), core: vec![7; 1300] };
        let mut mbr = vec![0; 512];
        mbr[510..].copy_from_slice(&[0x55, 0xaa]);
        let core = images.embed(&mut mbr, 2048, 6144).unwrap();
        assert_eq!(mbr[..3], boot[..3]);
        assert_eq!(mbr[3..0x5a], [0; 0x57]);
        assert_eq!(mbr[0x5a..0x5c], boot[0x5a..0x5c]);
        assert_eq!(mbr[0x5c..0x64], 2048u64.to_le_bytes());
        assert_eq!(mbr[0x64..0x68], [0xff, boot[0x65], 0x90, 0x90]);
        assert_eq!(mbr[0x68..0x1b8], boot[0x68..0x1b8]);
        assert_eq!(mbr[0x1b8..510], [0; 70]);
        assert_eq!(core.len(), 3 * 512);
        assert_eq!(core[0x1f4..0x200], [0x01, 0x08, 0, 0, 0, 0, 0, 0, 2, 0, 0x20, 0x08]);
        assert_eq!(core[0x200..1300], [7; 1300 - 0x200]);
        assert_eq!(core[1300..], [0; 236]);
    }

    #[test]
    fn images_that_do_not_fit_are_refused() {
        let mut boot = vec![0; 512];
        boot[510..].copy_from_slice(&[0x55, 0xaa]);
        let images = |boot: &[u8], sectors: usize| BiosImages { boot: boot.to_vec(), core: vec![0; 512 * sectors] };
        let mut mbr = [0; 512];
        assert!(images(&boot, 10).embed(&mut mbr, 2048, 10).is_ok());
        assert!(images(&boot, 11).embed(&mut mbr, 2048, 10).is_err());
        assert!(images(&boot, 1).embed(&mut mbr, 2048, 10).is_err());
        assert!(images(&boot[..511], 10).embed(&mut mbr, 2048, 10).is_err());
    }

    #[test]
    fn the_menu_starts_debians_kernels_on_both_consoles() {
        let identity = Identity::of(&crate::model::Digest::of("plan"));
        let menu = Menu { arch: Arch::Amd64, title: "Debian GNU/Linux", arguments: &["quiet"], timeout: 1 };
        insta::assert_snapshot!(menu.config(&identity), @r"
        set default=0
        set timeout=1
        serial --unit=0 --speed=115200 --word=8 --parity=no --stop=1
        terminal_input console serial
        terminal_output console serial
        search --no-floppy --fs-uuid --set=root a3fd2ea5-50d7-87e6-a43c-c54c0e10ca5b
        menuentry 'Debian GNU/Linux' {
            linux /vmlinuz root=UUID=a3fd2ea5-50d7-87e6-a43c-c54c0e10ca5b ro console=tty0 console=ttyS0,115200 quiet
            initrd /initrd.img
        }
        menuentry 'Debian GNU/Linux, previous kernel' {
            linux /vmlinuz.old root=UUID=a3fd2ea5-50d7-87e6-a43c-c54c0e10ca5b ro console=tty0 console=ttyS0,115200 quiet
            initrd /initrd.img.old
        }
        ");
        insta::assert_snapshot!(menu.defaults(), @r"
        GRUB_TIMEOUT=1
        GRUB_DISTRIBUTOR='Debian GNU/Linux'
        GRUB_CMDLINE_LINUX='console=tty0 console=ttyS0,115200 quiet'
        GRUB_CMDLINE_LINUX_DEFAULT=
        GRUB_DISABLE_OS_PROBER=true
        GRUB_TERMINAL='console serial'
        GRUB_SERIAL_COMMAND='serial --unit=0 --speed=115200 --word=8 --parity=no --stop=1'
        ");
        let arm = Menu { arch: Arch::Arm64, ..menu };
        assert!(!arm.config(&identity).contains("serial"));
        assert_eq!(arm.kernel_arguments(), "console=tty0 console=ttyAMA0,115200 quiet");
    }

    #[test]
    fn a_missing_boot_program_names_its_package() {
        let identity = Identity::of(&crate::model::Digest::of("plan"));
        let error = esp_files(&Tree::default(), Arch::Arm64, &identity).unwrap_err();
        insta::assert_snapshot!(crate::error::report(&error), @r"
        error: the image has no `/usr/lib/shim/shimaa64.efi.signed` to boot with

        hint: add the package `shim-signed` to the recipe
        ");
    }
}
