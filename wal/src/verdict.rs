//! The one decision of recovery: what an invalid record, or an invalid segment header, means.
//!
//! At a position `P` nothing valid was found. Four facts decide:
//!
//! - **Place**: is it a *record* that is invalid (`P` is where the last valid record ended), or a segment's
//!   *header*?
//! - **After**: what valid comes after it: *nothing*, a *record* in the same segment, or only a later
//!   *segment*?
//! - **Promised**: does anything valid (a segment header, a mark, a later record) claim that the log was
//!   durable beyond `P`?
//! - **Covered**: how much of it does the caller have elsewhere (`floor`: everything below it)? *Nothing*
//!   (`floor <= P`), a *part*,
//!   all that was *promised* (`floor >= durable`), or the whole *hole* (`floor >=` where reading can go on, or
//!   the log goes on from below the segment whose header it is, which then has no record).
//!
//! | place | after | promised | covered | verdict |
//! |---|---|---|---|---|
//! | record | nothing | no | any | the log **ends** here; what was torn is cut off |
//! | record | nothing | yes | nothing, part | **corrupt** |
//! | record | nothing | yes | promised, hole | the log ends here, **damage** reported: what was promised is elsewhere |
//! | record | record | no | any | the log **ends** here: unsynced writes reach the medium in any order, and none follows a hole |
//! | record | record | yes | nothing, part | **corrupt** |
//! | record | record | yes | promised | the log ends here, **damage** reported |
//! | record | record | yes | hole | **skip** to that record, damage reported |
//! | record | segment | no | any | **corrupt**: cannot be, since a segment's header claims all before it |
//! | record | segment | yes | nothing, part | **corrupt** |
//! | record | segment | yes | promised, hole | **skip** to that segment, damage reported |
//! | header | any | any | nothing, part, promised | **corrupt**: a header is durable before its name is, so none is ever torn |
//! | header | any | any | hole | **skip** the segment, damage reported |

/// What is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Record,
    Header,
}

/// What valid comes after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    Nothing,
    Record,
    Segment,
}

/// How much of what is missing the caller has elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Covered {
    Nothing,
    Part,
    Promised,
    Hole,
}

/// All that the decision depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) place: Place,
    pub(crate) after: After,
    pub(crate) promised: bool,
    pub(crate) covered: Covered,
}

/// What it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The log ends here; what follows was never promised.
    End,
    /// The log ends here; what was promised and is gone is elsewhere.
    EndDamaged,
    /// Damaged; all that is missing is elsewhere. Go on after it.
    Skip,
    /// Something is lost.
    Corrupt,
}

/// The table above.
pub(crate) fn judge(facts: Facts) -> Verdict {
    use Covered::{Hole, Nothing, Part, Promised};
    let Facts { place, after, promised, covered } = facts;
    match (place, after, promised, covered) {
        (Place::Header, _, _, Hole) => Verdict::Skip,
        (Place::Header, _, _, Nothing | Part | Promised) => Verdict::Corrupt,
        (Place::Record, After::Nothing | After::Record, false, _) => Verdict::End,
        (Place::Record, After::Segment, false, _) => Verdict::Corrupt,
        (Place::Record, _, true, Nothing | Part) => Verdict::Corrupt,
        (Place::Record, After::Nothing, true, Promised | Hole) => Verdict::EndDamaged,
        (Place::Record, After::Record, true, Promised) => Verdict::EndDamaged,
        (Place::Record, After::Record, true, Hole) => Verdict::Skip,
        (Place::Record, After::Segment, true, Promised | Hole) => Verdict::Skip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of the table in the module head: place, after, promised, covered, verdict.
    fn table() -> Vec<[&'static str; 5]> {
        include_str!("verdict.rs")
            .lines()
            .filter_map(|line| line.strip_prefix("//! | "))
            .filter(|line| line.starts_with("record") || line.starts_with("header"))
            .map(|line| {
                let cells: Vec<&str> = line.trim_end_matches(" |").split(" | ").collect();
                cells.try_into().unwrap()
            })
            .collect()
    }

    fn says(cell: &str, value: &str) -> bool {
        cell == "any" || cell.split(", ").any(|word| word == value)
    }

    fn line_for(facts: Facts) -> Vec<[&'static str; 5]> {
        let words = [
            format!("{:?}", facts.place).to_lowercase(),
            format!("{:?}", facts.after).to_lowercase(),
            if facts.promised { "yes".to_owned() } else { "no".to_owned() },
            format!("{:?}", facts.covered).to_lowercase(),
        ];
        table()
            .into_iter()
            .filter(|line| words.iter().zip(line).all(|(word, cell)| says(cell, word)))
            .collect()
    }

    fn verdict_of(cell: &str) -> Verdict {
        match cell {
            _ if cell.contains("**ends**") => Verdict::End,
            _ if cell.contains("**damage**") => Verdict::EndDamaged,
            _ if cell.contains("**skip**") => Verdict::Skip,
            _ if cell.contains("**corrupt**") => Verdict::Corrupt,
            _ => panic!("no verdict in {cell}"),
        }
    }

    #[test]
    fn every_input_has_one_line_in_the_documented_table_and_the_function_agrees() {
        let mut walked = 0;
        for place in [Place::Record, Place::Header] {
            for after in [After::Nothing, After::Record, After::Segment] {
                for promised in [false, true] {
                    for covered in [Covered::Nothing, Covered::Part, Covered::Promised, Covered::Hole] {
                        let facts = Facts { place, after, promised, covered };
                        let lines = line_for(facts);
                        assert_eq!(lines.len(), 1, "{facts:?}: {lines:?}");
                        assert_eq!(judge(facts), verdict_of(lines[0][4]), "{facts:?}");
                        walked += 1;
                    }
                }
            }
        }
        assert_eq!(walked, 48);
    }
}
