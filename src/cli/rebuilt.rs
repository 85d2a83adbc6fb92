//! What `s3bd recover --scan` found, and what it could not.

use super::{recover::LINES_MAX, say, size::show_size};
use crate::{
    format::ids::{Epoch, Generation},
    volume::{format_time, rebuild::Rebuilt},
};

/// Says what is left out; returns what the objects add up to.
pub(super) fn describe(name: &str, found: &Rebuilt) -> String {
    list(
        name,
        found.damaged.iter().map(|text| format!("cannot be read: {text}")),
        "objects that cannot be read",
    );
    let because = |verb: &str, (epoch, generation, why): &(Epoch, Generation, String)| {
        format!("{verb} epoch {epoch} of generation {generation}: {why}")
    };
    let passed = found.passed.iter().map(|passed| because("passed over: the checkpoint of", passed));
    list(name, passed, "checkpoints are passed over");
    list(name, found.left_out.iter().map(|cut| because("left out:", cut)), "epochs are left out");
    let Rebuilt { epoch, time_ms, size_bytes, used_bytes, checkpoint, cuts, snapshots, base, .. } = found;
    if let Some(as_of) = found.snapshots_epoch {
        say(format_args!(
            "{name}: snapshots are as of epoch {as_of}, {} of them: what was taken, deleted or renamed since is not known",
            snapshots.len()
        ));
        let is_gone = |at: (Generation, Epoch)| !base.lists(at);
        let gone = snapshots.iter().filter(|snapshot| is_gone((snapshot.generation, snapshot.epoch)));
        match gone.count() {
            0 => {}
            gone => say(format_args!(
                "{name}: the manifests of {gone} of these snapshots are gone: they cannot be read, only deleted"
            )),
        }
    }
    let parts = match checkpoint {
        Some(checkpoint) => format!("the checkpoint of epoch {checkpoint} and {cuts} cuts above it"),
        None => format!("{cuts} cuts, without snapshots"),
    };
    format!(
        "the objects add up to epoch {epoch} of {}: a volume of {}, {} of it used, from {parts}",
        format_time(*time_ms),
        show_size(*size_bytes),
        show_size(*used_bytes),
    )
}

fn list(name: &str, lines: impl ExactSizeIterator<Item = String>, rest: &str) {
    let more = lines.len().saturating_sub(LINES_MAX);
    lines.take(LINES_MAX).for_each(|line| say(format_args!("{name}: {line}")));
    if more > 0 {
        say(format_args!("{name}: and {more} more {rest}"));
    }
}
