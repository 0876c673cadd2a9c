//! IMDSv2 session tokens: random, with a lifetime.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use rustix::rand::{GetRandomFlags, getrandom};

/// Size of a token, which is encoded as 56 characters, as in EC2.
const BYTES: usize = 42;
/// Maximum number of tokens. A new one then replaces the oldest.
const LIMIT: usize = 1024;

#[derive(Debug, Default)]
pub struct Tokens {
    issued: VecDeque<Token>,
}

struct Token {
    bytes: [u8; BYTES],
    expires: Instant,
}

/// Keeps the secret out of logs.
impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("expires", &self.expires).finish_non_exhaustive()
    }
}

impl Tokens {
    /// Issues a token. Returns `None` if the kernel provides no random bytes.
    pub fn make(&mut self, lifetime: Duration, now: Instant) -> Option<String> {
        self.issued.retain(|token| token.expires > now);
        if self.issued.len() >= LIMIT {
            self.issued.pop_front();
        }
        let mut bytes = [0; BYTES];
        getrandom(&mut bytes, GetRandomFlags::empty()).ok().filter(|count| *count == BYTES)?;
        self.issued.push_back(Token { bytes, expires: now + lifetime });
        Some(URL_SAFE.encode(bytes))
    }

    /// Returns true for a valid token. The time of a comparison does not depend on the tokens' bytes.
    pub fn is_good(&self, text: &str, now: Instant) -> bool {
        let Ok(presented) = URL_SAFE.decode(text) else { return false };
        let Ok(presented) = <[u8; BYTES]>::try_from(presented) else { return false };
        let is = |token: &Token| {
            let difference = token.bytes.iter().zip(&presented).fold(0, |difference, (a, b)| difference | a ^ b);
            std::hint::black_box(difference) == 0
        };
        self.issued.iter().filter(|token| token.expires > now).fold(false, |found, token| found | is(token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_count_is_limited() {
        let (mut tokens, now) = (Tokens::default(), Instant::now());
        let first = tokens.make(Duration::from_secs(60), now).unwrap();
        assert!(tokens.is_good(&first, now));
        let last = (0..LIMIT).map(|_| tokens.make(Duration::from_secs(60), now).unwrap()).last().unwrap();
        assert!(!tokens.is_good(&first, now) && tokens.is_good(&last, now));
        assert_eq!(tokens.issued.len(), LIMIT);
        assert!(!format!("{tokens:?}").contains(&last));
    }
}
