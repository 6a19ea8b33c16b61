//! Shows text that came from users: columns of rows, names of topics, headers of records, names of sessions, messages of servers.
//!
//! A terminal obeys control characters, a log file and a list are read line by line, and some characters turn the direction of writing. So
//! text from users is escaped and cut wherever people read it. JSON keeps it whole.
//!
//! - [`name`], [`sentence`]: for a line that people read
//! - [`shell`], [`flag`]: for a command that people paste
//! - [`alike`]: the known names for a name that is not known
//! - [`counted`]: a number with its noun
//! - [`harmless`]: the last barrier, for everything that is printed

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::{self, Write};

/// The most characters of a name, such as an entity's id.
const NAME: usize = 200;

/// The most characters of an error, a reason or a payload.
const SENTENCE: usize = 2_000;

/// Returns bytes as text if they are UTF-8, else in base16. Escapes nothing.
pub(crate) fn of_bytes(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("\\x".to_owned(), |text, byte| text + &format!("{byte:02x}")),
    }
}

/// Text that came from a user. Displays it on one line, escaped and cut.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UserText<'a> {
    text: &'a str,
    most: usize,
}

/// Shows a name: an id, a type, a topic, a key.
pub(crate) fn name(text: &str) -> UserText<'_> {
    UserText { text, most: NAME }
}

/// Shows an error, a reason, or a line that is made of several texts.
pub(crate) fn sentence(text: &str) -> UserText<'_> {
    UserText { text, most: SENTENCE }
}

impl UserText<'_> {
    /// Cuts it to at most this number of characters.
    pub(crate) fn at_most(self, most: usize) -> Self {
        Self { most, ..self }
    }
}

impl fmt::Display for UserText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = String::with_capacity(self.text.len().min(self.most));
        let is_cut = self.text.chars().nth(self.most).is_some();
        let kept = if is_cut { self.most.saturating_sub(1) } else { self.most };
        self.text.chars().take(kept).for_each(|c| put(&mut shown, c));
        if is_cut {
            shown.push('…');
        }
        f.pad(&shown)
    }
}

/// Returns true for a character that a terminal or an editor obeys instead of showing it: control characters, marks that turn the
/// direction of writing, and characters without a width.
fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// Escapes as JSON does, so that JSON stays JSON.
fn put(out: &mut String, c: char) {
    match c {
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        c if is_obeyed(c) => {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Cannot fail, because a String takes everything.
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
        c => out.push(c),
    }
}

/// Escapes everything that a terminal obeys, except line ends, tabs, and the colours that this program uses itself.
pub(crate) fn harmless(text: &str) -> Cow<'_, str> {
    let is_kept = |c| matches!(c, '\n' | '\t') || !is_obeyed(c);
    if text.chars().all(is_kept) {
        return Cow::Borrowed(text);
    }
    let (mut out, mut rest) = (String::with_capacity(text.len() + 16), text);
    while let Some(c) = rest.chars().next() {
        let len = colour(rest).unwrap_or(c.len_utf8());
        let (this, next) = rest.split_at(len);
        if len > c.len_utf8() || is_kept(c) {
            out.push_str(this)
        } else {
            put(&mut out, c)
        }
        rest = next;
    }
    Cow::Owned(out)
}

/// Returns the length of the colour that the text begins with, such as `ESC[1;31m`.
fn colour(text: &str) -> Option<usize> {
    const KNOWN: [&str; 13] = ["", "0", "1", "2", "3", "4", "31", "32", "33", "34", "35", "36", "39"];
    let inside = text.strip_prefix("\u{1b}[")?;
    let end = inside.find('m')?;
    inside[..end].split(';').all(|number| KNOWN.contains(&number)).then_some(2 + end + 1)
}

/// The most names that a hint lists.
const ALIKE_SHOWN: usize = 10;

/// Returns known names as a list for a hint, the most similar to `wanted` first; `None` if there are none.
pub(crate) fn alike<'a>(wanted: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let known: BTreeSet<String> = known.into_iter().map(|known| name(known).to_string()).collect();
    let (wanted, mut known) = (name(wanted).to_string(), Vec::from_iter(known));
    known.sort_by_cached_key(|known| strsim::damerau_levenshtein(known, &wanted));
    known.truncate(ALIKE_SHOWN);
    (!known.is_empty()).then(|| known.join(", "))
}

/// Returns a number with its noun, such as `1 event` and `2 events`.
pub(crate) fn counted<N: fmt::Display + PartialEq + From<u8>>(number: N, noun: &str) -> String {
    if number == N::from(1) { format!("{number} {noun}") } else { format!("{number} {noun}s") }
}

/// Quotes a text so that a shell takes it as one word, whatever it contains.
pub(crate) fn shell(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_@%+:,./-".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    if !text.chars().any(is_obeyed) {
        return format!("'{}'", text.replace('\'', r"'\''"));
    }
    // Bash, zsh, ksh and POSIX of 2024 know this form. Octal digits are three, so what follows them cannot be taken for a fourth.
    let mut quoted = "$'".to_owned();
    for c in text.chars() {
        match c {
            '\'' | '\\' => quoted.extend(['\\', c]),
            c if is_obeyed(c) => {
                for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                    let _ = write!(quoted, "\\{byte:03o}");
                }
            }
            c => quoted.push(c),
        }
    }
    quoted + "'"
}

/// Returns a flag with its value, for a command to paste. A value that begins with a dash would be taken for a flag.
pub(crate) fn flag(flag: &str, value: &str) -> String {
    let separator = if value.starts_with('-') { '=' } else { ' ' };
    format!("{flag}{separator}{}", shell(value))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    const HOSTILE: &str = "a\u{1b}[2J\u{7}b\nc\r\u{202e}d\u{9b}1mé";

    #[test]
    fn text_from_users_is_one_line_that_a_terminal_only_shows() {
        assert_eq!(name(HOSTILE).to_string(), r"a\u001b[2J\u0007b\nc\r\u202ed\u009b1mé");
        assert_eq!(format!("[{:<4}]", name("é")), "[é   ]");
    }

    #[test]
    fn long_text_is_cut() {
        let long = "é".repeat(300);
        assert_eq!(name(&long).to_string().chars().count(), 200);
        assert!(name(&long).to_string().ends_with("é…"));
        assert_eq!(sentence(&long).to_string(), long);
        assert_eq!(name("abc").at_most(3).to_string(), "abc");
        assert_eq!(name("abcd").at_most(3).to_string(), "ab…");
    }

    #[test]
    fn the_barrier_lets_lines_and_our_own_colours_pass() {
        assert_eq!(harmless("plain\ttext\n"), "plain\ttext\n");
        assert_eq!(harmless("\u{1b}[1;31mred\u{1b}[0m\n"), "\u{1b}[1;31mred\u{1b}[0m\n");
        assert_eq!(harmless("\u{1b}[8mhidden \u{1b}]0;title\u{7}"), r"\u001b[8mhidden \u001b]0;title\u0007");
        assert_eq!(harmless("tag \u{e0041}"), r"tag \udb40\udc41");
    }

    #[test]
    fn json_behind_the_barrier_means_the_same() {
        let json = serde_json::to_string(HOSTILE).expect("a text");
        let passed = harmless(&json);
        assert!(!passed.contains(is_obeyed), "{passed}");
        assert_eq!(serde_json::from_str::<String>(&passed).expect("JSON"), HOSTILE);
    }

    #[test]
    fn a_value_that_looks_like_a_flag_stays_a_value() {
        assert_eq!(flag("--topic", "orders"), "--topic orders");
        assert_eq!(flag("--entity", "-x"), "--entity=-x");
        assert_eq!(flag("--entity", "it's"), r"--entity 'it'\''s'");
    }

    /// Runs bash, because dash does not know `$'…'`.
    fn unquoted(word: &str) -> String {
        let printed = Command::new("bash").arg("-c").arg(format!("printf %s {word}")).output().expect("bash");
        String::from_utf8(printed.stdout).expect("UTF-8")
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_shell_takes_a_quoted_text_as_it_is(text in "[^\u{0}]{0,12}") {
            prop_assert_eq!(unquoted(&shell(&text)), text);
        }

        #[test]
        fn nothing_that_a_terminal_obeys_is_left(text in "\\PC{0,5}[\u{0}-\u{1f}\u{80}-\u{a0}\u{202a}-\u{202e}]{0,5}\\PC{0,5}") {
            prop_assert!(!sentence(&text).to_string().contains(is_obeyed));
            let kept = |c: char| c != '\n' && c != '\t' && c != '\u{1b}' && is_obeyed(c);
            prop_assert!(!harmless(&text).contains(kept));
        }
    }

    #[test]
    fn hostile_text_survives_a_shell() {
        assert_eq!(unquoted(&shell(HOSTILE)), HOSTILE);
    }

    #[test]
    fn one_thing_is_not_many() {
        assert_eq!([0_i64, 1, 2].map(|number| counted(number, "event")), ["0 events", "1 event", "2 events"]);
        assert_eq!(counted(1_usize, "other table"), "1 other table");
    }

    #[test]
    fn known_names_are_listed_once_by_likeness_and_escaped() {
        let known = ["payments", "order-events", "ordering", "order-events", "a\nb"];
        assert_eq!(alike("ordr-events", known).as_deref(), Some("order-events, ordering, payments, a\\nb"));
        assert_eq!(alike("x", []), None);
        let many: Vec<String> = (0..50).map(|n| format!("t{n}")).collect();
        let listed = alike("t49", many.iter().map(String::as_str)).expect("a list");
        assert!(listed.starts_with("t49, ") && listed.split(", ").count() == ALIKE_SHOWN, "{listed}");
    }
}
