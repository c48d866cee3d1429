//! Maps of snapshots: what is accepted can be written and read again, and leads nowhere outside.
#![no_main]

use holdfast_format::map::{Map, is_safe_path};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(map) = Map::decode(bytes) else { return };
    assert!(map.entries.iter().all(|entry| is_safe_path(&entry.path)));
    assert_eq!(Map::decode(&map.encode()).as_ref(), Ok(&map));
});
