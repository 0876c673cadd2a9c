//! The instance metadata service at 169.254.169.254, as in EC2. Version 2 requires a token; version 1 can be disabled.

mod server;
mod token;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::http::{Answer, HttpRequest};
use machine::network::MetadataConfig;
pub use server::Server;
use token::Tokens;

/// EC2's versions of the metadata tree. Here, all have the same content.
const VERSIONS: [&str; 28] = [
    "1.0",
    "2007-01-19",
    "2007-03-01",
    "2007-08-29",
    "2007-10-10",
    "2007-12-15",
    "2008-02-01",
    "2008-09-01",
    "2009-04-04",
    "2011-01-01",
    "2011-05-01",
    "2012-01-12",
    "2014-02-25",
    "2014-11-05",
    "2015-10-20",
    "2016-04-19",
    "2016-06-30",
    "2016-09-02",
    "2018-03-28",
    "2018-08-17",
    "2018-09-24",
    "2019-10-01",
    "2020-10-27",
    "2021-01-03",
    "2021-03-23",
    "2021-07-15",
    "2022-09-24",
    "2024-04-11",
];
const LATEST: &str = "latest";
const TOKEN: &str = "x-aws-ec2-metadata-token";
const TOKEN_TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
/// Valid lifetimes of a token in seconds, up to six hours.
const TOKEN_SECONDS: std::ops::RangeInclusive<u64> = 1..=21600;

#[derive(Debug)]
pub struct Metadata {
    config: MetadataConfig,
    tokens: Tokens,
}

impl Metadata {
    pub fn new(config: MetadataConfig) -> Metadata {
        Metadata { config, tokens: Tokens::default() }
    }

    /// Replaces the content and the options. Tokens stay valid.
    pub fn set(&mut self, config: MetadataConfig) {
        self.config = config;
    }

    /// Returns the configured hop limit for the response to a `PUT`, which may contain a token; otherwise none.
    pub fn hop_limit(&self, request: &HttpRequest) -> Option<u8> {
        (request.method == "PUT").then_some(self.config.hop_limit.max(1))
    }

    pub fn answer(&mut self, request: &HttpRequest, now: Instant) -> Answer {
        if !self.config.enabled {
            return Answer::error(403);
        }
        let segments: Vec<&str> = request.path.split('/').filter(|segment| !segment.is_empty()).collect();
        if request.method == "PUT" {
            return self.put(request, &segments, now);
        }
        if !matches!(request.method.as_str(), "GET" | "HEAD") || is_token_path(&segments) {
            return Answer::error(405);
        }
        // A token in the request must be valid, even if tokens are optional.
        let may = match request.header(TOKEN) {
            Some(token) => self.tokens.is_good(token, now),
            None => !self.config.tokens_required,
        };
        if !may {
            return Answer::error(401);
        }
        match segments.split_first() {
            None => Answer::text([&VERSIONS[..], &[LATEST]].concat().join("\n")),
            Some((version, rest)) if *version == LATEST || VERSIONS.contains(version) => self.get(rest),
            Some(_) => Answer::error(404),
        }
    }

    fn put(&mut self, request: &HttpRequest, segments: &[&str], now: Instant) -> Answer {
        if !is_token_path(segments) {
            return Answer::error(405);
        }
        // Like EC2, refuses token requests through a proxy, because they may come from outside the instance.
        if request.header("x-forwarded-for").is_some() {
            return Answer::error(403);
        }
        let seconds = request.header(TOKEN_TTL).and_then(|text| text.parse().ok());
        let Some(seconds) = seconds.filter(|seconds| TOKEN_SECONDS.contains(seconds)) else {
            return Answer::error(400);
        };
        let Some(token) = self.tokens.make(Duration::from_secs(seconds), now) else { return Answer::error(400) };
        Answer { headers: vec![("X-aws-ec2-metadata-token-ttl-seconds", seconds.to_string())], ..Answer::text(token) }
    }

    fn get(&self, path: &[&str]) -> Answer {
        let listed = |names: &[&str]| Answer::text(names.join("\n"));
        match path {
            [] if self.config.user_data.is_some() => listed(&["dynamic", "meta-data", "user-data"]),
            [] => listed(&["dynamic", "meta-data"]),
            ["meta-data", rest @ ..] => self.meta_data(&rest.join("/")),
            ["user-data"] => self.user_data(),
            ["dynamic"] => listed(&["instance-identity/"]),
            ["dynamic", "instance-identity"] => listed(&["document"]),
            ["dynamic", "instance-identity", "document"] => Answer::text(self.config.identity_document.as_str()),
            _ => Answer::error(404),
        }
    }

    fn user_data(&self) -> Answer {
        let decoded = self.config.user_data.as_ref().and_then(|text| STANDARD.decode(text).ok());
        let answer = |body| Answer { content_type: "application/octet-stream", body, ..Answer::text("") };
        decoded.map_or_else(|| Answer::error(404), answer)
    }

    /// Returns a value, or a directory listing in which directories end with a slash.
    fn meta_data(&self, path: &str) -> Answer {
        if let Some(value) = self.config.tree.get(path) {
            return Answer::text(value.as_str());
        }
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        let below = self.config.tree.range(prefix.clone()..).take_while(|(known, _)| known.starts_with(&prefix));
        let names: BTreeSet<String> =
            below.map(|(known, value)| listed_name(path, &known[prefix.len()..], value)).collect();
        if names.is_empty() {
            // A key is listed as `NUMBER=NAME`, a directory that lists only one format.
            let is_key = |number: &str| self.config.tree.contains_key(&format!("public-keys/{number}/openssh-key"));
            return match path.strip_prefix("public-keys/").and_then(|rest| rest.split_once('=')) {
                Some((number, _)) if is_key(number) => Answer::text("openssh-key"),
                _ => Answer::error(404),
            };
        }
        Answer::text(names.into_iter().collect::<Vec<_>>().join("\n"))
    }
}

/// Returns the name in a directory listing for the path `below` the directory. A key is listed as its number and
/// comment, which is the rest of its line and may contain spaces.
fn listed_name(dir: &str, below: &str, value: &str) -> String {
    match below.split_once('/') {
        Some((number, _)) if dir == "public-keys" => {
            format!("{number}={}", value.trim_end().splitn(3, ' ').nth(2).unwrap_or("key"))
        }
        Some((name, _)) => format!("{name}/"),
        None => below.to_string(),
    }
}

fn is_token_path(segments: &[&str]) -> bool {
    matches!(segments, [version, "api", "token"] if *version == LATEST)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn config() -> MetadataConfig {
        let values = [
            ("ami-id", "ami-1"),
            ("instance-id", "i-1"),
            ("placement/availability-zone", "us-east-1a"),
            ("placement/region", "us-east-1"),
            ("public-keys/0/openssh-key", "ssh-ed25519 AAAA my own key\n"),
            ("tags/instance/Name", "web"),
        ];
        MetadataConfig {
            enabled: true,
            tokens_required: false,
            hop_limit: 1,
            tree: values.map(|(path, value)| (path.to_string(), value.to_string())).into(),
            identity_document: "{}".into(),
            user_data: Some(STANDARD.encode(b"#!/bin/sh\n")),
        }
    }

    struct Bench {
        metadata: Metadata,
        now: Instant,
    }

    fn bench(config: MetadataConfig) -> Bench {
        Bench { metadata: Metadata::new(config), now: Instant::now() }
    }

    impl Bench {
        fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
            let headers = headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
            let request = HttpRequest { method: method.into(), path: path.into(), headers, keeps_alive: true };
            let answer = self.metadata.answer(&request, self.now);
            (answer.status, String::from_utf8(answer.body).unwrap())
        }

        fn get(&mut self, path: &str) -> (u16, String) {
            self.ask("GET", path, &[])
        }

        fn token(&mut self, seconds: &str) -> (u16, String) {
            self.ask("PUT", "/latest/api/token", &[(TOKEN_TTL, seconds)])
        }
    }

    #[test]
    fn listed_metadata_paths_exist() {
        let mut bench = bench(config());
        let (_, top) = bench.get("/latest/meta-data/");
        assert_eq!(top, "ami-id\ninstance-id\nplacement/\npublic-keys/\ntags/");
        assert_eq!(bench.get("/latest/meta-data/placement"), (200, "availability-zone\nregion".into()));
        assert_eq!(bench.get("/2009-04-04/meta-data/placement/region"), (200, "us-east-1".into()));
        assert_eq!(bench.get("/latest/meta-data/public-keys/"), (200, "0=my own key".into()));
        assert_eq!(bench.get("/latest/meta-data/public-keys/0/"), (200, "openssh-key".into()));
        assert_eq!(bench.get("/latest/meta-data/public-keys/0=my own key"), (200, "openssh-key".into()));
        let key = "/latest/meta-data/public-keys/0/openssh-key";
        assert_eq!(bench.get(key), (200, "ssh-ed25519 AAAA my own key\n".into()));
        let mut left = vec!["/latest/meta-data/".to_string()];
        let mut seen = 0;
        while let Some(dir) = left.pop() {
            for name in bench.get(&dir).1.lines() {
                let path = format!("{dir}{name}");
                assert_eq!(bench.get(&path).0, 200, "{path}");
                seen += 1;
                left.extend(name.ends_with('/').then_some(path));
            }
        }
        assert!(seen > 8, "{seen}");
    }

    #[test]
    fn versions_user_data_and_identity_document_are_served() {
        let mut bench = bench(config());
        assert!(bench.get("/").1.starts_with("1.0\n2007-01-19\n") && bench.get("/").1.ends_with("\nlatest"));
        assert_eq!(bench.get("/latest/"), (200, "dynamic\nmeta-data\nuser-data".into()));
        assert_eq!(bench.get("/latest/user-data"), (200, "#!/bin/sh\n".into()));
        assert_eq!(bench.get("/latest/dynamic/instance-identity/document"), (200, "{}".into()));
        for path in ["/latest/meta-data/spot/instance-action", "/latest/meta-data/ami", "/1999-01-01/", "/latest/x"] {
            assert_eq!(bench.get(path).0, 404, "{path}");
        }
        let mut none = config();
        none.user_data = None;
        bench.metadata.set(none);
        assert_eq!((bench.get("/latest/user-data").0, bench.get("/latest").1.as_str()), (404, "dynamic\nmeta-data"));
    }

    #[test]
    fn required_token_is_checked_and_expires() {
        let mut required = config();
        required.tokens_required = true;
        let mut bench = bench(required);
        for wrong in ["0", "21601", "-1", "x", ""] {
            assert_eq!(bench.token(wrong).0, 400, "{wrong}");
        }
        assert_eq!(bench.ask("PUT", "/latest/api/token", &[]).0, 400);
        let forwarded = [(TOKEN_TTL, "60"), ("x-forwarded-for", "10.0.0.1")];
        assert_eq!(bench.ask("PUT", "/latest/api/token", &forwarded).0, 403);
        assert_eq!(bench.get("/latest/api/token").0, 405);
        assert_eq!(bench.ask("PUT", "/latest/meta-data/", &[(TOKEN_TTL, "60")]).0, 405);
        assert_eq!(bench.ask("POST", "/latest/meta-data/", &[]).0, 405);
        let (status, token) = bench.token("60");
        assert_eq!((status, token.len()), (200, 56));
        assert_eq!(bench.get("/latest/meta-data/").0, 401);
        assert_eq!(bench.ask("GET", "/latest/meta-data/ami-id", &[(TOKEN, &token)]), (200, "ami-1".into()));
        assert_eq!(bench.ask("GET", "/latest/meta-data/ami-id", &[(TOKEN, "x")]).0, 401);
        bench.now += Duration::from_secs(61);
        assert_eq!(bench.ask("GET", "/latest/meta-data/ami-id", &[(TOKEN, &token)]).0, 401);
    }

    #[test]
    fn invalid_token_is_refused_even_if_optional() {
        let mut bench = bench(config());
        assert_eq!(bench.get("/latest/meta-data/ami-id").0, 200);
        assert_eq!(bench.ask("GET", "/latest/meta-data/ami-id", &[(TOKEN, "x")]).0, 401);
        let mut off = config();
        off.enabled = false;
        bench.metadata.set(off);
        assert_eq!((bench.get("/").0, bench.token("60").0), (403, 403));
    }
}
