//! `pg_control`, as it is and with a right checksum.
#![no_main]

use holdfast_pgformat::{ControlFile, control};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    look(bytes);
    for at in [288, 292] {
        let mut bytes = bytes.to_vec();
        let Some(content) = bytes.get(..at) else { continue };
        let crc = crc32c::crc32c(content);
        let Some(place) = bytes.get_mut(at..at + 4) else { continue };
        place.copy_from_slice(&crc.to_le_bytes());
        look(&bytes);
    }
});

fn look(bytes: &[u8]) {
    if let Ok(control) = ControlFile::parse(bytes) {
        control.major_version();
    }
    if let Ok(copy) = control::unstartable(bytes) {
        // It is as good as before, but for where it begins.
        assert_eq!(ControlFile::parse(bytes).is_ok(), ControlFile::parse(&copy).is_ok());
    }
}
