//! What of gRPC a device plugin needs, over HTTP/2 on a Unix socket: calls with one message and
//! one answer, or a stream of answers of which only the newest counts; and one call of our own.
//!
//! Who connects may be hostile: connections, calls, headers and messages have limits, what takes
//! too long is given up, and no call is answered with more than its peer takes.

use std::fmt::Write as _;
use std::future::poll_fn;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream, client, server};
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use prost::Message;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

/// How long a greeting and a call may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Connections at a time; the oldest that has had no answer makes room.
const CONNECTIONS_MAX: usize = 16;

/// Calls of a connection at a time.
const CALLS_MAX: u32 = 16;

/// Bytes of all headers of a call.
const HEADERS_MAX: u32 = 16 << 10;

/// Bytes of a message.
pub(super) const MESSAGE_MAX: usize = 1 << 20;

/// Bytes before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

const TYPE: HeaderValue = HeaderValue::from_static("application/grpc");
const STATUS: &str = "grpc-status";
const MESSAGE: &str = "grpc-message";

/// What is wrong with a call, by the codes of gRPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    InvalidArgument = 3,
    NotFound = 5,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Unimplemented = 12,
}

/// Why a call is not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code:?}: {why}")]
pub(crate) struct Status {
    pub(crate) code: Code,
    pub(crate) why: String,
}

impl Status {
    pub(crate) fn new(code: Code, why: impl Into<String>) -> Self {
        let why = why.into();
        Self { code, why }
    }

    fn headers(&self) -> HeaderMap {
        let code = self.code as u32;
        let mut headers = HeaderMap::new();
        headers.insert(STATUS, code.into());
        // Escaped, it is what a header may be.
        if let Ok(why) = HeaderValue::from_str(&escaped(&self.why)) {
            headers.insert(MESSAGE, why);
        }
        headers
    }
}

/// A text for a header: what is neither plain nor a space is `%` and two digits.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(byte.into()),
            // A string takes all.
            _ => drop(write!(out, "%{byte:02X}")),
        }
    }
    out
}

/// What a call gets.
pub(crate) enum Answer {
    /// One message.
    One(Bytes),
    /// The newest, and each that comes later.
    Newest(watch::Receiver<Bytes>),
}

/// Who answers calls.
pub(crate) trait Service: Clone + Send + Sync + 'static {
    /// What a method, by its path, answers to a message.
    ///
    /// # Errors
    /// It answers nothing.
    fn call(&self, method: &str, message: &[u8]) -> Result<Answer, Status>;
}

/// The one message of a call's body.
///
/// # Errors
/// It is none, or more.
pub(super) fn message(body: &[u8]) -> Result<&[u8], Status> {
    let wrong = |why: &str| Status::new(Code::InvalidArgument, why);
    let (prefix, message) = body
        .split_at_checked(PREFIX)
        .ok_or_else(|| wrong("there is no message"))?;
    if prefix[0] != 0 {
        let why = "the message is compressed, which was not agreed upon";
        return Err(Status::new(Code::Unimplemented, why));
    }
    let length = prefix[1..]
        .iter()
        .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    match u64::try_from(message.len()) {
        Ok(is) if is == length => Ok(message),
        _ => Err(wrong(
            "the message is not as long as it says, or there are more",
        )),
    }
}

/// A message as a body.
pub(super) fn body(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::with_capacity(PREFIX + message.encoded_len());
    bytes.put_u8(0);
    // Our own are short.
    bytes.put_u32(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX));
    bytes.extend_from_slice(&message.encode_to_vec());
    bytes.freeze()
}

/// A message of a call.
///
/// # Errors
/// The bytes are none.
pub(super) fn decoded<M: Message + Default>(bytes: &[u8]) -> Result<M, Status> {
    let wrong = |error: prost::DecodeError| Status::new(Code::InvalidArgument, error.to_string());
    M::decode(bytes).map_err(wrong)
}

/// A connection, among those that may have to make room.
struct Connected {
    task: AbortHandle,
    /// Whether a call of it was answered.
    is_known: Arc<AtomicBool>,
}

/// Answers all who connect, until it is dropped.
pub(crate) async fn serve(listener: UnixListener, service: impl Service) {
    let mut tasks = JoinSet::new();
    let mut all: Vec<Connected> = Vec::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = tasks.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) => {
                all.retain(|it| !it.task.is_finished());
                if all.len() >= CONNECTIONS_MAX {
                    // A kubelet has one for as long as it lives, and strangers that say nothing
                    // do not take it away.
                    let known = |it: &Connected| it.is_known.load(Relaxed);
                    let first = all.iter().position(|it| !known(it)).unwrap_or(0);
                    tracing::debug!("more than {CONNECTIONS_MAX} connections: one is left");
                    all.remove(first).task.abort();
                }
                let is_known = Arc::new(AtomicBool::new(false));
                let connection = connection(stream, service.clone(), Arc::clone(&is_known));
                let task = tasks.spawn(connection);
                all.push(Connected { task, is_known });
            }
            // No descriptor is free, say.
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: UnixStream, service: impl Service, is_known: Arc<AtomicBool>) {
    let mut builder = server::Builder::new();
    builder
        .max_concurrent_streams(CALLS_MAX)
        .max_header_list_size(HEADERS_MAX);
    let greeted = timeout(LIMIT, builder.handshake::<_, Bytes>(stream)).await;
    let Ok(Ok(mut connection)) = greeted else {
        return tracing::debug!("who connected does not speak HTTP/2");
    };
    // They end with the connection.
    let mut calls = JoinSet::new();
    loop {
        let next = tokio::select! {
            next = connection.accept() => next,
            Some(_) = calls.join_next() => continue,
        };
        match next {
            Some(Ok((request, respond))) => {
                let (service, is_known) = (service.clone(), Arc::clone(&is_known));
                calls.spawn(call(request, respond, service, is_known));
            }
            Some(Err(error)) => return tracing::debug!("a connection ended: {error}"),
            None => return,
        }
    }
}

async fn call(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    service: impl Service,
    is_known: Arc<AtomicBool>,
) {
    let done = match timeout(LIMIT, taken(request, &service)).await {
        Ok(Ok(answer)) => {
            is_known.store(true, Relaxed);
            answered(&mut respond, answer).await
        }
        Ok(Err(Wrong::Call(status))) => refused(&mut respond, &status),
        // A peer that is gone, or says nothing.
        Ok(Err(Wrong::Stream(error))) => Err(error),
        Err(_) => {
            respond.send_reset(Reason::CANCEL);
            Ok(())
        }
    };
    if let Err(error) = done {
        tracing::debug!("a call ended: {error}");
    }
}

/// Why there is no answer.
enum Wrong {
    Call(Status),
    Stream(h2::Error),
}

impl From<Status> for Wrong {
    fn from(status: Status) -> Self {
        Self::Call(status)
    }
}

/// Takes all of a call in, and has it answered.
async fn taken(request: Request<RecvStream>, service: &impl Service) -> Result<Answer, Wrong> {
    let (head, mut stream) = request.into_parts();
    let mut body = BytesMut::new();
    while let Some(bytes) = stream.data().await {
        let bytes = bytes.map_err(Wrong::Stream)?;
        stream
            .flow_control()
            .release_capacity(bytes.len())
            .map_err(Wrong::Stream)?;
        if body.len() + bytes.len() > PREFIX + MESSAGE_MAX {
            let why = format!("a message has more than {MESSAGE_MAX} bytes");
            return Err(Status::new(Code::ResourceExhausted, why).into());
        }
        body.extend_from_slice(&bytes);
    }
    let content = head.headers.get(header::CONTENT_TYPE);
    let is_grpc = content.is_some_and(|it| it.as_bytes().starts_with(TYPE.as_bytes()));
    if head.method != Method::POST || !is_grpc {
        let why = "this is no call of gRPC";
        return Err(Status::new(Code::InvalidArgument, why).into());
    }
    Ok(service.call(head.uri.path(), message(&body)?)?)
}

fn head(headers: HeaderMap) -> Response<()> {
    let mut response = Response::new(());
    *response.headers_mut() = headers;
    response.headers_mut().insert(header::CONTENT_TYPE, TYPE);
    response
}

fn refused(respond: &mut SendResponse<Bytes>, status: &Status) -> Result<(), h2::Error> {
    tracing::debug!("a call is refused: {status}");
    respond
        .send_response(head(status.headers()), true)
        .map(drop)
}

async fn answered(respond: &mut SendResponse<Bytes>, answer: Answer) -> Result<(), h2::Error> {
    let mut stream = respond.send_response(head(HeaderMap::new()), false)?;
    match answer {
        Answer::One(message) => match timeout(LIMIT, send(&mut stream, message)).await {
            Ok(sent) => sent?,
            Err(_) => {
                stream.send_reset(Reason::CANCEL);
                return Ok(());
            }
        },
        Answer::Newest(mut newest) => loop {
            let message = newest.borrow_and_update().clone();
            send(&mut stream, message).await?;
            tokio::select! {
                changed = newest.changed() => if changed.is_err() { break },
                reset = poll_fn(|cx| stream.poll_reset(cx)) => return reset.map(drop),
            }
        },
    }
    stream.send_trailers(HeaderMap::from_iter([(
        header::HeaderName::from_static(STATUS),
        HeaderValue::from_static("0"),
    )]))
}

/// Sends as much as the peer takes, again and again.
async fn send(stream: &mut SendStream<Bytes>, mut bytes: Bytes) -> Result<(), h2::Error> {
    while !bytes.is_empty() {
        stream.reserve_capacity(bytes.len());
        match poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(room) => {
                let room = room?.min(bytes.len());
                stream.send_data(bytes.split_to(room), false)?;
            }
            None => return Err(Reason::CANCEL.into()),
        }
    }
    Ok(())
}

/// Calls who listens at a socket; its answer is of no interest.
///
/// # Errors
/// Nobody answers in time, or with an error.
pub(crate) async fn ask(socket: &Path, method: &str, message: &impl Message) -> anyhow::Result<()> {
    let asked = timeout(LIMIT, asked(socket, method, body(message)));
    asked.await.context("there is no answer in time")?
}

async fn asked(socket: &Path, method: &str, body: Bytes) -> anyhow::Result<()> {
    let stream = UnixStream::connect(socket).await?;
    let mut builder = client::Builder::new();
    builder.max_header_list_size(HEADERS_MAX).enable_push(false);
    let (client, connection) = builder.handshake::<_, Bytes>(stream).await?;
    // It ends with this call; an answer counts though the connection ended behind it.
    let mut connections = JoinSet::new();
    connections.spawn(connection);
    let mut client = client.ready().await?;
    let request = Request::post(format!("http://localhost{method}"))
        .header(header::CONTENT_TYPE, TYPE)
        .header(header::TE, "trailers")
        .body(())?;
    let (response, mut stream) = client.send_request(request, false)?;
    stream.send_data(body, true)?;
    let (head, mut body) = response.await?.into_parts();
    if !head.status.is_success() {
        return Err(anyhow!("the answer is {}", head.status));
    }
    let mut bytes = 0;
    while let Some(data) = body.data().await {
        bytes += data?.len();
        if bytes > MESSAGE_MAX {
            return Err(anyhow!("the answer does not end"));
        }
    }
    // Who has only an error to tell has no body, and tells it at once.
    match body.trailers().await? {
        Some(trailers) => told(&trailers),
        None => told(&head.headers),
    }
}

/// What an answer says of its call.
fn told(headers: &HeaderMap) -> anyhow::Result<()> {
    let text = |name| headers.get(name).and_then(|it| it.to_str().ok());
    match text(STATUS) {
        Some("0") => Ok(()),
        Some(code) => {
            let why = text(MESSAGE).unwrap_or("it does not say why");
            Err(anyhow!("status {code}: {why}"))
        }
        None => Err(anyhow!("the answer has no status")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_one_message() {
        let taken = |body: &[u8]| message(body).map(<[u8]>::to_vec).map_err(|it| it.code);
        assert_eq!(taken(&[0, 0, 0, 0, 0]), Ok(vec![]));
        assert_eq!(taken(&[0, 0, 0, 0, 2, 7, 8]), Ok(vec![7, 8]));
        assert_eq!(taken(&[1, 0, 0, 0, 0]), Err(Code::Unimplemented));
        for body in [
            &[][..],
            &[0, 0, 0, 0],
            &[0, 0, 0, 0, 1],
            &[0, 0, 0, 0, 0, 7],
            &[0, 255, 255, 255, 255, 7],
        ] {
            assert_eq!(taken(body), Err(Code::InvalidArgument), "{body:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_a_header_whatever_it_names() {
        let status = Status::new(Code::NotFound, "no \"ä\"\n100%");
        let headers = status.headers();
        assert_eq!(headers[STATUS], "5");
        assert_eq!(headers[MESSAGE], "no \"%C3%A4\"%0A100%25");
    }
}
