//! A scripted peer against both roles: the examples of MS-SMBD, and the cases of
//! Microsoft's MS-SMBD test suite by their names.
#![allow(non_snake_case, reason = "the names of the suite's cases")]

mod credits;
mod data;
mod descriptors;
mod examples;
mod faults;
mod negotiate;
mod ours;
mod peer;
