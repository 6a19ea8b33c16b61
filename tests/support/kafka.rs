//! A real Apache Kafka: one KRaft node on 127.0.0.1, which ends with us.
//!
//! - `jars`: fetches Kafka once, into a cache outside the repository.
//! - `broker`: the process and its configuration.
//! - `rights`: who may do what with a topic.
//! - `topics`: creates, deletes and reads topics.

#[path = "kafka/broker.rs"]
mod broker;
#[path = "kafka/jars.rs"]
mod jars;
#[path = "kafka/rights.rs"]
mod rights;
#[path = "kafka/topics.rs"]
mod topics;

pub(crate) use broker::RealKafka;
pub(crate) use jars::Unavailable;
pub(crate) use rights::MINDS_RIGHTS;
pub(crate) use topics::Record;
