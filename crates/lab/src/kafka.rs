//! Runs a real Apache Kafka: one KRaft node on 127.0.0.1 that ends with this process.
//!
//! - `jars`: fetches Kafka, and other programs in Java, once into a cache outside the repository
//! - `broker`: the process and its configuration
//! - `login`: a broker's side of the login with IAM
//! - `rights`: sets the ACLs of a topic
//! - `tools`: Kafka's command-line tools
//! - `topics`: creates, deletes and reads topics

mod broker;
mod jars;
mod login;
mod rights;
mod tools;
mod topics;

pub use broker::{KafkaOptions, RealKafka};
pub use jars::{Unavailable, fetched};
pub use login::signed_url_handler;
pub use rights::MINDS_RIGHTS;
pub use tools::install_tools;
pub use topics::Record;
