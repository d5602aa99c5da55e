//! What runs the guest's instructions: the processor itself through KVM, or QEMU's emulator.
//!
//! That `/dev/kvm` can be opened says little: inside a virtual machine, KVM may be there and fail at the first
//! instruction, or execute every single one in software, a thousand times slower than it should. So a small guest is
//! run. It goes the way of every kernel, from real mode through protected mode to long mode with paging, counts there,
//! and leaves through a debug port. Within two seconds, a processor has long done it.

use super::Qemu;
use crate::exec::{ExecError, Run};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::{fs::File, io::Write as _, path::Path, time::Duration};

/// How long the guest may take: a processor needs 0.1 s, QEMU's start included.
const PATIENCE: Duration = Duration::from_secs(2);
/// What it writes to the debug port; QEMU then ends with the status 2 · n + 1 (QEMU, hw/misc/debugexit.c).
const PASSED: i32 = 2 * 0x2a + 1;
/// A ROM's size; it ends at 4 GiB, and 16 bytes before that the processor begins.
const ROM: usize = 64 << 10;
const RESET: usize = ROM - 16;
/// How much longer everything takes under the emulator.
const SLOWER: u32 = 8;

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accel {
    /// The host's processor.
    Kvm,
    /// QEMU's emulator, with a thread for each of the guest's processors.
    Tcg,
}

/// What [`Accel::probe`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// What there is.
    pub accel: Accel,
    /// Why not KVM, to be shown as a warning.
    pub warning: Option<String>,
}

impl Accel {
    /// Finds what this host can run guests with.
    ///
    /// # Errors
    /// A wrong request when there is no KVM and QEMU is too old to do without; when the probe cannot be written.
    pub fn probe(qemu: &Qemu) -> Result<Probed> {
        let Some(why) = kvm_fault(qemu)? else { return Ok(Probed { accel: Accel::Kvm, warning: None }) };
        qemu.require_emulator()?;
        let warning = format!("no hardware acceleration: {why}; machines are emulated, and everything takes longer");
        Ok(Probed { accel: Accel::Tcg, warning: Some(warning) })
    }

    /// How long what takes `time` with KVM may take with this.
    pub fn patience(self, time: Duration) -> Duration {
        match self {
            Accel::Kvm => time,
            Accel::Tcg => time * SLOWER,
        }
    }

    /// QEMU's arguments for it.
    pub(super) fn arguments(self) -> [&'static str; 4] {
        match self {
            Accel::Kvm => ["-accel", "kvm", "-cpu", "host"],
            // Five levels of page tables cost the emulator time and gain nothing; nor does a guest's own virtualization.
            Accel::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max,la57=off,svm=off"],
        }
    }
}

/// Why KVM cannot be used, if so.
fn kvm_fault(qemu: &Qemu) -> Result<Option<String>> {
    let device = Path::new("/dev/kvm");
    if !device.exists() {
        return Ok(Some("there is no /dev/kvm".to_owned()));
    }
    if let Err(error) = File::options().read(true).write(true).open(device) {
        let group =
            if error.kind() == std::io::ErrorKind::PermissionDenied { " (the group kvm may use it)" } else { "" };
        return Ok(Some(format!("opening /dev/kvm: {error}{group}")));
    }
    let problem = run_guest(qemu, Accel::Kvm, PATIENCE)?;
    Ok(problem.map(|problem| format!("/dev/kvm is there, but {problem}")))
}

/// Runs the small guest; how that went wrong, if it did.
fn run_guest(qemu: &Qemu, accel: Accel, limit: Duration) -> Result<Option<String>> {
    let mut rom = tempfile::NamedTempFile::new().context("writing a guest to try KVM with")?;
    rom.write_all(&guest()).context("writing a guest to try KVM with")?;
    let ran = Run::new(&qemu.program)
        .args(["-machine", "q35"])
        .args(accel.arguments())
        .args(["-m", "16", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1"])
        .arg("-bios")
        .arg(rom.path())
        .limit(limit)
        .capture();
    Ok(match ran {
        Err(ExecError::Failed { status, .. }) if status.code() == Some(PASSED) => None,
        Err(ExecError::Failed { tail, .. }) => {
            let word = tail.lines().find(|line| !line.contains(" warning: ")).unwrap_or("QEMU failed");
            Some(format!("it does not run a guest ({})", word.trim_start_matches("qemu-system-x86_64: ")))
        }
        Err(ExecError::TimedOut { .. }) => Some("it does not run a guest at a processor's speed".to_owned()),
        Err(ExecError::Start { source, .. }) => return Err(source).context("starting QEMU"),
        Ok(_) => Some("its guest ended before it was done".to_owned()),
    })
}

/// The ROM with the guest.
fn guest() -> Vec<u8> {
    let mut rom = GUEST.concat();
    rom.resize(ROM, 0);
    // jmp to the ROM's begin
    let distance = (RESET + 3).wrapping_neg() as u16;
    rom[RESET] = 0xe9;
    rom[RESET + 1..RESET + 3].copy_from_slice(&distance.to_le_bytes());
    rom
}

/// The guest, at the physical address 0xffff0000 (Intel, Software Developer's Manual, volume 3, 10.8.5 and 10.9).
const GUEST: &[&[u8]] = &[
    // Real mode.
    &[0xfa],                                           // cli
    &[0x2e, 0x66, 0x0f, 0x01, 0x16, 0xc8, 0x00],       // lgdtl %cs:0xc8
    &[0x0f, 0x20, 0xc0],                               // mov %cr0, %eax
    &[0x0c, 0x01],                                     // or $1, %al: protected mode
    &[0x0f, 0x22, 0xc0],                               // mov %eax, %cr0
    &[0x66, 0xea, 0x18, 0x00, 0xff, 0xff, 0x08, 0x00], // ljmpl $8, $0xffff0018
    // Protected mode, 0x18.
    &[0x66, 0xb8, 0x10, 0x00], // mov $0x10, %ax
    &[0x8e, 0xd8],             // mov %ax, %ds
    &[0x8e, 0xc0],             // mov %ax, %es
    &[0x8e, 0xd0],             // mov %ax, %ss
    &[0xbc, 0x00, 0x80, 0x00, 0x00],
    // mov $0x8000, %esp; then page tables from 0x1000 on, cleared:
    &[0x31, 0xc0],                                                 // xor %eax, %eax
    &[0xbf, 0x00, 0x10, 0x00, 0x00],                               // mov $0x1000, %edi
    &[0xb9, 0x00, 0x14, 0x00, 0x00],                               // mov $0x1400, %ecx
    &[0xf3, 0xab],                                                 // rep stosl
    &[0xc7, 0x05, 0x00, 0x10, 0x00, 0x00, 0x03, 0x20, 0x00, 0x00], // movl $0x2003, 0x1000
    &[0xc7, 0x05, 0x00, 0x20, 0x00, 0x00, 0x03, 0x30, 0x00, 0x00], // movl $0x3003, 0x2000: the first GiB
    &[0xc7, 0x05, 0x18, 0x20, 0x00, 0x00, 0x03, 0x40, 0x00, 0x00], // movl $0x4003, 0x2018: the fourth
    &[0xc7, 0x05, 0x00, 0x30, 0x00, 0x00, 0x83, 0x00, 0x00, 0x00], // movl $0x83, 0x3000: its first 2 MiB
    &[0xc7, 0x05, 0xf8, 0x4f, 0x00, 0x00, 0x83, 0x00, 0xe0, 0xff], // movl $0xffe00083, 0x4ff8: its last
    &[0xb8, 0x00, 0x10, 0x00, 0x00],                               // mov $0x1000, %eax
    &[0x0f, 0x22, 0xd8],                                           // mov %eax, %cr3
    &[0x0f, 0x20, 0xe0],                                           // mov %cr4, %eax
    &[0x83, 0xc8, 0x20],                                           // or $0x20, %eax: PAE
    &[0x0f, 0x22, 0xe0],                                           // mov %eax, %cr4
    &[0xb9, 0x80, 0x00, 0x00, 0xc0],                               // mov $0xc0000080, %ecx: EFER
    &[0x0f, 0x32],                                                 // rdmsr
    &[0x0d, 0x00, 0x01, 0x00, 0x00],                               // or $0x100, %eax: LME
    &[0x0f, 0x30],                                                 // wrmsr
    &[0x0f, 0x20, 0xc0],                                           // mov %cr0, %eax
    &[0x0d, 0x00, 0x00, 0x00, 0x80],                               // or $0x80000000, %eax: paging
    &[0x0f, 0x22, 0xc0],                                           // mov %eax, %cr0
    &[0xea, 0x98, 0x00, 0xff, 0xff, 0x18, 0x00],                   // ljmp $0x18, $0xffff0098
    // Long mode, 0x98.
    &[0xb9, 0x80, 0xf0, 0xfa, 0x02], // mov $50000000, %ecx
    &[0xff, 0xc9],                   // dec %ecx
    &[0x75, 0xfc],                   // jnz back
    &[0xb0, 0x2a],                   // mov $0x2a, %al
    &[0xe6, 0xf4],                   // out %al, $0xf4
    &[0xf4],                         // hlt
    &[0xeb, 0xfd],                   // jmp back
    // 0xa8: the descriptors of nothing, code, data, and 64-bit code; 0xc8: where they are.
    &[0; 8],
    &[0xff, 0xff, 0x00, 0x00, 0x00, 0x9b, 0xcf, 0x00],
    &[0xff, 0xff, 0x00, 0x00, 0x00, 0x93, 0xcf, 0x00],
    &[0xff, 0xff, 0x00, 0x00, 0x00, 0x9b, 0xaf, 0x00],
    &[0x1f, 0x00, 0xa8, 0x00, 0xff, 0xff],
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_small_guest_runs_to_its_end() {
        if !crate::testing::require_program("qemu-system-x86_64") {
            return;
        }
        let qemu = Qemu::find().unwrap();
        assert_eq!(GUEST.concat().len(), 0xce);
        // The emulator shows that the guest is right; whether KVM runs it depends on the host.
        assert_eq!(run_guest(&qemu, Accel::Tcg, Duration::from_secs(60)).unwrap(), None);
        let probed = Accel::probe(&qemu).unwrap();
        assert_eq!(probed.warning.is_none(), probed.accel == Accel::Kvm, "{probed:?}");
        println!("{probed:?}");
    }
}
