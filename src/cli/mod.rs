//! The command line of `pgha-image`: one file per verb.

use crate::{base, sandbox};
use std::process::ExitCode;

/// Runs the program.
pub fn main() -> ExitCode {
    if let Some(code) = sandbox::entry(&[base::JOB]) {
        return code;
    }
    ExitCode::SUCCESS
}
