//! The key ceremony as people go through it: keys on machines of their own, signatures as files,
//! OpenSSL on the other side, and devices that follow.

#![allow(clippy::unwrap_used)]

mod delegation;
mod desk;
#[path = "../operator/mod.rs"]
mod operator;
mod private_keys;
mod signing;
