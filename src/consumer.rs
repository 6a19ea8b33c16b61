//! The other half: one effect per event.

mod inbox;

pub use inbox::{Inbox, Once};
