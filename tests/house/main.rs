//! The house in order: what a compiler does not check of the sources and documents of the workspace. Starts no server.
//!
//! - `codes`: the codes of warnings and errors, in the sources and in the runbook
//! - `reference`: the pages of docs/reference that the binary writes

mod codes;
mod reference;
