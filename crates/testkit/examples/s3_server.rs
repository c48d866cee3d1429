//! An S3 server for measurements, with a proxy before it that delays its answers: `s3_server MILLISECONDS`.
//!
//! Says in one line of JSON where it is. Answers each line on stdin with one: `bucket NAME` makes a bucket, `requests` says how many
//! there were through the proxy. Ends with its stdin.

#![allow(clippy::print_stdout, reason = "that is how it answers")]

use std::time::Duration;

use holdfast_testkit::{Ceph, DelayProxy};

fn main() {
    let delay = std::env::args().nth(1).and_then(|text| text.parse().ok()).expect("usage: s3_server MILLISECONDS");
    let ceph = Ceph::start();
    let proxy = DelayProxy::start(ceph.port(), Duration::from_millis(delay));
    println!(
        "{{\"endpoint\": \"{}\", \"access_key\": \"{}\", \"secret_key\": \"{}\"}}",
        proxy.endpoint(),
        ceph.access_key,
        ceph.secret_key
    );
    for line in std::io::stdin().lines() {
        match line.expect("stdin can be read").split_once(' ') {
            Some(("bucket", name)) => {
                ceph.make_bucket(name);
                println!("{{}}");
            }
            _ => println!("{{\"requests\": {}}}", proxy.requests()),
        }
    }
}
