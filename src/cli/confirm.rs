//! Asking before something is given up.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::Context;

use super::exit::CliError;

/// Asks `question` on a terminal; elsewhere, or where the answer is not "yes", an error with this exit code.
pub(super) fn confirm(name: &str, question: &str, code: u8) -> anyhow::Result<()> {
    let refuse = |text: String| Err(CliError { code, text: format!("{name}: {text}") }.into());
    if !std::io::stdin().is_terminal() {
        return refuse(format!("{question} (say --yes); nothing was changed"));
    }
    let mut out = std::io::stderr().lock();
    write!(out, "{name}: {question} (yes/no) ").and_then(|()| out.flush()).context("cannot ask")?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).context("cannot read the answer")?;
    if answer.trim() == "yes" { Ok(()) } else { refuse("nothing was changed".to_owned()) }
}
