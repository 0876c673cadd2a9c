//! Pages of long lists. A token is stateless: it names the position of the next resource.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use crate::error::{ApiError, Code};
use ec2::{Ec2Error, ErrorCode};

const PREFIX: &str = "position:";

/// Returns the page that a request asks for, and the token of the next page.
pub fn page<T>(
    mut resources: Vec<T>,
    max_results: Option<usize>,
    token: Option<&str>,
    names_ids: bool,
) -> Result<(Vec<T>, Option<String>), ApiError> {
    if names_ids && max_results.is_some() {
        let what = "The parameter MaxResults cannot be used with the IDs of resources.";
        return Err(Ec2Error::refused(ErrorCode::InvalidParameterCombination, what, None).into());
    }
    if max_results == Some(0) {
        return Err(Ec2Error::invalid_parameter("MaxResults", 0, "it must be at least 1.").into());
    }
    let start = token.map_or(Ok(0), position)?;
    let mut rest = resources.split_off(start.min(resources.len()));
    let Some(limit) = max_results.filter(|limit| *limit < rest.len()) else { return Ok((rest, None)) };
    rest.truncate(limit);
    Ok((rest, Some(BASE64_URL_SAFE_NO_PAD.encode(format!("{PREFIX}{}", start + limit)))))
}

fn position(token: &str) -> Result<usize, ApiError> {
    let decoded = BASE64_URL_SAFE_NO_PAD.decode(token).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let position = decoded.and_then(|text| text.strip_prefix(PREFIX)?.parse().ok());
    position.ok_or_else(|| ApiError::new(Code::InvalidNextToken, "The token of the next page is invalid."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_every_resource_once() {
        let (mut token, mut seen, mut pages) = (None, Vec::new(), 0);
        loop {
            let (resources, next) = page((0..12).collect(), Some(5), token.as_deref(), false).unwrap();
            seen.extend(resources);
            pages += 1;
            token = next;
            if token.is_none() {
                break;
            }
        }
        assert_eq!((seen, pages), ((0..12).collect::<Vec<_>>(), 3));
    }

    #[test]
    fn empty_page_is_refused() {
        let refused = page(vec![1], Some(0), None, false).unwrap_err();
        assert_eq!(refused.code, Code::Ec2(ErrorCode::InvalidParameterValue));
    }

    #[test]
    fn bad_tokens_and_limits_with_ids_are_refused() {
        assert_eq!(page(vec![1], None, Some("%%"), false).unwrap_err().code, Code::InvalidNextToken);
        let refused = page(vec![1], Some(5), None, true).unwrap_err();
        assert_eq!(refused.code, Code::Ec2(ErrorCode::InvalidParameterCombination));
        assert_eq!(
            page(vec![1, 2], None, Some(&BASE64_URL_SAFE_NO_PAD.encode("position:9")), false).unwrap(),
            (vec![], None)
        );
    }
}
