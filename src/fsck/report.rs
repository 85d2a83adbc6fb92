//! The report of a check: findings, within a bound, and what was counted.

use serde::{Serialize, Serializer, ser::SerializeSeq};

use super::{
    finding::{Finding, Severity},
    remedy::Remedy,
};
use crate::format::ids::{Epoch, Generation};

/// Findings kept: of a bucket that is gone altogether, the rest says no more.
const FINDINGS_MAX: usize = 10_000;

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What is not as it was written, in the order of the check.
    #[serde(serialize_with = "with_words")]
    pub findings: Vec<Finding>,
    /// Findings beyond those, by severity.
    pub omitted: Omitted,
    /// The epoch that was checked; none where no manifest is usable.
    pub epoch: Option<Epoch>,
    /// The tenure that published it.
    pub generation: Option<Generation>,
    /// Size of a block, bytes; 0 where the header cannot be read.
    pub block_bytes: u32,
    /// What was counted.
    pub counts: Counts,
}

/// Findings that were counted and not kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Omitted {
    /// Errors.
    pub errors: u64,
    /// Warnings.
    pub warnings: u64,
    /// Notes.
    pub notes: u64,
}

/// What a check came upon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Key slots.
    pub key_slots: u64,
    /// Claims.
    pub claims: u64,
    /// Manifests in the bucket.
    pub manifests: u64,
    /// Pages of maps, read and verified.
    pub pages: u64,
    /// Objects that the volume has, by its own account.
    pub objects: u64,
    /// Their lengths, bytes.
    pub object_bytes: u64,
    /// Frames of data, read, verified and unpacked.
    pub frames: u64,
    /// Their lengths in the bucket, bytes.
    pub frame_bytes: u64,
    /// Blocks with data, bytes.
    pub mapped_bytes: u64,
    /// Dead objects that are deleted already, and leave the table with the next checkpoint.
    pub collected: u64,
    /// Objects in the bucket that the volume does not know.
    pub strays: u64,
    /// Their lengths, bytes.
    pub stray_bytes: u64,
}

impl Report {
    /// Takes a finding.
    pub fn add(&mut self, finding: Finding) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
            return;
        }
        let count = match finding.severity() {
            Severity::Error => &mut self.omitted.errors,
            Severity::Warning => &mut self.omitted.warnings,
            Severity::Note => &mut self.omitted.notes,
        };
        *count += 1;
    }

    /// The worst severity among the findings; none where there are none.
    #[must_use]
    pub fn worst(&self) -> Option<Severity> {
        let Omitted { errors, warnings, notes } = self.omitted;
        let omitted = [(errors, Severity::Error), (warnings, Severity::Warning), (notes, Severity::Note)];
        let omitted = omitted.into_iter().filter(|(count, _)| *count > 0).map(|(_, severity)| severity);
        self.findings.iter().map(Finding::severity).chain(omitted).max()
    }

    /// Whether nothing is damaged or missing, and nothing contradicts itself.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.worst() < Some(Severity::Error)
    }
}

#[derive(Serialize)]
struct Line<'a> {
    severity: Severity,
    text: String,
    remedy: Remedy,
    #[serde(flatten)]
    finding: &'a Finding,
}

/// Each finding with its severity and its text beside its fields.
fn with_words<S: Serializer>(findings: &[Finding], serializer: S) -> Result<S::Ok, S::Error> {
    let mut lines = serializer.serialize_seq(Some(findings.len()))?;
    for finding in findings {
        lines.serialize_element(&Line {
            severity: finding.severity(),
            text: finding.to_string(),
            remedy: finding.remedy(),
            finding,
        })?;
    }
    lines.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_beyond_the_bound_are_counted() {
        let mut report = Report::default();
        assert!(report.is_sound());
        for _ in 0..FINDINGS_MAX {
            report.add(Finding::UnknownKeys { count: 1, first: String::new() });
        }
        assert!(report.is_sound());
        report.add(Finding::HeaderReplaced);
        assert_eq!((report.findings.len(), report.omitted.errors), (FINDINGS_MAX, 1));
        assert!(!report.is_sound());
    }

    #[test]
    fn json_has_severity_text_and_fields() {
        let mut report = Report::default();
        report.add(Finding::ClaimMissing { generation: Generation(3), over: false });
        let json = serde_json::to_value(&report).unwrap();
        let finding = &json["findings"][0];
        assert_eq!(finding["severity"], "error");
        assert_eq!(finding["finding"], "claim_missing");
        assert_eq!(finding["generation"], 3);
        assert!(finding["text"].as_str().unwrap().starts_with("claims: the claim of generation 3"));
    }
}
