//! What requests cost: an estimate from the counts of the meter and a published price list.

use super::metered::{CallTotals, MeterSnapshot};

/// Prices of requests, in billionths of a US dollar each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prices {
    /// PUT, COPY, POST and LIST.
    pub change_or_list: u64,
    /// GET and HEAD.
    pub read: u64,
}

/// Amazon S3 Standard, us-east-1 (<https://aws.amazon.com/s3/pricing/>): 0.005 and 0.0004 dollars a thousand; DELETE
/// is free, and so is what is transferred within the region.
pub const AMAZON_S3_STANDARD: Prices = Prices { change_or_list: 5000, read: 400 };

/// Estimate of what the requests counted so far cost, US dollars. Storage and transfer out of the region are not in it.
#[must_use]
pub fn requests_usd(meter: &MeterSnapshot, prices: Prices) -> f64 {
    // Requests that the server did not answer are not charged.
    let answered = |totals: &CallTotals| totals.calls.saturating_sub(totals.failed);
    let changes_and_lists = answered(&meter.put) + answered(&meter.list);
    let reads = answered(&meter.get) + answered(&meter.head);
    (changes_and_lists * prices.change_or_list + reads * prices.read) as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_of_commits_costs_what_the_readme_says() {
        let commits = 30 * 24 * 60 * 2;
        let calls = |calls| CallTotals { calls, ..CallTotals::default() };
        let meter =
            MeterSnapshot { put: calls(2 * commits), list: calls(commits), ..MeterSnapshot::default() };
        assert_eq!(requests_usd(&meter, AMAZON_S3_STANDARD), 1.296);
    }

    #[test]
    fn twelve_gets_cost_as_much_as_a_put_and_failures_and_deletes_nothing() {
        let failed = CallTotals { calls: 100, failed: 99, ..CallTotals::default() };
        let many = CallTotals { calls: 1000, ..CallTotals::default() };
        let meter = MeterSnapshot { get: failed, delete: many, ..MeterSnapshot::default() };
        assert_eq!(requests_usd(&meter, AMAZON_S3_STANDARD), 0.000_000_4);
        let meter = MeterSnapshot { put: failed, ..MeterSnapshot::default() };
        assert_eq!(requests_usd(&meter, AMAZON_S3_STANDARD), 0.000_005);
    }
}
