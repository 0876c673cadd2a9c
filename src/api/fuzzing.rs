//! Entry point of the fuzz target for requests. See `docs/fuzzing.md`.

use crate::codec::query::Parameters;
use crate::codec::{json, validate};
use crate::model::{self, Lookup, Protocol};

/// Decodes and validates `data`: the index of an action, and a request body.
pub fn requests(data: &[u8]) {
    let [first, second, body @ ..] = data else { return };
    let service = model::SIGNING_NAMES[usize::from(*first) % model::SIGNING_NAMES.len()];
    let Some(service) = model::by_signing_name(service) else { return };
    let operations: Vec<_> = service.operations().collect();
    let Some((action, _)) = operations.get(usize::from(*second) % operations.len().max(1)) else { return };
    let Lookup::Found(operation) = service.operation(action) else { return };
    let input = operation.input.as_deref();
    let decoded = match service.metadata.protocol {
        Protocol::Json => json::decode(service, input, body),
        _ => Parameters::parse(body).and_then(|parameters| parameters.decode(service, input)),
    };
    if let Ok(value) = decoded {
        let _ = validate::check(service, input, &value);
    }
}
