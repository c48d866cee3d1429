use std::io;

use holdfast_repository::RepositoryError;
use holdfast_store::{Cause, StoreError};
use holdfast_types::EpochId;

use super::*;
use crate::failure::CommandError;

fn store_error(cause: Cause) -> RepositoryError {
    RepositoryError::Store(StoreError { operation: "create", name: "packs/x".into(), location: "/r".into(), cause })
}

fn shown(source: impl Into<Failure>) -> (Report, Exit) {
    let failure: Failure =
        CommandError::While { what: "could not back up `chat`".into(), source: source.into() }.into();
    report(failure.as_ref())
}

#[test]
fn the_report_has_causes_once_and_a_hint() {
    let (report, exit) = shown(store_error(Cause::Full(io::ErrorKind::StorageFull.into())));
    assert_eq!(exit, Exit::NoSpace);
    assert_eq!(
        as_text(&report),
        "error: could not back up `chat`\n  caused by: could not create `packs/x` in /r\n  caused by: no space is left\n\
         hint: Make room in /r. What was complete is safe; nothing incomplete is ever listed."
            .replace("\nhint", "\n  caused by: no storage space\nhint")
    );
    let json: serde_json::Value = serde_json::from_str(&as_json(&report)).unwrap();
    assert_eq!(json["exit_code"], 13);
    assert_eq!(json["causes"].as_array().map(Vec::len), Some(3));
}

#[test]
fn errors_have_their_exit_codes() {
    let cases: [(Failure, Exit); 7] = [
        (store_error(Cause::Away).into(), Exit::NoRepository),
        (RepositoryError::NotARepository { location: "/r".into() }.into(), Exit::NoRepository),
        (RepositoryError::AlreadyARepository { location: "/r".into() }.into(), Exit::InTheWay),
        (RepositoryError::WrongKey { epoch: EpochId::new([1; 16]) }.into(), Exit::WrongKey),
        (holdfast_runtime::Cancelled.into(), Exit::Cancelled),
        (io::Error::from(io::ErrorKind::StorageFull).into(), Exit::NoSpace),
        (io::Error::other("anything else").into(), Exit::Failed),
    ];
    for (error, expected) in cases {
        let text = error.to_string();
        assert_eq!(shown(error).1, expected, "{text}");
    }
}
