//! The HTTP server. It listens on loopback, has no state of its own, and runs actions on blocking threads.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Request as HttpRequest, Response as HttpResponse, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::error::{ApiError, Code};
use crate::service::{Actions, Identity, Response, answer, unreadable};
use crate::sigv4::Request;

/// Maximum size of a request's body in bytes. EC2's largest requests have a few parameters of 16 KiB.
const MAX_BODY: usize = 512 * 1024;
/// Maximum time for the header and for the body of a request.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of connections. More of them wait to be accepted.
const MAX_CONNECTIONS: usize = 128;
/// Maximum number of actions at a time. More of them are throttled.
const MAX_ACTIONS: usize = 32;
/// Maximum time for requests in flight when the server ends.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(60);

struct Shared {
    identity: Identity,
    actions: Arc<dyn Actions>,
    running: Semaphore,
}

/// Serves until `shutdown` completes, and then finishes the requests in flight.
pub async fn serve(
    listener: TcpListener,
    identity: Identity,
    actions: Arc<dyn Actions>,
    shutdown: impl Future<Output = ()>,
) {
    let shared = Arc::new(Shared { identity, actions, running: Semaphore::new(MAX_ACTIONS) });
    let router = Router::new().fallback(handle).with_state(shared);
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let graceful = GracefulShutdown::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accept = async {
            let permit = Arc::clone(&connections).acquire_owned().await.expect("the semaphore is never closed");
            (permit, listener.accept().await)
        };
        let (permit, stream) = tokio::select! {
            (permit, accepted) = accept => match accepted {
                Ok((stream, _)) => (permit, stream),
                Err(error) => {
                    // For example, too many open files: the next connections may close some.
                    log::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = &mut shutdown => break,
        };
        let service = TowerToHyperService::new(router.clone());
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(READ_TIMEOUT)
            // A client that never reads could otherwise fill its socket with responses, and hold the connection.
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                log::debug!("connection: {error}");
            }
            drop(permit);
        });
    }
    if timeout(SHUTDOWN_TIMEOUT, graceful.shutdown()).await.is_err() {
        log::warn!("requests are still in flight after {} seconds", SHUTDOWN_TIMEOUT.as_secs());
    }
}

/// Returns the values of the `Host` header that address a server at `address`.
pub fn hosts(address: SocketAddr) -> Vec<String> {
    let port = address.port();
    [address.ip().to_string().as_str(), "localhost", "127.0.0.1", "[::1]"].map(|host| format!("{host}:{port}")).to_vec()
}

async fn handle(
    State(shared): State<Arc<Shared>>,
    request: HttpRequest<Body>,
) -> Result<HttpResponse<Body>, Infallible> {
    let request_id = request_id();
    let response = match read(request).await {
        Ok(request) => act(&shared, request, request_id.clone()).await,
        Err(error) => unreadable(&error, &request_id),
    };
    let built = HttpResponse::builder()
        .status(response.status)
        .header(header::CONTENT_TYPE, response.content_type)
        .header("x-amzn-RequestId", request_id)
        .body(Body::from(response.body));
    Ok(built.expect("status and headers are valid"))
}

/// A request whose body was received.
struct Received {
    method: String,
    path: String,
    query: String,
    headers: Vec<(String, String)>,
    body: Bytes,
}

async fn read(request: HttpRequest<Body>) -> Result<Received, ApiError> {
    let (parts, body) = request.into_parts();
    let collected = timeout(READ_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await;
    let incomplete = |what: String| ApiError::new(Code::MalformedQueryString, what);
    let body = match collected {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let what = format!("The body of the request exceeds {MAX_BODY} bytes.");
            return Err(ApiError::new(Code::RequestEntityTooLarge, what));
        }
        Ok(Err(error)) => return Err(incomplete(format!("Cannot read the body of the request: {error}."))),
        Err(_) => {
            let seconds = READ_TIMEOUT.as_secs();
            return Err(incomplete(format!("The body of the request did not arrive within {seconds} seconds.")));
        }
    };
    let text = |value: &header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    Ok(Received {
        method: parts.method.to_string(),
        path: parts.uri.path().to_string(),
        query: parts.uri.query().unwrap_or_default().to_string(),
        headers: parts.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
        body,
    })
}

async fn act(shared: &Arc<Shared>, request: Received, request_id: String) -> Response {
    let Ok(_running) = shared.running.try_acquire() else {
        let error = ApiError::new(Code::RequestLimitExceeded, "Request limit exceeded.");
        return unreadable(&error, &request_id);
    };
    let (worker, id) = (Arc::clone(shared), request_id.clone());
    let answered = tokio::task::spawn_blocking(move || {
        let Received { method, path, query, headers, body } = &request;
        let request = Request { method, path, query, headers, body };
        answer(&request, &worker.identity, worker.actions.as_ref(), jiff::Timestamp::now(), &id)
    });
    answered.await.unwrap_or_else(|error| {
        log::error!("request {request_id}: {error}");
        let error =
            ApiError::new(Code::InternalError, "An internal error has occurred. The server's log has the reason.");
        unreadable(&error, &request_id)
    })
}

/// Returns a random UUID (version 4), as AWS's request IDs are.
fn request_id() -> String {
    let mut bytes = [0_u8; 16];
    // Without flags and for so few bytes, getrandom fails only on a host that blocks the system call.
    getrandom(&mut bytes, GetRandomFlags::empty()).expect("the host provides random numbers");
    // Version 4, variant 1 (RFC 9562, section 5.4).
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let text = format!("{:032x}", u128::from_be_bytes(bytes));
    format!("{}-{}-{}-{}-{}", &text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_random_uuids() {
        let [first, second] = [request_id(), request_id()];
        assert_ne!(first, second);
        assert_eq!(first.len(), 36);
        assert_eq!(&first[14..15], "4");
        assert!("89ab".contains(&first[19..20]), "{first}");
    }
}
