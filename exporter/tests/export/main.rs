//! Exports of small made-up models through the public API.

mod convert;
mod model;
mod output;
mod precision;
mod refusals;
mod replacing;
mod variants;
