//! Change maps: bytes that are accepted are the one encoding of what they say, also after merging with another.
#![no_main]

use holdfast_changes::ChangeMap;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((&at, bytes)) = bytes.split_first() else { return };
    let (one, other) = bytes.split_at(usize::from(at).min(bytes.len()));
    let Ok(map) = ChangeMap::decode(other) else { return };
    assert_eq!(map.encode(), other);
    if let Ok(one) = ChangeMap::decode(one) {
        let mut both = map.clone();
        both.merge(&one);
        assert_eq!(ChangeMap::decode(&both.encode()).as_ref(), Ok(&both));
        assert!(both.pages() >= map.pages().max(one.pages()));
    }
});
