//! The fault suite: what DESIGN calls faults, each against running relays.

fn main() {}
