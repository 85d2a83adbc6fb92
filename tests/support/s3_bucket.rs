//! The operations of the in-process S3 server: one bucket over a [`Memory`] store, atomic as that is.

use std::sync::Mutex;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::BodyExt;
use s3bd::store::memory::Memory;
use s3bd::store::{Got, Put, PutMode, Range as StoreRange, Store};
use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};

/// What the server makes of `If-None-Match: *`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conditional {
    /// 412 where the name is taken, atomically.
    Honoured,
    /// Overwrites, as Garage does.
    Ignored,
    /// 501, whatever is there.
    Refused,
    /// 412, whatever is there.
    AlwaysFails,
}

/// One bucket.
pub struct Bucket {
    pub name: String,
    pub contents: Memory,
    pub conditional: Mutex<Conditional>,
    /// Most keys of a page, so that a few objects make several pages.
    pub page_keys_max: Mutex<i32>,
}

impl Bucket {
    fn check(&self, bucket: &str) -> S3Result<()> {
        if bucket == self.name { Ok(()) } else { Err(s3_error!(NoSuchBucket, "no bucket of this name")) }
    }
}

fn internal(error: impl std::fmt::Display) -> s3s::S3Error {
    s3_error!(InternalError, "{error}")
}

fn timestamp(modified_ms: u64) -> Timestamp {
    Timestamp::from(UNIX_EPOCH + Duration::from_millis(modified_ms))
}

/// `encoding-type=url` as Amazon has it: everything but unreserved characters and slashes, a space as `+`.
fn url_encode(key: &str) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'*' | b'/' => {
            char::from(byte).to_string()
        }
        b' ' => "+".to_owned(),
        _ => format!("%{byte:02X}"),
    };
    key.bytes().map(encode).collect()
}

#[async_trait::async_trait]
impl S3 for Bucket {
    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = req.input;
        self.check(&input.bucket)?;
        let body = match input.body {
            Some(body) => s3s::Body::from(body).collect().await.map_err(internal)?.to_bytes(),
            None => Bytes::new(),
        };
        let conditional = *self.conditional.lock().unwrap();
        let mode = match (input.if_none_match, conditional) {
            (Some(_), Conditional::Refused) => {
                return Err(s3_error!(
                    NotImplemented,
                    "A header you provided implies functionality that is not implemented"
                ));
            }
            (Some(_), Conditional::AlwaysFails) => return Err(s3_error!(PreconditionFailed)),
            (Some(_), Conditional::Honoured) => PutMode::Create,
            _ => PutMode::Replace,
        };
        match self.contents.put(&input.key, &[body], mode).await.map_err(internal)? {
            Put::Created => Ok(S3Response::new(PutObjectOutput::default())),
            Put::Exists => Err(s3_error!(
                PreconditionFailed,
                "At least one of the pre-conditions you specified did not hold"
            )),
        }
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = req.input;
        self.check(&input.bucket)?;
        let got = self.contents.get(&input.key, StoreRange::Full).await;
        let Ok(Got { bytes, object_bytes }) = got else { return Err(s3_error!(NoSuchKey, "no such key")) };
        let (bytes, content_range) = match input.range {
            None => (bytes, None),
            Some(range) => {
                let range = range.check(object_bytes).ok().filter(|range| !range.is_empty());
                let range = range.ok_or_else(|| s3_error!(InvalidRange))?;
                let header = format!("bytes {}-{}/{object_bytes}", range.start, range.end - 1);
                (bytes.slice(range.start as usize..range.end as usize), Some(header))
            }
        };
        let output = GetObjectOutput {
            content_length: Some(bytes.len() as i64),
            content_range,
            body: Some(StreamingBlob::from(s3s::Body::from(bytes))),
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        self.check(&req.input.bucket)?;
        match self.contents.head(&req.input.key).await.map_err(internal)? {
            Some(bytes) => {
                let output = HeadObjectOutput { content_length: Some(bytes as i64), ..Default::default() };
                Ok(S3Response::new(output))
            }
            None => Err(s3_error!(NoSuchKey)),
        }
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.check(&req.input.bucket)?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn list_objects_v2(
        &self,
        req: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = req.input;
        self.check(&input.bucket)?;
        let prefix = input.prefix.unwrap_or_default();
        let page_keys_max = *self.page_keys_max.lock().unwrap();
        let max_keys = input.max_keys.unwrap_or(1000).min(page_keys_max).max(0) as usize;
        let after = input.continuation_token.clone().or(input.start_after);
        let listed = self.contents.list(&prefix, after.as_deref(), None).await.map_err(internal)?;
        let encode = |key: &str| match &input.encoding_type {
            Some(_) => url_encode(key),
            None => key.to_owned(),
        };
        let mut output = ListObjectsV2Output {
            encoding_type: input.encoding_type.clone(),
            is_truncated: Some(false),
            ..Default::default()
        };
        let (mut objects, mut folders, mut last) = (Vec::new(), Vec::<String>::new(), None);
        for line in listed {
            let below = &line.key[prefix.len()..];
            let folder = input.delimiter.as_ref().and_then(|delimiter| {
                below
                    .find(delimiter.as_str())
                    .map(|at| line.key[..prefix.len() + at + delimiter.len()].to_owned())
            });
            if folder.is_some() && folders.last() == folder.as_ref() {
                last = Some(line.key);
                continue;
            }
            if objects.len() + folders.len() == max_keys {
                output.is_truncated = Some(true);
                output.next_continuation_token = last;
                break;
            }
            last = Some(line.key.clone());
            match folder {
                Some(folder) => folders.push(folder),
                None => objects.push(Object {
                    key: Some(encode(&line.key)),
                    size: Some(line.bytes as i64),
                    last_modified: Some(timestamp(line.modified_ms)),
                    ..Default::default()
                }),
            }
        }
        let common = |folder: &String| CommonPrefix { prefix: Some(encode(folder)) };
        output.key_count = Some((objects.len() + folders.len()) as i32);
        output.common_prefixes = Some(folders.iter().map(common).collect());
        output.contents = Some(objects);
        Ok(S3Response::new(output))
    }

    async fn delete_object(
        &self,
        req: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.check(&req.input.bucket)?;
        self.contents.delete(&[req.input.key]).await.map_err(internal)?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(
        &self,
        req: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        self.check(&req.input.bucket)?;
        let keys: Vec<_> = req.input.delete.objects.into_iter().map(|object| object.key).collect();
        self.contents.delete(&keys).await.map_err(internal)?;
        Ok(S3Response::new(DeleteObjectsOutput::default()))
    }
}
