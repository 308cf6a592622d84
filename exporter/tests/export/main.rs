//! Exports of small made-up models through the public API.

mod model;
mod output;
mod refusals;
mod replacing;
mod variants;
