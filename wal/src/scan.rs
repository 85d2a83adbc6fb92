//! Finding out what a log holds: where it begins and ends, what is torn, what is damaged. Changes nothing.
//!
//! # Invariants
//!
//! - `start <= end`, and all records in `[start, end)` are there and verified, unless damage says otherwise.
//! - A segment that is not the last ends where the header of the next says (`previous_end`): neither before
//!   (that is damage)
//!   nor after (what is there was cut off by an earlier open).
//! - No record after a hole is part of the log, unless everything in the hole is elsewhere.

use std::{io, sync::Arc};

use crate::{
    Corruption, Damage, Lsn, WalError,
    disk::Disk,
    format::RecordFault,
    reader::{Records, Run, Window},
    segment::{Found, Segment, load_segments},
    verdict::{After, Covered, Facts, Place, Verdict, judge},
};

/// What was found in a log.
#[derive(Debug)]
pub struct Scan {
    /// Where the log begins: what is below was trimmed (or is missing: compare with what you know to be
    /// trimmed).
    pub start: Lsn,
    /// End of the last valid record of the log; that record may be below `start`, in a segment that is gone.
    pub end: Lsn,
    /// Valid records found, those below `start` included.
    pub records: u64,
    /// Bytes of those, headers and padding included.
    pub bytes: u64,
    /// What follows the end and was never promised.
    pub torn: Option<Torn>,
    /// The damage found; of several the one by which something is lost, else the first.
    pub damage: Option<Corruption>,
    /// The highest LSN that anything valid claims to have been durable.
    pub durable: Lsn,
    /// The LSN below which, as the newest segment header says, nothing was needed from the log any more.
    pub trimmed: Lsn,
    /// End of the last valid record, or of those that are gone; lower than `start` if the log was begun anew
    /// above it.
    pub(crate) reached: Lsn,
    pub(crate) runs: Vec<Run>,
    pub(crate) found: Vec<Found>,
}

/// Invalid bytes where the log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Torn {
    /// Where the log ends.
    pub from: Lsn,
    /// Bytes from there to the end of the last thing that looks like a record.
    pub bytes_discarded: u64,
    /// What is wrong with the first.
    pub why: RecordFault,
}

impl Scan {
    /// The records at or above `from`, oldest first, up to `end`, one in memory at a time. They are read and
    /// verified again.
    #[must_use]
    pub fn records(&self, from: Lsn) -> Records {
        Records::new(&self.runs, from)
    }

    /// Valid records beyond the damage that ended the log. They are no part of it, since what is between is
    /// lost; they are here to be named.
    ///
    /// # Errors
    /// [`WalError::Io`] if a file cannot be read.
    pub fn beyond(&self) -> Result<Records, WalError> {
        let mut runs = Vec::new();
        let segments: Vec<&Arc<Segment>> = self
            .found
            .iter()
            .filter_map(|found| found.segment.as_ref().ok().map(|(segment, _)| segment))
            .collect();
        for (index, segment) in segments.iter().enumerate() {
            let header = &segment.header;
            let limit = segments.get(index + 1).map_or(header.range_end(), |next| next.header.previous_end);
            let limit = limit.min(header.range_end());
            let from = self.reached.max(header.data_start());
            if from < limit {
                let found = valid_records(segment, from, limit);
                runs.extend(found.map_err(WalError::io("read", &segment.name))?);
            }
        }
        Ok(Records::new(&runs, self.reached))
    }

    /// Ends the log where the last record below `at` ends.
    pub(crate) fn cut(&mut self, at: Lsn) {
        self.runs.retain(|run| run.from < at);
        if let Some(last) = self.runs.last_mut() {
            last.to = last.to.min(at);
        }
        let mut headers = self.found.iter().filter_map(|found| found.segment.as_ref().ok());
        let begins = headers.next().map_or(Lsn::ZERO, |(first, _)| first.header.previous_end);
        self.reached = self.runs.last().map_or(begins, |last| last.to);
        self.end = self.reached.max(self.start);
    }

    /// The damage for which [`crate::Log::open`] refuses the log, given that everything below `floor` is
    /// elsewhere, and nothing else, whatever the log calls trimmed.
    #[must_use]
    pub fn lost_above(&self, floor: Lsn) -> Option<Corruption> {
        if let Some(damage) = self.damage.as_ref().filter(|damage| damage.lost) {
            return Some(damage.clone());
        }
        if self.start <= floor {
            return None;
        }
        Some(Corruption {
            lsn: floor,
            resumes: Some(self.start),
            durable: self.durable,
            segment: self.found.first().map(|found| found.name.clone()).unwrap_or_default(),
            offset: 0,
            what: Damage::Missing,
            lost: true,
        })
    }
}

/// Finds out what the log in this folder holds. Changes nothing; damage is reported, not an error. Below what
/// the log itself calls trimmed, damage does not end it.
///
/// # Errors
/// [`WalError::Io`] if the folder or a file cannot be read.
pub fn scan(disk: &dyn Disk) -> Result<Scan, WalError> {
    scan_from(disk, None)
}

/// Like [`scan`], where everything below `floor` is elsewhere: damage below it does not end the log, and
/// damage above it does, whatever the log calls trimmed: it may have been trimmed for a state that is gone.
///
/// # Errors
/// [`WalError::Io`] if the folder or a file cannot be read.
pub fn scan_above(disk: &dyn Disk, floor: Lsn) -> Result<Scan, WalError> {
    scan_from(disk, Some(floor))
}

/// Where the log in this folder begins ([`Scan::start`]), by the headers of its segments alone.
///
/// # Errors
/// [`WalError::Io`] if the folder or a file cannot be read.
pub fn start(disk: &dyn Disk) -> Result<Lsn, WalError> {
    Ok(Walk::new(load_segments(disk)?, None).scan.start)
}

pub(crate) fn scan_from(disk: &dyn Disk, floor: Option<Lsn>) -> Result<Scan, WalError> {
    let found = load_segments(disk)?;
    let mut walk = Walk::new(found, floor);
    walk.check_headers();
    walk.walk_segments()?;
    Ok(walk.finish())
}

/// The records at or above `from`, oldest first, of the log in this folder.
///
/// # Errors
/// [`WalError::Io`] if the folder or a file cannot be read; [`WalError::Corrupt`] if the log is damaged at or
/// above `from`.
pub fn records(disk: &dyn Disk, from: Lsn) -> Result<Records, WalError> {
    let scan = scan_above(disk, from)?;
    match scan.damage {
        Some(damage) if damage.lost => Err(WalError::Corrupt(damage)),
        _ => Ok(scan.records(from)),
    }
}

/// A scan under way.
struct Walk {
    scan: Scan,
    /// Everything below is elsewhere.
    floor: Lsn,
    /// Whether a verdict ended the log before the last segment.
    ended: bool,
}

/// A place where no valid record is, though the log may go on.
struct Hole {
    at: Lsn,
    fault: RecordFault,
    /// The next valid record of the segment.
    next: Option<Lsn>,
    /// End of the last valid record of the segment, or of what claims to be a record at `at`.
    last_end: Lsn,
}

impl Walk {
    fn new(found: Vec<Found>, floor: Option<Lsn>) -> Walk {
        let mut scan = Scan {
            start: Lsn::ZERO,
            end: Lsn::ZERO,
            reached: Lsn::ZERO,
            records: 0,
            bytes: 0,
            torn: None,
            damage: None,
            durable: Lsn::ZERO,
            trimmed: Lsn::ZERO,
            runs: Vec::new(),
            found,
        };
        let mut headers = scan.found.iter().filter_map(|found| found.segment.as_ref().ok()).peekable();
        if let Some((first, _)) = headers.peek() {
            scan.start = first.header.previous_end;
            scan.reached = scan.start;
        }
        for (segment, mark) in headers {
            let header = &segment.header;
            // Not the highest: a log can be opened again over an older state than it was trimmed for.
            scan.trimmed = header.trimmed;
            scan.durable = scan.durable.max(header.durable()).max(mark.unwrap_or_default());
            if header.trimmed > header.previous_end {
                // Begun above the end of the log: what is before does not join on.
                scan.start = scan.start.max(header.trimmed);
            }
        }
        let floor = floor.unwrap_or(scan.trimmed);
        Walk { scan, floor, ended: false }
    }

    /// Reports damaged headers and marks, and those that contradict each other.
    fn check_headers(&mut self) {
        let mut reports = Vec::new();
        let mut range_end = Lsn::ZERO;
        for (index, found) in self.scan.found.iter().enumerate() {
            match &found.segment {
                Err(fault) => reports.push(self.header_damage(index, found, Damage::Header(*fault))),
                Ok(_) if found.first < range_end => {
                    reports.push((Verdict::Corrupt, damage_in(found, found.first, Damage::Overlap)));
                }
                Ok((_, None)) => reports.push((Verdict::Skip, damage_in(found, found.first, Damage::Mark))),
                Ok((_, Some(_))) => {}
            }
            range_end = range_end.max(found.range_end());
        }
        for (verdict, damage) in reports {
            self.report(damage, verdict);
        }
    }

    /// What an invalid header means, and the damage to report.
    fn header_damage(&self, index: usize, found: &Found, what: Damage) -> (Verdict, Corruption) {
        let later = self.scan.found[index + 1..].iter().find_map(|later| later.segment.as_ref().ok());
        let resumes = later.map(|(segment, _)| segment.header.previous_end);
        let hole_end = resumes.unwrap_or(found.range_end());
        // A log that goes on from below this segment has no record in it.
        let is_empty = hole_end <= found.first;
        let covered = if is_empty || self.floor >= hole_end { Covered::Hole } else { Covered::Nothing };
        let after = if later.is_some() { After::Segment } else { After::Nothing };
        let verdict = judge(Facts { place: Place::Header, after, promised: true, covered });
        (verdict, Corruption { resumes, ..damage_in(found, found.first, what) })
    }

    /// Walks the records of all segments whose headers are valid.
    fn walk_segments(&mut self) -> Result<(), WalError> {
        let segments: Vec<Arc<Segment>> = self
            .scan
            .found
            .iter()
            .filter_map(|found| found.segment.as_ref().ok())
            .map(|(segment, _)| Arc::clone(segment))
            .collect();
        for (index, segment) in segments.iter().enumerate() {
            let limit = segments.get(index + 1).map(|next| next.header.previous_end);
            self.walk_segment(segment, limit).map_err(WalError::io("read", &segment.name))?;
            if self.ended {
                break;
            }
        }
        Ok(())
    }

    /// Walks the records of one segment. `limit`: where they end, as the next segment says.
    fn walk_segment(&mut self, segment: &Arc<Segment>, limit: Option<Lsn>) -> io::Result<()> {
        let mut window = Window::new(Arc::clone(segment));
        let header = &segment.header;
        let mut at = header.data_start();
        let mut from = at;
        if limit.is_some_and(|limit| limit <= at) {
            return Ok(());
        }
        while limit != Some(at) {
            let fault = match window.record(at, limit.unwrap_or(header.range_end()))? {
                Ok(seen) => {
                    self.scan.records += 1;
                    self.scan.bytes += seen.header.end().since(at);
                    at = seen.header.end();
                    continue;
                }
                Err(fault) => fault,
            };
            self.run(segment, from, at);
            let hole = self.look_on(&mut window, segment, at, limit, fault)?;
            let Some(resumes) = self.decide(segment, limit, &hole) else { return Ok(()) };
            (at, from) = (resumes, resumes);
        }
        self.run(segment, from, at);
        self.scan.reached = at;
        Ok(())
    }

    fn run(&mut self, segment: &Arc<Segment>, from: Lsn, to: Lsn) {
        if from < to {
            self.scan.runs.push(Run { segment: Arc::clone(segment), from, to });
            self.scan.reached = to;
        }
    }

    /// Looks for what comes after an invalid record, and for what it claims.
    fn look_on(
        &mut self,
        window: &mut Window,
        segment: &Segment,
        at: Lsn,
        limit: Option<Lsn>,
        fault: RecordFault,
    ) -> io::Result<Hole> {
        let limit = limit.unwrap_or(segment.header.range_end());
        let last_end = match fault {
            RecordFault::Absent => at,
            _ => window.claimed_end(at)?.min(limit),
        };
        let mut hole = Hole { at, fault, next: None, last_end };
        let mut from = at;
        while let Some(record) = window.search(from, limit)? {
            hole.next.get_or_insert(record.lsn);
            hole.last_end = hole.last_end.max(record.end());
            self.scan.durable = self.scan.durable.max(record.durable);
            from = Lsn(record.end().0 - crate::format::RECORD_ALIGN);
        }
        Ok(hole)
    }

    /// Applies the verdict. Returns where to go on in this segment: at its limit if that is all there is to
    /// it.
    fn decide(&mut self, segment: &Segment, limit: Option<Lsn>, hole: &Hole) -> Option<Lsn> {
        let (after, resumes) = match (hole.next, limit) {
            (Some(next), _) => (After::Record, Some(next)),
            (None, Some(limit)) => (After::Segment, Some(limit)),
            (None, None) => (After::Nothing, None),
        };
        let promised = self.scan.durable > hole.at;
        let covered = covered(self.floor, hole.at, self.scan.durable, resumes);
        let verdict = judge(Facts { place: Place::Record, after, promised, covered });
        let missing = limit.is_some_and(|limit| limit > segment.header.range_end());
        let damage = Corruption {
            lsn: hole.at,
            resumes,
            durable: self.scan.durable,
            segment: segment.name.clone(),
            offset: segment.offset(hole.at),
            what: if missing && hole.next.is_none() { Damage::Missing } else { Damage::Record(hole.fault) },
            lost: false,
        };
        match verdict {
            Verdict::Skip => {
                self.report(damage, verdict);
                return resumes;
            }
            Verdict::End if hole.last_end > hole.at => {
                let bytes_discarded = hole.last_end.since(hole.at);
                self.scan.torn = Some(Torn { from: hole.at, bytes_discarded, why: hole.fault });
            }
            Verdict::End => {}
            Verdict::EndDamaged | Verdict::Corrupt => self.report(damage, verdict),
        }
        self.ended = true;
        None
    }

    /// Keeps the damage by which something is lost, else the first.
    fn report(&mut self, damage: Corruption, verdict: Verdict) {
        let lost = verdict == Verdict::Corrupt;
        let keep = self.scan.damage.as_ref().is_some_and(|known| known.lost || !lost);
        if !keep {
            self.scan.damage = Some(Corruption { lost, durable: self.scan.durable, ..damage });
        }
    }

    fn finish(mut self) -> Scan {
        self.scan.end = self.scan.reached.max(self.scan.start);
        self.scan
    }
}

/// Every valid record between two positions of a segment, whatever is between them.
fn valid_records(segment: &Arc<Segment>, from: Lsn, limit: Lsn) -> io::Result<Vec<Run>> {
    let mut window = Window::new(Arc::clone(segment));
    let mut runs = Vec::new();
    let mut at = from;
    loop {
        let end = window.record(at, limit)?.ok().map(|seen| seen.header.end());
        if let Some(end) = end {
            runs.push(Run { segment: Arc::clone(segment), from: at, to: end });
            at = end;
        } else {
            match window.search(at, limit)? {
                Some(next) => at = next.lsn,
                None => return Ok(runs),
            }
        }
    }
}

/// How much of the hole from `at` to `resumes` is below the floor.
fn covered(floor: Lsn, at: Lsn, durable: Lsn, resumes: Option<Lsn>) -> Covered {
    if floor <= at {
        Covered::Nothing
    } else if resumes.is_some_and(|resumes| floor >= resumes) {
        Covered::Hole
    } else if floor >= durable {
        Covered::Promised
    } else {
        Covered::Part
    }
}

fn damage_in(found: &Found, lsn: Lsn, what: Damage) -> Corruption {
    Corruption {
        lsn,
        resumes: None,
        durable: Lsn::ZERO,
        segment: found.name.clone(),
        offset: lsn.since(found.first),
        what,
        lost: false,
    }
}
