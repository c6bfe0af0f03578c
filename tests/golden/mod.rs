//! Numbers that other programs computed, each file with the snippet that made it.

#![allow(dead_code, reason = "each test program that includes this module uses a part of it")]

pub(crate) mod pytorch;
