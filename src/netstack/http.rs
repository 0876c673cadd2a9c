//! The subset of HTTP/1.1 (RFC 9112) that the metadata service needs: requests with headers, responses with a length.

/// Maximum size of the request line and headers in bytes.
pub const HEAD_LIMIT: usize = 8 << 10;
const HEADERS: usize = 64;
/// Maximum size of a body in bytes. The body is ignored.
const BODY_LIMIT: usize = 64 << 10;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpRequest {
    pub method: String,
    /// The path, excluding the query.
    pub path: String,
    /// Names are in lower case.
    pub headers: Vec<(String, String)>,
    /// True if another request may follow on the connection.
    pub keeps_alive: bool,
}

impl HttpRequest {
    /// Returns the value of the first header called `name`, which must be in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The request and its size in bytes.
    HttpRequest(HttpRequest, usize),
    Incomplete,
    /// The request is invalid. The connection must be closed after this response.
    Bad(Answer),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub content_type: &'static str,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(body: impl Into<String>) -> Answer {
        Answer { status: 200, content_type: "text/plain", headers: Vec::new(), body: body.into().into_bytes() }
    }

    /// Returns an error response with the same body as EC2's.
    pub fn error(status: u16) -> Answer {
        let reason = reason(status);
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>\n<html><head><title>{status} - {reason}</title></head>\
             <body><h1>{status} - {reason}</h1></body></html>\n"
        );
        Answer { content_type: "text/html", ..Answer::text(body) }.with_status(status)
    }

    fn with_status(self, status: u16) -> Answer {
        Answer { status, ..self }
    }

    /// Returns the response's bytes, without the body if `head_only`.
    pub fn encode(&self, keeps_alive: bool, head_only: bool) -> Vec<u8> {
        let mut head = format!(
            "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nServer: EC2ws\r\nConnection: {}\r\n",
            self.status,
            reason(self.status),
            self.content_type,
            self.body.len(),
            if keeps_alive { "keep-alive" } else { "close" },
        );
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        if !head_only {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    }
}

pub fn parse(bytes: &[u8]) -> Parsed {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let head = match request.parse(bytes) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_LIMIT => return Parsed::Incomplete,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => return Parsed::Bad(Answer::error(431)),
        Err(httparse::Error::Version) => return Parsed::Bad(Answer::error(505)),
        Err(_) => return Parsed::Bad(Answer::error(400)),
    };
    if head > HEAD_LIMIT {
        return Parsed::Bad(Answer::error(431));
    }
    let headers: Vec<(String, String)> = request
        .headers
        .iter()
        .map(|header| (header.name.to_ascii_lowercase(), String::from_utf8_lossy(header.value).trim().to_string()))
        .collect();
    let find = |name: &str| headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    if find("transfer-encoding").is_some() {
        return Parsed::Bad(Answer::error(501));
    }
    let body = match find("content-length").map(str::parse::<usize>) {
        None => 0,
        Some(Ok(length)) if length <= BODY_LIMIT => length,
        Some(Ok(_)) => return Parsed::Bad(Answer::error(413)),
        Some(Err(_)) => return Parsed::Bad(Answer::error(400)),
    };
    let Some(length) = head.checked_add(body).filter(|length| *length <= bytes.len()) else {
        return Parsed::Incomplete;
    };
    let says = |word: &str| find("connection").is_some_and(|value| value.to_ascii_lowercase().contains(word));
    let keeps_alive = if request.version == Some(1) { !says("close") } else { says("keep-alive") };
    let target = request.path.unwrap_or("/");
    // The target can be an absolute URL, the form for proxies (RFC 9112, section 3.2.2).
    let target = target.strip_prefix("http://").map_or(target, |rest| rest.find('/').map_or("/", |at| &rest[at..]));
    let path = target.split(['?', '#']).next().unwrap_or("/").to_string();
    let method = request.method.unwrap_or_default().to_string();
    Parsed::HttpRequest(HttpRequest { method, path, headers, keeps_alive }, length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pipelined_request_is_parsed_up_to_its_end() {
        let bytes = b"GET /latest/meta-data/?x=1 HTTP/1.1\r\nHost: a\r\nX-Token:  b \r\n\r\nGET";
        let Parsed::HttpRequest(request, length) = parse(bytes) else { panic!() };
        assert_eq!(length, bytes.len() - 3);
        assert_eq!((request.method.as_str(), request.path.as_str()), ("GET", "/latest/meta-data/"));
        assert_eq!(request.header("x-token"), Some("b"));
        assert!(request.keeps_alive);
        for cut in 0..length {
            assert_eq!(parse(&bytes[..cut]), Parsed::Incomplete);
        }
    }

    #[test]
    fn keep_alive_follows_version_and_connection_header() {
        let keeps = |text: &str| match parse(text.as_bytes()) {
            Parsed::HttpRequest(request, _) => request.keeps_alive,
            other => panic!("{other:?}"),
        };
        assert!(!keeps("GET / HTTP/1.0\r\n\r\n"));
        assert!(keeps("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"));
        assert!(!keeps("GET / HTTP/1.1\r\nConnection: close\r\n\r\n"));
    }

    #[test]
    fn body_counts_toward_request_length() {
        let text = b"PUT / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc";
        assert_eq!(parse(&text[..text.len() - 1]), Parsed::Incomplete);
        assert!(matches!(parse(text), Parsed::HttpRequest(_, length) if length == text.len()));
    }

    #[test]
    fn invalid_requests_return_error_status() {
        let status = |text: &str| match parse(text.as_bytes()) {
            Parsed::Bad(answer) => answer.status,
            other => panic!("{other:?}"),
        };
        assert_eq!(status("\u{1}\r\n\r\n"), 400);
        assert_eq!(status(&format!("GET /{} HTTP/1.1\r\n", "x".repeat(HEAD_LIMIT))), 431);
        assert_eq!(status(&format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(HEADERS + 1))), 431);
        assert_eq!(status("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"), 501);
        assert_eq!(status("PUT / HTTP/1.1\r\nContent-Length: 999999999\r\n\r\n"), 413);
        assert_eq!(status("PUT / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"), 400);
        assert_eq!(status("GET / HTTP/3.0\r\n\r\n"), 505);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_exceed_parsed_length(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Parsed::HttpRequest(_, length) = parse(&bytes) {
                prop_assert!(length <= bytes.len());
            }
        }
    }
}
