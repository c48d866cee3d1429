//! Connection strings, of both kinds.
#![no_main]

use holdfast_postgres::ConnInfo;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match text.parse::<ConnInfo>() {
        Ok(info) => {
            assert!(!info.endpoints().is_empty());
            for endpoint in info.endpoints() {
                endpoint.socket();
            }
        }
        // It is shown to people.
        Err(error) => drop(error.to_string()),
    }
});
