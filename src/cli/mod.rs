//! The command line: one file a command; the only place that prints.

use std::process::ExitCode;

/// Runs the program on its command line.
pub fn main() -> ExitCode {
    ExitCode::FAILURE
}
