//! An S3 server within the test: signatures checked, one bucket in memory, faults as told.
//!
//! It runs on a thread of its own, so it serves blocking tests and paused clocks alike, and ends when it is dropped.
//!
//! # Faults
//! A plan decides for each HTTP request. Answers before and after the request was applied, connections that close
//! before and after, bodies cut off or altered, delays. The server can be away (connections are closed at once), stopped
//! and started again on its port with its contents.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::http::HeaderValue;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use s3bd::store::memory::Memory;
use s3bd::store::s3_config::S3Options;
use s3bd::store::s3_credentials::{CredentialSource, StaticCredentials};
use s3s::auth::{S3Auth, SecretKey, SimpleAuth};
use s3s::service::{S3Service, S3ServiceBuilder};

pub use super::s3_bucket::{Bucket, Conditional};

pub const BUCKET: &str = "test-bucket";
pub const ACCESS_KEY: &str = "AKIATESTTESTTEST";
pub const SECRET_KEY: &str = "this/is+the/secret+key/of+the+tests";

/// One HTTP request, as a plan sees it.
#[derive(Clone, Debug)]
pub struct HttpCall {
    /// Number of this request, from 0.
    pub index: u64,
    pub method: String,
    /// What follows the bucket in the path; empty for calls on the bucket.
    pub key: String,
    pub query: String,
    /// `If-None-Match` was sent.
    pub conditional: bool,
}

impl HttpCall {
    pub fn is(&self, method: &str, key: &str) -> bool {
        self.method == method && self.key == key
    }
}

/// An error answer.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub code: &'static str,
    pub message: String,
    pub headers: Vec<(&'static str, String)>,
    /// Instead of an error document.
    pub body: Option<String>,
}

impl Reply {
    pub fn new(status: u16, code: &'static str) -> Reply {
        Reply { status, code, ..Reply::default() }
    }
}

/// What happens to a request.
#[derive(Clone, Debug)]
pub enum HttpFault {
    None,
    /// Answered so, and not applied.
    Before(Reply),
    /// Applied, and answered so.
    After(Reply),
    /// The connection closes before anything is applied.
    DropBefore,
    /// Applied, and the connection closes without an answer.
    DropAfter,
    /// The body ends halfway through, with the connection.
    CutBody,
    /// The body is halved, and the headers say so: what a broken proxy does.
    HalveBody,
    /// A header of the answer is replaced; removed where empty.
    Header(&'static str, String),
    /// Goes through, this much later.
    Delay(Duration),
}

type Plan = Box<dyn Fn(&HttpCall) -> HttpFault + Send + Sync>;

struct Shared {
    bucket: Arc<Bucket>,
    keys: Arc<Mutex<SimpleAuth>>,
    plan: Mutex<Arc<Plan>>,
    away: AtomicBool,
    requests: AtomicU64,
    under_way: AtomicU64,
    under_way_max: AtomicU64,
    counts: Mutex<BTreeMap<String, u64>>,
}

/// The server; clones of its contents outlive it.
pub struct S3Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    running: Option<Running>,
}

struct Running {
    stop: tokio::sync::oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl S3Server {
    /// Starts on a free port of the loopback interface, with an empty bucket named [`BUCKET`].
    pub fn start() -> S3Server {
        let ticks = AtomicU64::new(1_700_000_000_000);
        let contents = Memory::with_clock(Arc::new(move || ticks.fetch_add(1, Ordering::Relaxed)));
        let bucket = Bucket {
            name: BUCKET.to_owned(),
            contents,
            conditional: Mutex::new(Conditional::Honoured),
            page_keys_max: Mutex::new(1000),
        };
        let shared = Shared {
            bucket: Arc::new(bucket),
            keys: Arc::new(Mutex::new(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY))),
            plan: Mutex::new(Arc::new(Box::new(|_: &HttpCall| HttpFault::None))),
            away: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            under_way: AtomicU64::new(0),
            under_way_max: AtomicU64::new(0),
            counts: Mutex::default(),
        };
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = S3Server { address, shared: Arc::new(shared), running: None };
        server.start_again();
        server
    }

    /// Closes the port and every connection; the contents stay.
    pub fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            let _ = running.stop.send(());
            running.thread.join().expect("the server's thread panicked");
        }
    }

    /// Listens again, on the same port.
    pub fn start_again(&mut self) {
        assert!(self.running.is_none(), "the server runs");
        let listener = TcpListener::bind(self.address).expect("cannot listen");
        listener.set_nonblocking(true).expect("cannot set the socket up");
        self.address = listener.local_addr().expect("the socket has no address");
        let shared = Arc::clone(&self.shared);
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || serve(listener, &shared, stopped));
        self.running = Some(Running { stop, thread });
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Options that reach this server with its first key.
    pub fn options(&self) -> S3Options {
        self.options_with_keys(|| (ACCESS_KEY.to_owned(), SECRET_KEY.to_owned()))
    }

    /// Options whose credentials come from a function.
    pub fn options_with_keys(
        &self,
        keys: impl Fn() -> (String, String) + Send + Sync + 'static,
    ) -> S3Options {
        let provide = move || {
            let (access_key_id, secret) = keys();
            StaticCredentials { access_key_id, secret_access_key: secret.into(), session_token: None }
        };
        let credentials = CredentialSource::Provided(Arc::new(provide));
        S3Options { endpoint: Some(self.endpoint()), credentials, ..S3Options::default() }
    }

    /// From here on only this key is accepted.
    pub fn set_key(&self, access_key: &str, secret_key: &str) {
        *self.shared.keys.lock().unwrap() = SimpleAuth::from_single(access_key, secret_key);
    }

    pub fn set_conditional(&self, conditional: Conditional) {
        *self.shared.bucket.conditional.lock().unwrap() = conditional;
    }

    pub fn set_page_keys_max(&self, keys: i32) {
        *self.shared.bucket.page_keys_max.lock().unwrap() = keys;
    }

    pub fn set_plan(&self, plan: impl Fn(&HttpCall) -> HttpFault + Send + Sync + 'static) {
        *self.shared.plan.lock().unwrap() = Arc::new(Box::new(plan));
    }

    /// The fault hits the next request that the filter lets through, and no other.
    pub fn fail_once(&self, filter: impl Fn(&HttpCall) -> bool + Send + Sync + 'static, fault: HttpFault) {
        let done = AtomicBool::new(false);
        self.set_plan(move |call| match filter(call) && !done.swap(true, Ordering::SeqCst) {
            true => fault.clone(),
            false => HttpFault::None,
        });
    }

    /// While `true`, connections are closed without an answer.
    pub fn set_away(&self, away: bool) {
        self.shared.away.store(away, Ordering::SeqCst);
    }

    /// Everything stored; can be read, damaged and put back.
    pub fn contents(&self) -> &Memory {
        &self.shared.bucket.contents
    }

    /// Requests of one method so far, `POST` being `DeleteObjects`; listings are `LIST`.
    pub fn count(&self, method: &str) -> u64 {
        self.shared.counts.lock().unwrap().get(method).copied().unwrap_or(0)
    }

    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// Most requests that were under way at once.
    pub fn under_way_max(&self) -> u64 {
        self.shared.under_way_max.load(Ordering::SeqCst)
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            let _ = running.stop.send(());
            let _ = running.thread.join();
        }
    }
}

/// Looks keys up where the test can change them.
struct SharedKeys(Arc<Mutex<SimpleAuth>>);

#[async_trait::async_trait]
impl S3Auth for SharedKeys {
    async fn get_secret_key(&self, access_key: &str) -> s3s::S3Result<SecretKey> {
        let found = self.0.lock().unwrap().lookup(access_key).cloned();
        found.ok_or_else(|| {
            s3s::s3_error!(
                InvalidAccessKeyId,
                "The AWS Access Key Id you provided does not exist in our records."
            )
        })
    }
}

/// The bucket as a trait object's target that can be shared with the test.
struct SharedBucket(Arc<Bucket>);

macro_rules! forward {
    ($($name:ident: $input:ty => $output:ty),* $(,)?) => {
        #[async_trait::async_trait]
        impl s3s::S3 for SharedBucket {
            $(async fn $name(&self, req: s3s::S3Request<$input>) -> s3s::S3Result<s3s::S3Response<$output>> {
                self.0.$name(req).await
            })*
        }
    };
}

forward! {
    put_object: s3s::dto::PutObjectInput => s3s::dto::PutObjectOutput,
    get_object: s3s::dto::GetObjectInput => s3s::dto::GetObjectOutput,
    head_object: s3s::dto::HeadObjectInput => s3s::dto::HeadObjectOutput,
    head_bucket: s3s::dto::HeadBucketInput => s3s::dto::HeadBucketOutput,
    list_objects_v2: s3s::dto::ListObjectsV2Input => s3s::dto::ListObjectsV2Output,
    delete_object: s3s::dto::DeleteObjectInput => s3s::dto::DeleteObjectOutput,
    delete_objects: s3s::dto::DeleteObjectsInput => s3s::dto::DeleteObjectsOutput,
}

/// The server's thread.
fn serve(listener: TcpListener, shared: &Arc<Shared>, stopped: tokio::sync::oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("no runtime");
    let mut builder = S3ServiceBuilder::new(SharedBucket(Arc::clone(&shared.bucket)));
    builder.set_auth(SharedKeys(Arc::clone(&shared.keys)));
    let service = builder.build();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).expect("cannot use the socket");
        tokio::select! {
            () = accept(&listener, shared, &service) => {}
            _ = stopped => {}
        }
    });
    // Dropping the runtime ends the connections.
}

async fn accept(listener: &tokio::net::TcpListener, shared: &Arc<Shared>, service: &S3Service) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        if shared.away.load(Ordering::SeqCst) {
            continue;
        }
        let _ = stream.set_nodelay(true);
        let (shared, service) = (Arc::clone(shared), service.clone());
        tokio::spawn(async move {
            let answer = hyper::service::service_fn(move |request| {
                let (shared, service) = (Arc::clone(&shared), service.clone());
                async move { answer(&shared, &service, request).await }
            });
            // A connection that a fault closed ends with an error, as it should.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        });
    }
}

/// The connection is to be closed without an answer.
#[derive(Debug)]
struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("closed on purpose")
    }
}

impl std::error::Error for Closed {}

struct UnderWay<'a>(&'a Shared);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn answer(
    shared: &Shared,
    service: &S3Service,
    request: Request<Incoming>,
) -> Result<Response<s3s::Body>, Closed> {
    if shared.away.load(Ordering::SeqCst) {
        return Err(Closed);
    }
    let now = shared.under_way.fetch_add(1, Ordering::SeqCst) + 1;
    let _under_way = UnderWay(shared);
    shared.under_way_max.fetch_max(now, Ordering::SeqCst);
    let call = shared.note(&request);
    let plan = Arc::clone(&shared.plan.lock().unwrap());
    let apply = async |request: Request<Incoming>| {
        service.call(request.map(s3s::Body::from)).await.map_err(|_| Closed)
    };
    match plan(&call) {
        HttpFault::None => apply(request).await,
        HttpFault::Before(reply) => {
            // Read to the end, so that the client is not cut off while it sends.
            let _ = request.into_body().collect().await;
            Ok(reply.into_response())
        }
        HttpFault::After(reply) => {
            apply(request).await?;
            Ok(reply.into_response())
        }
        HttpFault::DropBefore => Err(Closed),
        HttpFault::DropAfter => {
            apply(request).await?;
            Err(Closed)
        }
        HttpFault::CutBody => cut_body(apply(request).await?, true).await,
        HttpFault::HalveBody => cut_body(apply(request).await?, false).await,
        HttpFault::Header(name, value) => {
            let mut response = apply(request).await?;
            response.headers_mut().remove(name);
            if !value.is_empty() {
                response.headers_mut().insert(name, HeaderValue::from_str(&value).unwrap());
            }
            Ok(response)
        }
        HttpFault::Delay(by) => {
            tokio::time::sleep(by).await;
            apply(request).await
        }
    }
}

impl Shared {
    fn note(&self, request: &Request<Incoming>) -> HttpCall {
        let path = request.uri().path().trim_start_matches('/');
        let query = request.uri().query().unwrap_or_default().to_owned();
        let method = request.method().to_string();
        let kind = if query.contains("list-type=2") { "LIST".to_owned() } else { method.clone() };
        *self.counts.lock().unwrap().entry(kind).or_default() += 1;
        HttpCall {
            index: self.requests.fetch_add(1, Ordering::SeqCst),
            method,
            key: path.split_once('/').map_or("", |(_, key)| key).to_owned(),
            query,
            conditional: request.headers().contains_key("if-none-match"),
        }
    }
}

impl Reply {
    fn into_response(self) -> Response<s3s::Body> {
        let body = match (self.body, self.code) {
            (Some(body), _) => body,
            (None, "") => String::new(),
            (None, code) => format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>{}</Message></Error>",
                self.message
            ),
        };
        let mut response = Response::new(s3s::Body::from(body));
        *response.status_mut() = StatusCode::from_u16(self.status).expect("no such status");
        for (name, value) in self.headers {
            response.headers_mut().insert(name, HeaderValue::from_str(&value).unwrap());
        }
        response
    }
}

/// Half of the body; then the connection breaks, or the headers are made to fit.
async fn cut_body(response: Response<s3s::Body>, breaks: bool) -> Result<Response<s3s::Body>, Closed> {
    let (mut parts, body) = response.into_parts();
    let whole = body.collect().await.map_err(|_| Closed)?.to_bytes();
    let half = whole.slice(..whole.len() / 2);
    let length = if breaks { whole.len() } else { half.len() };
    parts.headers.insert("content-length", HeaderValue::from(length));
    let mut frames: Vec<Result<Frame<Bytes>, Closed>> = vec![Ok(Frame::data(half))];
    if breaks {
        frames.push(Err(Closed));
    }
    let body = StreamBody::new(futures::stream::iter(frames));
    Ok(Response::from_parts(parts, s3s::Body::http_body_unsync(body)))
}
