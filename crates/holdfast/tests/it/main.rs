//! Tests of the program as its users run it.

mod configuration;
mod exit_codes;
mod frequent;
mod help;
mod keys;
mod lifecycle;
mod remarks;
#[path = "../shared/run.rs"]
mod run;
mod sandbox;
mod server_refusals;
