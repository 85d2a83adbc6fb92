//! Asking before something is changed that cannot be had back.

use std::io::{IsTerminal, Write};

use anyhow::Context;

use super::exit::CliError;

/// Asks on the terminal for `word`, before what it names goes. Where there is no terminal, an error with this exit code.
pub(super) fn confirm_by(name: &str, question: &str, word: &str, code: u8) -> anyhow::Result<bool> {
    let answer = ask(name, question, &format!("type {word} to go on"), code)?;
    Ok(answer == word)
}

/// Asks `question` on the terminal; whatever is not a yes is a no. Where there is no terminal, an error with this exit code.
pub(super) fn confirm(name: &str, question: &str, code: u8) -> anyhow::Result<bool> {
    Ok(matches!(&ask(name, question, "y/N", code)?[..], "y" | "Y" | "yes"))
}

fn ask(name: &str, question: &str, how: &str, code: u8) -> anyhow::Result<String> {
    if !std::io::stdin().is_terminal() {
        let text = format!("{name}: {question} (say --yes); nothing was changed");
        return Err(CliError { code, text }.into());
    }
    let mut err = std::io::stderr().lock();
    write!(err, "{name}: {question} [{how}] ").and_then(|()| err.flush()).context("cannot ask")?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("cannot read the answer")?;
    Ok(answer.trim().to_owned())
}
