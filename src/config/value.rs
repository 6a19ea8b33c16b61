//! What the text of a setting is read into.

use std::time::Duration;

use super::duration::GivenDuration;
use super::setting::Kind;
use super::{brokers, bytes, duration, log_level};

/// A type that settings are read into.
pub(super) trait Value: Sized {
    /// Reads the text of a setting of that kind. An `Err` says what is wrong; an empty one leaves it to the kind to say what is accepted.
    fn parse(kind: &Kind, text: &str) -> Result<Self, String>;
}

impl Value for usize {
    fn parse(kind: &Kind, text: &str) -> Result<Self, String> {
        let (number, min, max) = match kind {
            Kind::Integer { min, max } if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                (text.parse().ok(), min, max)
            }
            Kind::Bytes { min, max } => (bytes::parse(text), min, max),
            _ => return Err(String::new()),
        };
        let number = number.filter(|number| (min..=max).contains(&number));
        number.and_then(|number| usize::try_from(number).ok()).ok_or_else(String::new)
    }
}

impl Value for GivenDuration {
    fn parse(kind: &Kind, text: &str) -> Result<Self, String> {
        match (kind, duration::parse(text)) {
            (Kind::Duration { min, max }, Some(value)) if (min..=max).contains(&&*value) => Ok(value),
            _ => Err(String::new()),
        }
    }
}

impl Value for Duration {
    fn parse(kind: &Kind, text: &str) -> Result<Self, String> {
        GivenDuration::parse(kind, text).map(GivenDuration::length)
    }
}

impl Value for bool {
    fn parse(_: &Kind, text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| String::new())
    }
}

impl Value for String {
    fn parse(kind: &Kind, text: &str) -> Result<Self, String> {
        let fits = match kind {
            Kind::Brokers => return brokers::parse(text),
            Kind::LogLevel => return log_level::directives(text),
            // Postgres cuts longer names in silence, and two of them may become one.
            Kind::Identifier => (1..=63).contains(&text.len()) && !text.contains('\0'),
            Kind::Text { max_len } => (1..=*max_len).contains(&text.len()) && !text.contains(char::is_control),
            _ => false,
        };
        if fits { Ok(text.to_owned()) } else { Err(String::new()) }
    }
}

/// Makes a type of settings that accept one of a few words; the first is the default.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $(#[$first_meta:meta])* $first:ident = $first_word:literal, $($(#[$doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub enum $name {
            $(#[$first_meta])*
            #[default]
            $first,
            $($(#[$doc])* $variant,)*
        }

        impl $name {
            /// What the setting accepts.
            pub(in crate::config) const WORDS: &[&str] = &[$first_word, $($word),*];

            /// Returns the word of this value.
            pub fn word(self) -> &'static str {
                match self {
                    Self::$first => $first_word,
                    $(Self::$variant => $word,)*
                }
            }
        }

        impl $crate::config::value::Value for $name {
            fn parse(_: &$crate::config::Kind, text: &str) -> Result<Self, String> {
                match text {
                    $first_word => Ok(Self::$first),
                    $($word => Ok(Self::$variant),)*
                    _ => Err(String::new()),
                }
            }
        }
    };
}

pub(super) use words;
