//! Manifests and summaries: what is accepted can be written and read again.
#![no_main]

use holdfast_format::manifest::{Manifest, Summary};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(manifest) = serde_json::from_slice::<Manifest>(bytes) {
        let again = serde_json::to_vec(&manifest).unwrap();
        assert_eq!(serde_json::from_slice::<Manifest>(&again).unwrap(), manifest);
    }
    if let Ok(summary) = serde_json::from_slice::<Summary>(bytes) {
        let again = serde_json::to_vec(&summary).unwrap();
        assert_eq!(serde_json::from_slice::<Summary>(&again).unwrap(), summary);
    }
});
