//! Buckets of real object stores: Ceph's gateway, directly and through a proxy that fails, and Azurite.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_store::{Bucket, Cause, Created, ObjectName, Place, Store as _, conformance};
use holdfast_testkit::{Azurite, Ceph, Fault, FaultProxy, Request};

fn place(ceph: &Ceph, bucket: &str, endpoint: String) -> Place {
    Place {
        address: format!("s3://{bucket}/some/prefix").parse().unwrap(),
        endpoint: Some(endpoint),
        region: None,
        path_style: true,
        ca_file: None,
        credentials: BTreeMap::from([
            ("access_key_id".to_owned(), ceph.access_key.clone()),
            ("secret_access_key".to_owned(), ceph.secret_key.clone()),
        ]),
    }
}

fn bucket(ceph: &Ceph, name: &str) -> Bucket {
    ceph.make_bucket(name);
    Bucket::open(&place(ceph, name, ceph.endpoint())).unwrap()
}

fn name(text: &str) -> ObjectName {
    text.parse().unwrap()
}

async fn conforms(ceph: &Ceph) {
    conformance::check(Arc::new(bucket(ceph, "conforms"))).await;
}

async fn a_bucket_that_is_not_there_is_no_empty_one(ceph: &Ceph) {
    let missing = Bucket::open(&place(ceph, "missing", ceph.endpoint())).unwrap();
    for error in [
        missing.create(&name("a"), Bytes::from_static(b"x")).await.unwrap_err(),
        missing.read(&name("a")).await.unwrap_err(),
        missing.size(&name("a")).await.unwrap_err(),
        missing.list("", None, 1).await.unwrap_err(),
        missing.folders("").await.unwrap_err(),
    ] {
        assert!(matches!(error.cause, Cause::NoBucket(_)), "{error:?}");
        assert!(!error.is_retryable());
    }
}

async fn a_wrong_key_is_refused_and_not_shown(ceph: &Ceph) {
    bucket(ceph, "locked");
    let mut place = place(ceph, "locked", ceph.endpoint());
    place.credentials.insert("secret_access_key".to_owned(), "not-the-one".to_owned());
    let error = Bucket::open(&place).unwrap().read(&name("a")).await.unwrap_err();
    assert!(matches!(error.cause, Cause::Refused(_)), "{error:?}");
    assert!(!format!("{error:?}").contains("not-the-one"));
}

/// A store behind a proxy that does to the nth request that `picks` what it is told to.
fn failing(
    ceph: &Ceph,
    bucket: &str,
    picks: impl Fn(&Request) -> bool + Send + Sync + 'static,
    fault: Fault,
) -> (Bucket, FaultProxy) {
    let proxy = FaultProxy::start(ceph.port(), move |request| if picks(request) { fault } else { Fault::None });
    (Bucket::open(&place(ceph, bucket, proxy.endpoint())).unwrap(), proxy)
}

async fn failures_are_told_from_absence(ceph: &Ceph) {
    let direct = bucket(ceph, "failing");
    direct.create(&name("there"), Bytes::from(vec![7; 100_000])).await.unwrap();
    let is_get = |request: &Request| request.method == "GET" && !request.path.contains("list-type");
    for fault in [Fault::Status(500), Fault::Status(503), Fault::Cut(300), Fault::Cut(0), Fault::Lost] {
        let (store, _proxy) = failing(ceph, "failing", is_get, fault);
        let error = store.read(&name("there")).await.unwrap_err();
        assert!(error.is_retryable(), "{fault:?}: {error:?}");
        assert_ne!(error.cause.to_string(), "", "{fault:?}");
        if let Fault::Status(status) = fault {
            assert!(error.cause.to_string().contains(&status.to_string()), "{error:?}");
        }
        let error = store.read_range(&name("there"), 10..20_000).await.unwrap_err();
        assert!(error.is_retryable(), "{fault:?}: {error:?}");
    }
    // A proxy in between that knows of nothing.
    let (store, _proxy) = failing(ceph, "failing", is_get, Fault::Status(404));
    let error = store.read(&name("there")).await.unwrap_err();
    assert!(!error.is_not_found() && error.is_retryable(), "{error:?}");
    let (store, _proxy) = failing(ceph, "failing", |_| true, Fault::Status(404));
    assert!(!store.read(&name("there")).await.unwrap_err().is_not_found());
    assert!(!store.read(&name("elsewhere")).await.unwrap_err().is_not_found());
    let (store, _proxy) = failing(ceph, "failing", |_| false, Fault::None);
    assert!(store.read(&name("elsewhere")).await.unwrap_err().is_not_found());
    assert_eq!(store.read(&name("there")).await.unwrap().len(), 100_000);
}

async fn a_creation_whose_answer_is_lost_may_have_been_done(ceph: &Ceph) {
    let direct = bucket(ceph, "lost");
    let (store, _proxy) = failing(ceph, "lost", |request| request.method == "PUT", Fault::Lost);
    let error = store.create(&name("a"), Bytes::from_static(b"x")).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    assert_eq!(direct.create(&name("a"), Bytes::from_static(b"x")).await.unwrap(), Created::Exists);
}

async fn each_operation_is_few_requests(ceph: &Ceph) {
    bucket(ceph, "counted");
    let proxy = FaultProxy::start(ceph.port(), |_| Fault::Delay(Duration::from_millis(1)));
    let store = Bucket::open(&place(ceph, "counted", proxy.endpoint())).unwrap();
    let counted = |before: u64| proxy.requests() - before;
    let before = proxy.requests();
    store.create(&name("a"), Bytes::from(vec![1; 20 << 20])).await.unwrap();
    assert_eq!(counted(before), 1, "creation");
    let before = proxy.requests();
    store.read(&name("a")).await.unwrap();
    assert_eq!(counted(before), 1, "reading");
    let before = proxy.requests();
    store.read_range(&name("a"), 5..1000).await.unwrap();
    assert_eq!(counted(before), 1, "reading a range");
    let before = proxy.requests();
    store.size(&name("a")).await.unwrap();
    assert_eq!(counted(before), 1, "looking up");
    let before = proxy.requests();
    store.list("", None, 100).await.unwrap();
    assert_eq!(counted(before), 1, "listing");
}

/// One after the other: each process of tests starts servers of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_is_a_store() {
    let ceph = Ceph::start();
    conforms(&ceph).await;
    a_bucket_that_is_not_there_is_no_empty_one(&ceph).await;
    a_wrong_key_is_refused_and_not_shown(&ceph).await;
    failures_are_told_from_absence(&ceph).await;
    a_creation_whose_answer_is_lost_may_have_been_done(&ceph).await;
    each_operation_is_few_requests(&ceph).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_a_store() {
    let azurite = Azurite::start();
    azurite.make_container("conforms");
    let place = |container: &str, key: &str| Place {
        address: format!("azblob://{container}/some/prefix").parse().unwrap(),
        endpoint: Some(azurite.endpoint()),
        region: None,
        path_style: false,
        ca_file: None,
        credentials: BTreeMap::from([
            ("account_name".to_owned(), azurite.account_name().to_owned()),
            ("account_key".to_owned(), key.to_owned()),
        ]),
    };
    conformance::check(Arc::new(Bucket::open(&place("conforms", azurite.account_key())).unwrap())).await;
    let missing = Bucket::open(&place("missing", azurite.account_key())).unwrap();
    for error in [
        missing.create(&name("a"), Bytes::from_static(b"x")).await.unwrap_err(),
        missing.read(&name("a")).await.unwrap_err(),
        missing.list("", None, 1).await.unwrap_err(),
    ] {
        assert!(matches!(error.cause, Cause::NoBucket(_)), "{error:?}");
    }
    let stranger = Bucket::open(&place("conforms", "bm90IHRoZSBrZXk=")).unwrap();
    let error = stranger.read(&name("a")).await.unwrap_err();
    assert!(matches!(error.cause, Cause::Refused(_)), "{error:?}");
    assert!(!format!("{error:?}").contains("bm90IHRoZSBrZXk"));
}
