//! Listings: pages put together, keys decoded, and order and bounds checked instead of believed.

use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::{EncodingType, Object};

use super::s3_error::Failure;
use super::{ErrorKind, Folder, Listed};

/// What is listed, and what came so far.
pub(super) struct Listing<'a> {
    prefix: &'a str,
    start_after: Option<&'a str>,
    limit: Option<usize>,
    listed: Vec<Listed>,
    token: Option<String>,
    is_sorted: bool,
    is_complete: bool,
}

/// Most keys that a server returns for one request (S3 API, `ListObjectsV2`).
const PAGE_KEYS_MAX: usize = 1000;

impl<'a> Listing<'a> {
    pub(super) fn new(prefix: &'a str, start_after: Option<&'a str>, limit: Option<usize>) -> Listing<'a> {
        let is_beyond = start_after.is_some_and(|after| after > prefix && !after.starts_with(prefix));
        let is_complete = limit == Some(0) || is_beyond;
        Listing { prefix, start_after, limit, listed: Vec::new(), token: None, is_sorted: true, is_complete }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Where the next page begins; `None` for the first.
    pub(super) fn token(&self) -> Option<String> {
        self.token.clone()
    }

    /// What to send as `start-after` with the first page. Only what lies within the prefix: Garage 2.5 answers one that
    /// sorts before the prefix with an empty listing.
    pub(super) fn start_after(&self) -> Option<String> {
        let within = self.start_after.filter(|after| !after.is_empty() && after.starts_with(self.prefix));
        within.filter(|_| self.token.is_none()).map(str::to_owned)
    }

    /// How many keys to ask for.
    pub(super) fn page_keys_max(&self) -> i32 {
        let wanted = self.limit.map_or(PAGE_KEYS_MAX, |limit| limit.saturating_sub(self.listed.len()));
        wanted.clamp(1, PAGE_KEYS_MAX) as i32
    }

    /// Takes a page.
    ///
    /// # Errors
    /// [`ErrorKind::Retry`] where the page contradicts itself; nothing of the listing may be used then.
    pub(super) fn add(&mut self, page: &ListObjectsV2Output) -> Result<(), Failure> {
        let encoded = page.encoding_type() == Some(&EncodingType::Url);
        for object in page.contents() {
            let line = read_line(object, encoded)?;
            let wanted = line.key.starts_with(self.prefix)
                && self.start_after.is_none_or(|after| line.key.as_str() > after);
            if !wanted {
                continue;
            }
            self.is_sorted &= self.listed.last().is_none_or(|last| last.key < line.key);
            self.listed.push(line);
        }
        let next = page.next_continuation_token().map(str::to_owned);
        let truncated = page.is_truncated().unwrap_or(false);
        if truncated && (next.is_none() || next == self.token) {
            return Err(Failure::new(
                ErrorKind::Retry,
                "a page of the listing names no other page to follow it",
            ));
        }
        // Of a server that does not sort, the first keys are not the smallest: all of them are needed.
        let is_enough = self.is_sorted && self.limit.is_some_and(|limit| self.listed.len() >= limit);
        self.is_complete = !truncated || is_enough;
        self.token = next;
        Ok(())
    }

    /// All lines, in byte order.
    pub(super) fn finish(mut self) -> Vec<Listed> {
        if !self.is_sorted {
            self.listed.sort_unstable_by(|a, b| a.key.cmp(&b.key));
            self.listed.dedup_by(|a, b| a.key == b.key);
        }
        self.listed.truncate(self.limit.unwrap_or(usize::MAX));
        self.listed
    }
}

/// What lies right below a prefix, page by page.
pub(super) struct FolderListing<'a> {
    lines: Listing<'a>,
    folders: Vec<String>,
}

impl<'a> FolderListing<'a> {
    pub(super) fn new(prefix: &'a str) -> FolderListing<'a> {
        FolderListing { lines: Listing::new(prefix, None, None), folders: Vec::new() }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.lines.is_complete()
    }

    /// Where the next page begins and how many lines it may have.
    pub(super) fn page(&self) -> &Listing<'a> {
        &self.lines
    }

    /// Takes a page.
    ///
    /// # Errors
    /// As [`Listing::add`] has them.
    pub(super) fn add(&mut self, page: &ListObjectsV2Output) -> Result<(), Failure> {
        let encoded = page.encoding_type() == Some(&EncodingType::Url);
        for common in page.common_prefixes() {
            let folder = read_key(common.prefix(), encoded)?;
            if folder.len() > self.lines.prefix.len() && folder.starts_with(self.lines.prefix) {
                self.folders.push(folder);
            }
        }
        self.lines.add(page)
    }

    /// Everything. Keys that a server without delimiters lists one by one are folded here.
    pub(super) fn finish(self) -> Folder {
        let mut folder = Folder::of(self.lines.prefix, self.lines.listed);
        folder.folders.extend(self.folders);
        folder.sorted()
    }
}

/// A key or prefix of a page.
fn read_key(raw: Option<&str>, encoded: bool) -> Result<String, Failure> {
    let unreadable = || Failure::new(ErrorKind::Retry, "a line of the listing has no key that can be read");
    let raw = raw.ok_or_else(unreadable)?;
    if encoded { decode(raw).ok_or_else(unreadable) } else { Ok(raw.to_owned()) }
}

fn read_line(object: &Object, encoded: bool) -> Result<Listed, Failure> {
    let key = read_key(object.key(), encoded)?;
    let bytes = object.size().and_then(|size| u64::try_from(size).ok()).unwrap_or(0);
    let modified_ms = object
        .last_modified()
        .and_then(|at| at.to_millis().ok())
        .and_then(|ms| u64::try_from(ms).ok())
        .unwrap_or(0);
    Ok(Listed { key, bytes, modified_ms })
}

/// Undoes `encoding-type=url`: percent escapes, and `+` for a space.
fn decode(raw: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match first {
            b'+' => bytes.push(b' '),
            b'%' => {
                let (digits, after) = rest.split_at_checked(2)?;
                let digits = std::str::from_utf8(digits).ok()?;
                bytes.push(u8::from_str_radix(digits, 16).ok()?);
                rest = after;
            }
            other => bytes.push(*other),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(keys: &[&str], next: Option<&str>) -> ListObjectsV2Output {
        let contents = keys.iter().map(|key| Object::builder().key(*key).size(1).build()).collect();
        ListObjectsV2Output::builder()
            .set_contents(Some(contents))
            .is_truncated(next.is_some())
            .set_next_continuation_token(next.map(str::to_owned))
            .build()
    }

    fn keys(listing: Listing<'_>) -> Vec<String> {
        listing.finish().into_iter().map(|line| line.key).collect()
    }

    #[test]
    fn folders_come_once_whether_or_not_the_server_knows_delimiters() {
        use aws_sdk_s3::types::CommonPrefix;
        let common = |prefix: &str| CommonPrefix::builder().prefix(prefix).build();
        let mut listing = FolderListing::new("p/");
        let mut first = page(&["p/", "p/x", "p/b/1"], Some("t"));
        first.common_prefixes = Some(vec![common("p/c/"), common("p/a/"), common("q/"), common("p/")]);
        listing.add(&first).unwrap();
        assert!(!listing.is_complete());
        let mut second = page(&["p/a/1", "p/d"], None);
        second.common_prefixes = Some(vec![common("p/c/")]);
        listing.add(&second).unwrap();
        assert!(listing.is_complete());
        let folder = listing.finish();
        assert_eq!(folder.folders, ["p/a/", "p/b/", "p/c/"]);
        assert_eq!(folder.objects.iter().map(|line| &line.key[..]).collect::<Vec<_>>(), ["p/d", "p/x"]);
    }

    #[test]
    fn escapes_are_undone() {
        assert_eq!(decode("a%2Fb+c%2B%C3%A9").as_deref(), Some("a/b c+é"));
        for broken in ["%", "%2", "%zz", "%ff"] {
            assert_eq!(decode(broken), None, "{broken}");
        }
    }

    #[test]
    fn unsorted_servers_are_read_to_the_end_and_sorted() {
        let mut listing = Listing::new("", None, Some(2));
        listing.add(&page(&["c", "b"], Some("t"))).unwrap();
        assert!(!listing.is_complete());
        listing.add(&page(&["a"], None)).unwrap();
        assert_eq!(keys(listing), ["a", "b"]);
    }

    #[test]
    fn servers_that_ignore_start_after_and_prefix_are_filtered() {
        let mut listing = Listing::new("p", Some("p1"), None);
        listing.add(&page(&["a", "p1", "p2", "q"], None)).unwrap();
        assert_eq!(keys(listing), ["p2"]);
    }

    #[test]
    fn start_after_is_sent_only_from_within_the_prefix() {
        let sent = |after| Listing::new("p/", Some(after), None).start_after();
        assert_eq!(sent("p/a").as_deref(), Some("p/a"));
        assert_eq!(sent("p/").as_deref(), Some("p/"));
        assert_eq!(sent("p"), None);
        assert_eq!(sent(""), None);
        assert!(Listing::new("p/", Some("p0"), None).is_complete());
        assert!(!Listing::new("p/", Some("p"), None).is_complete());
    }

    #[test]
    fn a_page_that_leads_nowhere_is_an_error() {
        let mut listing = Listing::new("", None, None);
        let truncated = ListObjectsV2Output::builder().is_truncated(true).build();
        assert_eq!(listing.add(&truncated).unwrap_err().kind, ErrorKind::Retry);
        listing.add(&page(&["a"], Some("same"))).unwrap();
        assert_eq!(listing.add(&page(&["b"], Some("same"))).unwrap_err().kind, ErrorKind::Retry);
    }
}
