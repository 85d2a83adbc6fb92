//! The handshake: greeting and option haggling, until the client has an export or leaves. Source: proto.md, "Fixed
//! newstyle negotiation", "Option types", "Option reply types".

use std::time::Duration;

use bytes::{BufMut, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use super::{
    Export, ExportError, Exports,
    error::ConnectionError,
    framing::Framing,
    input::Input,
    option::{InfoQuery, Malformed, MetaQuery, decode_info, decode_meta, decode_string},
    proto::{
        INIT_PASSWD, OPTION_MAGIC, OPTION_REPLY_MAGIC, PAYLOAD_BYTES_MAX, PREFERRED_BLOCK_BYTES_MIN,
        allocation, handshake_flag, info_type, option_reply, option_type, transmission_flag as flag,
    },
    request::Terms,
};

/// The longest data of an option that is looked at: a name and some fifteen queries of full length.
const OPTION_BYTES_MAX: u32 = 64 << 10;
/// The longest data of an option that is skipped and answered; beyond, the connection ends.
const OPTION_SKIP_BYTES_MAX: u32 = 1 << 20;
/// Header of an option: magic, type, length.
const OPTION_HEADER_BYTES: usize = 16;
/// The zeroes of "Newstyle negotiation", left out with NBD_FLAG_C_NO_ZEROES.
const RESERVED_BYTES: usize = 124;

/// What the handshake came to.
pub(super) struct Session {
    pub(super) export: Export,
    pub(super) terms: Terms,
}

/// Shakes hands. `None`: the client left as it may, with NBD_OPT_ABORT or by closing between two options.
pub(super) async fn handshake<R, W>(
    input: &mut Input<R>,
    output: &mut W,
    exports: &dyn Exports,
    limit: Duration,
) -> Result<Option<Session>, ConnectionError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let late = |_| ConnectionError::HandshakeTime { limit };
    let no_zeroes = timeout(limit, greet(input, output)).await.map_err(late)??;
    let mut haggling = Haggling { no_zeroes, ..Haggling::default() };
    loop {
        match timeout(limit, haggling.settle(input, output, exports)).await.map_err(late)?? {
            Next::Option => {}
            Next::Transmission(session) => return Ok(Some(session)),
            Next::Leave => return Ok(None),
        }
    }
}

/// "Newstyle negotiation", its first four lines. True: the client wants no zeroes.
async fn greet<R, W>(input: &mut Input<R>, output: &mut W) -> Result<bool, ConnectionError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let offered = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
    let mut greeting = BytesMut::with_capacity(18);
    greeting.put_u64(INIT_PASSWD);
    greeting.put_u64(OPTION_MAGIC);
    greeting.put_u16(offered);
    output.write_all(&greeting).await?;
    input.fill_to(4).await?;
    let flags = u32::from_be_bytes(input.bytes()[..4].try_into().expect("four bytes"));
    input.consume(4);
    // "Client flags": the connection is dropped for a flag that was not offered.
    if flags & !u32::from(offered) != 0 {
        return Err(ConnectionError::ClientFlags { flags });
    }
    Ok(flags & u32::from(handshake_flag::NO_ZEROES) != 0)
}

/// Waits for the next option's first byte. False: the client closed instead.
async fn begins<R: AsyncRead + Unpin>(input: &mut Input<R>) -> Result<bool, ConnectionError> {
    match input.fill_to(1).await {
        Ok(()) => Ok(true),
        Err(ConnectionError::Truncated) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn receive_header<R: AsyncRead + Unpin>(input: &mut Input<R>) -> Result<(u32, u32), ConnectionError> {
    input.fill_to(OPTION_HEADER_BYTES).await?;
    let (magic, rest) = input.bytes()[..OPTION_HEADER_BYTES].split_at(8);
    let magic = u64::from_be_bytes(magic.try_into().expect("eight bytes"));
    let option = u32::from_be_bytes(rest[..4].try_into().expect("four bytes"));
    let length_bytes = u32::from_be_bytes(rest[4..].try_into().expect("four bytes"));
    input.consume(OPTION_HEADER_BYTES);
    if magic != OPTION_MAGIC {
        return Err(ConnectionError::OptionMagic { found: magic });
    }
    Ok((option, length_bytes))
}

async fn refuse_long<R, W>(
    input: &mut Input<R>,
    output: &mut W,
    option: u32,
    length_bytes: u32,
) -> Result<(), ConnectionError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    // NBD_OPT_EXPORT_NAME has no error reply.
    if length_bytes > OPTION_SKIP_BYTES_MAX || option == option_type::EXPORT_NAME {
        return Err(ConnectionError::OptionTooLarge { option, length_bytes });
    }
    input.skip(length_bytes as usize).await?;
    let mut replies = BytesMut::new();
    put_reply(&mut replies, option, option_reply::ERR_TOO_BIG, b"too much data for an option");
    Ok(output.write_all(&replies).await?)
}

/// What follows an option.
enum Next {
    Option,
    Transmission(Session),
    Leave,
}

/// What has been agreed so far, and the replies that are to be sent.
struct Haggling {
    no_zeroes: bool,
    framing: Framing,
    /// `base:allocation` is selected for the export of this name, as the client spelt it.
    allocation_export: Option<String>,
    replies: BytesMut,
}

impl Default for Haggling {
    fn default() -> Self {
        Self { no_zeroes: false, framing: Framing::Simple, allocation_export: None, replies: BytesMut::new() }
    }
}

impl Haggling {
    /// Receives one option, and answers it.
    async fn settle<R, W>(
        &mut self,
        input: &mut Input<R>,
        output: &mut W,
        exports: &dyn Exports,
    ) -> Result<Next, ConnectionError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if !begins(input).await? {
            return Ok(Next::Leave);
        }
        let (option, length_bytes) = receive_header(input).await?;
        if length_bytes > OPTION_BYTES_MAX {
            refuse_long(input, output, option, length_bytes).await?;
            return Ok(Next::Option);
        }
        let length = length_bytes as usize;
        input.fill_to(length).await?;
        let next = self.answer(option, &input.bytes()[..length], exports).await;
        input.consume(length);
        let replies = std::mem::take(&mut self.replies);
        let next = next?;
        let written = output.write_all(&replies).await;
        // "NBD_OPT_ABORT": the client may be gone before it has the answer.
        if !matches!(next, Next::Leave) {
            written?;
        }
        Ok(next)
    }

    async fn answer(
        &mut self,
        option: u32,
        data: &[u8],
        exports: &dyn Exports,
    ) -> Result<Next, ConnectionError> {
        match option {
            option_type::EXPORT_NAME => return self.export_name(data, exports).await.map(Next::Transmission),
            option_type::ABORT => {
                self.reply(option, option_reply::ACK, b"");
                return Ok(Next::Leave);
            }
            option_type::INFO | option_type::GO => {
                let session = self.info(option, data, exports).await;
                if let (Some(session), option_type::GO) = (session, option) {
                    return Ok(Next::Transmission(session));
                }
            }
            option_type::LIST => self.list(option, data, exports).await,
            option_type::STRUCTURED_REPLY => self.structured_reply(option, data),
            option_type::EXTENDED_HEADERS => self.extended_headers(option, data),
            option_type::LIST_META_CONTEXT | option_type::SET_META_CONTEXT => {
                self.meta_context(option, data, exports).await;
            }
            _ => self.reply(option, option_reply::ERR_UNSUP, b"unknown option"),
        }
        Ok(Next::Option)
    }

    async fn export_name(&mut self, data: &[u8], exports: &dyn Exports) -> Result<Session, ConnectionError> {
        let name = decode_string(data).map_err(|Malformed| ConnectionError::ExportName)?;
        let export = exports
            .find(name)
            .await
            .map_err(|source| ConnectionError::ExportNotFound { name: name.to_owned(), source })?;
        let session = self.session(name, export);
        self.replies.put_u64(session.export.device.info().size_bytes);
        self.replies.put_u16(session.flags());
        if !self.no_zeroes {
            self.replies.put_bytes(0, RESERVED_BYTES);
        }
        Ok(session)
    }

    /// NBD_OPT_INFO and NBD_OPT_GO differ only in what follows.
    async fn info(&mut self, option: u32, data: &[u8], exports: &dyn Exports) -> Option<Session> {
        let Ok(InfoQuery { name, info_types }) = decode_info(data) else {
            self.invalid(option);
            return None;
        };
        let export = self.find(option, name, exports).await?;
        let session = self.session(name, export);
        self.put_info_export(option, &session);
        // Each at most once, however often it was asked for, and in one order.
        for kind in [info_type::NAME, info_type::DESCRIPTION, info_type::BLOCK_SIZE] {
            if info_types.contains(&kind) {
                self.put_info(option, kind, &session.export);
            }
        }
        self.reply(option, option_reply::ACK, b"");
        Some(session)
    }

    fn put_info_export(&mut self, option: u32, session: &Session) {
        let mut info = BytesMut::with_capacity(12);
        info.put_u16(info_type::EXPORT);
        info.put_u64(session.export.device.info().size_bytes);
        info.put_u16(session.flags());
        self.reply(option, option_reply::INFO, &info);
    }

    fn put_info(&mut self, option: u32, kind: u16, export: &Export) {
        let mut info = BytesMut::with_capacity(14);
        info.put_u16(kind);
        match kind {
            info_type::NAME => info.put_slice(export.name.as_bytes()),
            info_type::DESCRIPTION => info.put_slice(export.description.as_bytes()),
            _ => {
                let preferred = export.device.info().preferred_block_bytes;
                let preferred = preferred.clamp(PREFERRED_BLOCK_BYTES_MIN, PAYLOAD_BYTES_MAX);
                info.put_u32(1);
                info.put_u32(preferred.next_power_of_two());
                info.put_u32(PAYLOAD_BYTES_MAX);
            }
        }
        self.reply(option, option_reply::INFO, &info);
    }

    async fn list(&mut self, option: u32, data: &[u8], exports: &dyn Exports) {
        if !data.is_empty() {
            return self.invalid(option);
        }
        for name in exports.list().await {
            let mut server = BytesMut::with_capacity(4 + name.len());
            server.put_u32(name.len() as u32);
            server.put_slice(name.as_bytes());
            self.reply(option, option_reply::SERVER, &server);
        }
        self.reply(option, option_reply::ACK, b"");
    }

    fn structured_reply(&mut self, option: u32, data: &[u8]) {
        if !data.is_empty() {
            return self.invalid(option);
        }
        if self.framing == Framing::Extended {
            let message = b"extended headers are agreed already";
            return self.reply(option, option_reply::ERR_EXT_HEADER_REQD, message);
        }
        self.framing = Framing::Structured;
        self.reply(option, option_reply::ACK, b"");
    }

    fn extended_headers(&mut self, option: u32, data: &[u8]) {
        if !data.is_empty() {
            return self.invalid(option);
        }
        self.framing = Framing::Extended;
        self.reply(option, option_reply::ACK, b"");
    }

    async fn meta_context(&mut self, option: u32, data: &[u8], exports: &dyn Exports) {
        let sets = option == option_type::SET_META_CONTEXT;
        if sets {
            // "NBD_OPT_SET_META_CONTEXT": replaces what was set, also when it fails.
            self.allocation_export = None;
        }
        if self.framing == Framing::Simple {
            return self.reply(option, option_reply::ERR_INVALID, b"structured replies come first");
        }
        let Ok(MetaQuery { name, queries }) = decode_meta(data) else { return self.invalid(option) };
        if self.find(option, name, exports).await.is_none() {
            return;
        }
        let lists = |query: &str| !sets && query == allocation::WILDCARD;
        let found = queries.iter().any(|query| *query == allocation::NAME || lists(query))
            || (queries.is_empty() && !sets);
        if found {
            let mut context = BytesMut::with_capacity(4 + allocation::NAME.len());
            context.put_u32(if sets { allocation::ID } else { 0 });
            context.put_slice(allocation::NAME.as_bytes());
            self.reply(option, option_reply::META_CONTEXT, &context);
        }
        self.allocation_export = (sets && found).then(|| name.to_owned());
        self.reply(option, option_reply::ACK, b"");
    }

    /// The export, or a reply that says why not.
    async fn find(&mut self, option: u32, name: &str, exports: &dyn Exports) -> Option<Export> {
        let error = match exports.find(name).await {
            Ok(export) => return Some(export),
            Err(error) => error,
        };
        let reply = match error {
            ExportError::Unknown | ExportError::Unavailable => option_reply::ERR_UNKNOWN,
            ExportError::Shutdown => option_reply::ERR_SHUTDOWN,
        };
        self.reply(option, reply, error.to_string().as_bytes());
        None
    }

    fn session(&self, name: &str, export: Export) -> Session {
        let allocation_context = self.allocation_export.as_deref() == Some(name);
        Session { export, terms: Terms { framing: self.framing, allocation_context } }
    }

    fn invalid(&mut self, option: u32) {
        self.reply(option, option_reply::ERR_INVALID, b"malformed option");
    }

    fn reply(&mut self, option: u32, kind: u32, data: &[u8]) {
        put_reply(&mut self.replies, option, kind, data);
    }
}

impl Session {
    /// "Transmission flags".
    fn flags(&self) -> u16 {
        let mut flags = flag::HAS_FLAGS
            | flag::SEND_FLUSH
            | flag::SEND_FUA
            | flag::SEND_TRIM
            | flag::SEND_WRITE_ZEROES
            | flag::SEND_FAST_ZERO
            | flag::SEND_CACHE
            | flag::CAN_MULTI_CONN;
        if self.export.device.info().read_only {
            flags |= flag::READ_ONLY;
        }
        if self.terms.framing != Framing::Simple {
            flags |= flag::SEND_DF;
        }
        flags
    }
}

/// "Fixed newstyle negotiation": magic, option, type, length, data.
fn put_reply(replies: &mut BytesMut, option: u32, kind: u32, data: &[u8]) {
    replies.put_u64(OPTION_REPLY_MAGIC);
    replies.put_u32(option);
    replies.put_u32(kind);
    replies.put_u32(data.len() as u32);
    replies.put_slice(data);
}
