//! Runs of dpkg, the root's own, inside the root.

use crate::{
    error::UserError,
    sandbox::{Ending, SandboxRoot},
};
use anyhow::Result;
use std::collections::VecDeque;

/// How many lines of what a failed program said an error repeats.
const TAIL: usize = 30;

/// Options of every run of dpkg.
///
/// It does not sync; it keeps a configuration file that was put in place before its package; and it stops at the first
/// failure, so that the last output is that of what failed.
const OPTIONS: [&str; 6] =
    ["dpkg", "--status-fd=3", "--force-unsafe-io", "--force-confold", "--force-confdef", "--abort-after=1"];

/// Runs dpkg. Status lines and output are one stream, in order. dpkg hides the descriptor of status lines from its
/// children, so it must differ from that of their output.
const PLAIN: &str = r#"exec dpkg "$@" 3>&1"#;

/// Runs dpkg while what [`DEFER_COMPILING`] puts off is done beside it, in turn. Nobody needs compiled Python to go
/// on, and compiling it is a quarter of the time that configuring takes.
const WITH_COMPILER: &str = r#"
mkfifo /run/py3compile
{
    status=0
    while read -r arguments && [ "$arguments" != end ]; do
        /usr/bin/py3compile $arguments || { echo "py3compile $arguments failed"; status=1; }
    done
    exit $status
} <>/run/py3compile &
PATH="$STAND_INS:$PATH" dpkg "$@" 3>&1
status=$?
echo end >/run/py3compile
wait $! || exit 1
exit $status
"#;

/// The variable with the folder of programs that replace others.
pub const STAND_INS: &str = "STAND_INS";

/// Stands in for py3compile(1) while packages are configured.
pub const DEFER_COMPILING: &str = "#!/bin/sh\n[ ! -x /usr/bin/py3compile ] || echo \"$*\" >/run/py3compile\n";

/// Runs programs of the root and remembers what they were at.
pub struct Dpkg<'a> {
    sandbox_root: &'a SandboxRoot,
    on_progress: &'a dyn Fn(Progress<'_>),
    tail: VecDeque<String>,
    at: Option<String>,
    errors: Vec<String>,
}

/// What dpkg reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress<'a> {
    /// It begins to do something: `configure`, and with what package.
    Begins(&'a str, &'a str),
    /// This package got into the state `unpacked` or `installed`.
    Reached(&'a str, &'a str),
}

impl<'a> Dpkg<'a> {
    /// Runs in `sandbox_root` and calls `on_progress` for each step.
    pub fn new(sandbox_root: &'a SandboxRoot, on_progress: &'a dyn Fn(Progress<'_>)) -> Dpkg<'a> {
        Dpkg { sandbox_root, on_progress, tail: VecDeque::new(), at: None, errors: Vec::new() }
    }

    /// Runs dpkg with `arguments` and the options of every run.
    pub fn run(&mut self, arguments: &[&str]) -> Result<()> {
        self.scripted(PLAIN, arguments)
    }

    /// Configures every package that is unpacked and processes every trigger.
    pub fn configure_pending(&mut self) -> Result<()> {
        self.scripted(WITH_COMPILER, &["--configure", "--pending"])
    }

    fn scripted(&mut self, script: &str, arguments: &[&str]) -> Result<()> {
        let arguments: Vec<&str> = ["/bin/sh", "-c", script].iter().chain(&OPTIONS).chain(arguments).copied().collect();
        self.named("dpkg", &arguments)
    }

    /// Runs any program of the root to its end.
    pub fn program(&mut self, arguments: &[&str]) -> Result<()> {
        self.named(arguments.first().copied().unwrap_or_default(), arguments)
    }

    fn named(&mut self, name: &str, arguments: &[&str]) -> Result<()> {
        self.tail.clear();
        self.errors.clear();
        self.at = None;
        let sandbox_root = self.sandbox_root;
        match sandbox_root.run(arguments, &mut |line| self.on_line(line))? {
            Ending::Status(0) => Ok(()),
            ending => Err(self.failure(name, ending)),
        }
    }

    /// Takes in a line: a report (dpkg(1), `--status-fd`) or something said.
    fn on_line(&mut self, line: &str) {
        let report = match line.split_once(": ") {
            Some(("processing", rest)) => {
                let (action, package) = rest.split_once(": ").unwrap_or((rest, ""));
                self.at = Some(match action {
                    "trigproc" => format!("the triggers of `{package}`"),
                    _ => format!("{action} of `{package}`"),
                });
                Some(Progress::Begins(action, package))
            }
            Some(("status", rest)) => match rest.rsplit_once(": ") {
                Some((package, state @ ("unpacked" | "installed"))) => Some(Progress::Reached(package, state)),
                _ => {
                    // `status: PACKAGE : error : REASON`
                    self.errors.extend(rest.split_once(" : error : ").map(|(at, why)| format!("{at}: {why}")));
                    return;
                }
            },
            _ => None,
        };
        match report {
            Some(report) => (self.on_progress)(report),
            None => {
                if self.tail.len() == TAIL {
                    self.tail.pop_front();
                }
                self.tail.push_back(line.trim_end().to_owned());
            }
        }
    }

    fn failure(&self, program: &str, ending: Ending) -> anyhow::Error {
        let at = self.at.as_deref().map_or(String::new(), |at| format!(" at {at}"));
        let mut message = match ending {
            Ending::OutOfTime => format!(
                "`{program}` was killed{at}: it had not ended after {} s, the longest it may run",
                self.sandbox_root.limit.as_secs_f64()
            ),
            ending => format!("`{program}` {ending}{at}"),
        };
        for error in &self.errors {
            message.push_str(&format!("\n{error}"));
        }
        if self.tail.is_empty() {
            message.push_str("; it said nothing");
        } else {
            message.push_str("; the last that was said:");
            for line in &self.tail {
                message.push_str(&format!("\n  | {line}"));
            }
        }
        UserError::runtime(message).into()
    }
}

impl std::fmt::Debug for Dpkg<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dpkg").field("at", &self.at).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::RefCell, path::PathBuf, time::Duration};

    fn sandbox_root() -> SandboxRoot {
        SandboxRoot {
            root: PathBuf::from("/nowhere"),
            binds: Vec::new(),
            environment: Vec::new(),
            limit: Duration::from_secs(5),
            processes: 10,
        }
    }

    #[test]
    fn reports_are_told_apart_from_words() {
        let sandbox_root = sandbox_root();
        let seen = RefCell::new(Vec::new());
        let on_progress = |progress: Progress<'_>| seen.borrow_mut().push(format!("{progress:?}"));
        let mut dpkg = Dpkg::new(&sandbox_root, &on_progress);
        for line in [
            "processing: install: libc6:amd64",
            "status: libc6:amd64: half-installed",
            "status: libc6:amd64: unpacked",
            "Unpacking libc6 ...",
            "processing: configure: libc6:amd64",
            "status: libc6:amd64: installed",
        ] {
            dpkg.on_line(line);
        }
        assert_eq!(
            *seen.borrow(),
            [
                r#"Begins("install", "libc6:amd64")"#,
                r#"Reached("libc6:amd64", "unpacked")"#,
                r#"Begins("configure", "libc6:amd64")"#,
                r#"Reached("libc6:amd64", "installed")"#
            ]
        );
        assert_eq!(dpkg.tail, ["Unpacking libc6 ..."]);
    }

    #[test]
    fn a_failure_names_the_package_the_reason_and_the_last_words() {
        let sandbox_root = sandbox_root();
        let mut dpkg = Dpkg::new(&sandbox_root, &|_| {});
        dpkg.on_line("processing: configure: app");
        for number in 1..=40 {
            dpkg.on_line(&format!("line {number}"));
        }
        dpkg.on_line("status: app : error : installed app package post-installation script subprocess returned error exit status 3");
        let text = dpkg.failure("dpkg", Ending::Status(1)).to_string();
        assert!(text.starts_with(
            "`dpkg` ended with status 1 at configure of `app`\napp: installed app package post-installation script \
             subprocess returned error exit status 3; the last that was said:\n  | line 11\n"
        ));
        assert!(text.ends_with("  | line 40"));
        assert_eq!(text.lines().filter(|line| line.starts_with("  | ")).count(), 30);
        dpkg.tail.clear();
        assert_eq!(
            dpkg.failure("dpkg", Ending::OutOfTime).to_string().lines().next().unwrap(),
            "`dpkg` was killed at configure of `app`: it had not ended after 5 s, the longest it may run"
        );
    }
}
