//! Errors of a request before its handler runs, and those of handlers: EC2's code, a sentence and the HTTP status.

use std::fmt;

use ec2::{Ec2Error, ErrorCode};

/// An error that the client receives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    pub code: Code,
    pub message: String,
}

/// An error code: EC2's, or one that all AWS services share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    Ec2(ErrorCode),
    /// EC2's code for a request without a valid signature. Other services have `IncompleteSignature`,
    /// `InvalidClientTokenId` and `SignatureDoesNotMatch`.
    AuthFailure,
    IncompleteSignature,
    InvalidClientTokenId,
    SignatureDoesNotMatch,
    RequestExpired,
    InvalidAction,
    MissingAction,
    /// The parameters cannot be parsed.
    MalformedQueryString,
    UnknownParameter,
    /// A JSON body does not fit the operation's input.
    SerializationException,
    RequestEntityTooLarge,
    RequestLimitExceeded,
    InvalidNextToken,
    /// A resource of a kind that Wisp does not have. Its code is EC2's.
    NotFound(&'static str),
    InternalError,
}

impl Code {
    pub fn as_str(self) -> &'static str {
        match self {
            Code::Ec2(code) => code.as_str(),
            Code::AuthFailure => "AuthFailure",
            Code::IncompleteSignature => "IncompleteSignature",
            Code::InvalidClientTokenId => "InvalidClientTokenId",
            Code::SignatureDoesNotMatch => "SignatureDoesNotMatch",
            Code::RequestExpired => "RequestExpired",
            Code::InvalidAction => "InvalidAction",
            Code::MissingAction => "MissingAction",
            Code::MalformedQueryString => "MalformedQueryString",
            Code::UnknownParameter => "UnknownParameter",
            Code::SerializationException => "SerializationException",
            Code::RequestEntityTooLarge => "RequestEntityTooLarge",
            Code::RequestLimitExceeded => "RequestLimitExceeded",
            Code::InvalidNextToken => "InvalidNextToken",
            Code::NotFound(code) => code,
            Code::InternalError => "InternalError",
        }
    }

    /// Returns the HTTP status. Clients retry 500 and 503.
    pub fn status(self) -> u16 {
        match self {
            Code::Ec2(ErrorCode::DryRunOperation) => 412,
            Code::Ec2(ErrorCode::InsufficientInstanceCapacity) | Code::InternalError => 500,
            Code::AuthFailure => 401,
            Code::InvalidClientTokenId | Code::SignatureDoesNotMatch => 403,
            Code::RequestEntityTooLarge => 413,
            Code::RequestLimitExceeded => 503,
            _ => 400,
        }
    }

    /// Returns true if the server, and not the request, is at fault.
    pub fn is_receiver(self) -> bool {
        self.status() >= 500
    }
}

impl ApiError {
    pub fn new(code: Code, message: impl Into<String>) -> ApiError {
        ApiError { code, message: message.into() }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.message)
    }
}

impl std::error::Error for ApiError {}

impl From<Ec2Error> for ApiError {
    fn from(error: Ec2Error) -> ApiError {
        let message = match error.hint() {
            Some(hint) => format!("{} {hint}", error.message()),
            None => error.message().to_string(),
        };
        ApiError::new(Code::Ec2(error.code()), message)
    }
}
