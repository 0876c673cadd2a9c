//! Answers one request: checks who sent it, decodes it, runs its action and encodes the result. No input or output.

use serde_json::Value;

use crate::codec::query::Parameters;
use crate::codec::{json, validate, xml};
use crate::error::{ApiError, Code};
use crate::model::{self, Lookup, Operation, Protocol, Service};
use crate::sigv4::{AccessKey, Authorization, Request};

/// Content types of responses.
const XML: &str = "text/xml;charset=UTF-8";

/// Runs actions. Called for verified and valid requests only.
pub trait Actions: Send + Sync {
    /// `service` is the signing name. `input` has the operation's input shape, and the result its output shape.
    fn run(&self, service: &'static str, action: &str, input: Value) -> Result<Value, ApiError>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub content_type: String,
    pub body: String,
}

/// The facts that requests are checked against.
#[derive(Debug, Clone)]
pub struct Identity {
    pub key: AccessKey,
    /// The one region of the data directory.
    pub region: &'static str,
    /// Values of the `Host` header that address this server.
    pub hosts: Vec<String>,
}

/// Answers a request. `request_id` is in the response.
pub fn answer(
    request: &Request,
    identity: &Identity,
    actions: &dyn Actions,
    now: jiff::Timestamp,
    request_id: &str,
) -> Response {
    if let Err(error) = check_origin(request, identity) {
        return refusal(&error, request_id);
    }
    // Errors are sent as the service of the signature's scope sends them, and as EC2 does without a signature.
    let authorization = match Authorization::of(request) {
        Ok(authorization) => authorization,
        Err(error) => return failure(model::ec2(), &error.for_service("ec2"), request_id),
    };
    let name = model::SIGNING_NAMES.iter().find(|name| **name == authorization.scope.service);
    let Some((name, service)) = name.and_then(|name| Some((*name, model::by_signing_name(name)?))) else {
        return failure(model::ec2(), &unknown_service(&authorization.scope.service), request_id);
    };
    let verified = authorization.verify(request, &identity.key, now).map_err(|error| error.for_service(name));
    let result = verified.and_then(|()| {
        check_region(&authorization.scope.region, identity)?;
        let (action, operation, input) = decode(service, request)?;
        validate::check(service, operation.input.as_deref(), &input)?;
        let output = actions.run(name, &action, input)?;
        encode(service, &action, operation, output, request_id)
    });
    result.unwrap_or_else(|error| failure(service, &error, request_id))
}

/// Refuses requests of web pages: those for another host (DNS rebinding), and those that a browser sent.
fn check_origin(request: &Request, identity: &Identity) -> Result<(), ApiError> {
    let header = |name: &str| request.headers.iter().find(|(given, _)| given.eq_ignore_ascii_case(name));
    let refused = |what: String| Err(ApiError::new(Code::AuthFailure, what));
    match header("host") {
        Some((_, host)) if identity.hosts.iter().any(|known| known.eq_ignore_ascii_case(host)) => {}
        host => {
            let host = host.map_or("none", |(_, host)| host);
            let what = format!("The Host header must be one of {}, not {host}.", identity.hosts.join(", "));
            return refused(what);
        }
    }
    match header("origin") {
        Some((_, origin)) => refused(format!("Requests of web pages are refused (Origin: {origin}).")),
        None => Ok(()),
    }
}

fn unknown_service(name: &str) -> ApiError {
    let known = model::SIGNING_NAMES.join(", ");
    ApiError::new(Code::AuthFailure, format!("Wisp does not serve '{name}'. It serves {known}."))
}

fn check_region(region: &str, identity: &Identity) -> Result<(), ApiError> {
    // IAM is global: its clients sign for us-east-1 or for the partition.
    if region == identity.region || region == "aws-global" {
        return Ok(());
    }
    let what =
        format!("This data directory has one region, {}, but the request was signed for {region}.", identity.region);
    Err(ApiError::new(Code::AuthFailure, what))
}

fn decode<'a>(service: &'a Service, request: &Request) -> Result<(String, &'a Operation, Value), ApiError> {
    if service.metadata.protocol == Protocol::Json {
        let target = request.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("x-amz-target"));
        let prefix = service.metadata.target_prefix.as_deref().unwrap_or_default();
        let action = target.and_then(|(_, target)| target.strip_prefix(prefix)?.strip_prefix('.'));
        let action = action.ok_or_else(|| missing_action(&format!("the header X-Amz-Target: {prefix}.ACTION")))?;
        let operation = find(service, action)?;
        let input = json::decode(service, operation.input.as_deref(), request.body)?;
        return Ok((action.to_string(), operation, input));
    }
    let form = match request.method {
        "POST" if request.query.is_empty() => request.body,
        "GET" => request.query.as_bytes(),
        "POST" => {
            return Err(ApiError::new(Code::MalformedQueryString, "A POST request must not have a query string."));
        }
        method => return Err(ApiError::new(Code::InvalidAction, format!("The method {method} is not supported."))),
    };
    let parameters = Parameters::parse(form)?;
    let action = parameters.common("Action").ok_or_else(|| missing_action("the parameter Action"))?.to_string();
    let operation = find(service, &action)?;
    let input = parameters.decode(service, operation.input.as_deref())?;
    Ok((action, operation, input))
}

fn missing_action(what: &str) -> ApiError {
    ApiError::new(Code::MissingAction, format!("The request must have {what}."))
}

fn find<'a>(service: &'a Service, action: &str) -> Result<&'a Operation, ApiError> {
    match service.operation(action) {
        Lookup::Found(operation) => Ok(operation),
        Lookup::NotServed => {
            let what = format!("Wisp does not support the action {action} of {}.", service.metadata.service_id);
            Err(ApiError::new(Code::Ec2(ec2::ErrorCode::UnsupportedOperation), what))
        }
        Lookup::Unknown => {
            let action: String = action.chars().take(100).collect();
            Err(ApiError::new(Code::InvalidAction, format!("The action {action} is not valid for this web service.")))
        }
    }
}

fn encode(
    service: &Service,
    action: &str,
    operation: &Operation,
    output: Value,
    request_id: &str,
) -> Result<Response, ApiError> {
    let body = match service.metadata.protocol {
        Protocol::Json => json::encode(service, operation.output.as_deref(), output)?,
        Protocol::Ec2 | Protocol::Query => xml::response(service, action, operation, &output, request_id)?,
    };
    Ok(Response { status: 200, content_type: content_type(service), body })
}

fn content_type(service: &Service) -> String {
    match &service.metadata.json_version {
        Some(version) => format!("application/x-amz-json-{version}"),
        None => XML.into(),
    }
}

/// Returns an error response in the format of a service.
pub fn failure(service: &Service, error: &ApiError, request_id: &str) -> Response {
    if error.code == Code::InternalError {
        log::error!("request {request_id}: {}", error.message);
    }
    let body = match service.metadata.protocol {
        Protocol::Json => serde_json::json!({"__type": error.code.as_str(), "message": error.message}).to_string(),
        Protocol::Ec2 | Protocol::Query => xml::error(service, error, request_id),
    };
    Response { status: error.code.status(), content_type: content_type(service), body }
}

/// Returns a response to a request that is refused before its service is known.
fn refusal(error: &ApiError, request_id: &str) -> Response {
    Response { status: 403, ..failure(model::ec2(), error, request_id) }
}

/// Returns the response to a request without a signature, for a server that could not read the request.
pub fn unreadable(error: &ApiError, request_id: &str) -> Response {
    failure(model::ec2(), error, request_id)
}
