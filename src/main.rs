//! The `s3bd` program: parses the command line and exits with what the command said.

use std::process::ExitCode;

fn main() -> ExitCode {
    s3bd::cli::main()
}
