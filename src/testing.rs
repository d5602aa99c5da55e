//! What tests need of the machine that they run on.
//!
//! Many tests compare with other programs, or need root or a container engine. A test whose need is not met returns, and
//! libtest counts it as passed; so [`require`] says on standard error which test did not run and why, and counts. With
//! `PGHA_TEST_REQUIRE` in the environment such a test fails: `all`, or `all` with exceptions, such as
//! `all,-docker,-kvm`.

use std::{
    env,
    fmt::Display,
    io::{self, Write as _},
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

/// Whether a test may go on, which needs `name`: a program, or a word for something else. `why` says what is missing.
///
/// # Panics
/// When the need is not met and the environment requires it.
pub fn require(name: &str, is_met: bool, why: impl Display) -> bool {
    static SKIPPED: AtomicUsize = AtomicUsize::new(0);
    if is_met {
        return true;
    }
    // libtest names a thread after its test.
    let test = thread::current().name().filter(|name| *name != "main").unwrap_or("this test").to_owned();
    let required = env::var("PGHA_TEST_REQUIRE").unwrap_or_default();
    assert!(!is_required(name, &required), "{test} cannot run: {why} (PGHA_TEST_REQUIRE is `{required}`)");
    let number = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
    // libtest hides what passing tests print; this stream it does not see.
    let _ = writeln!(io::stderr(), "skipped {number}: {test}: {why}");
    false
}

/// Whether the words of `PGHA_TEST_REQUIRE` require `name`.
fn is_required(name: &str, words: &str) -> bool {
    let has = |wanted: &str| words.split([',', ' ']).any(|word| word == wanted);
    (has("all") || has(name)) && !has(&format!("-{name}"))
}

/// Requires `program`, which is looked for in PATH and in the folders of system programs.
pub fn require_program(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(Into::into));
    let is_there = folders.map(|folder| folder.join(program)).any(|file| is_executable(&file));
    require(program, is_there, format_args!("{program} is not installed"))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

/// Requires that the test runs as root.
pub fn require_root() -> bool {
    require("root", rustix::process::geteuid().is_root(), "only root can do this")
}

/// Requires that the test does not run as root.
#[cfg(feature = "builder")]
pub fn require_ordinary_user() -> bool {
    require("user", !rustix::process::geteuid().is_root(), "root may do everything")
}

#[cfg(test)]
mod tests {

    #[test]
    fn all_has_exceptions() {
        for (words, expected) in [
            ("", false),
            ("all", true),
            ("all,-docker", false),
            ("all -kvm", true),
            ("docker", true),
            ("kvm,root", false),
        ] {
            assert_eq!(super::is_required("docker", words), expected, "{words}");
        }
    }

    #[test]
    fn programs_are_found() {
        assert!(super::require_program("sh"));
    }
}
