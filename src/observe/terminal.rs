//! Knows what the terminal can show: colours and the width of its lines.

use std::fmt;
use std::io::IsTerminal;
use std::sync::LazyLock;

use console::{Term, measure_text_width};

use crate::config::Sources;

/// The widths that the layout is made for, in columns.
const NARROWEST: usize = 60;
const WIDEST: usize = 200;

/// The streams that people may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Out,
    Err,
}

impl Stream {
    fn is_terminal(self) -> bool {
        match self {
            Self::Out => std::io::stdout().is_terminal(),
            Self::Err => std::io::stderr().is_terminal(),
        }
    }

    /// Returns true if the stream shows colours.
    pub(crate) fn is_coloured(self) -> bool {
        static COLOURED: LazyLock<[bool; 2]> = LazyLock::new(|| {
            let env = Sources::from_process(None, Vec::new()).env;
            let variable = |name: &str| env.get(name).map(String::as_str).filter(|value| !value.is_empty());
            [Stream::Out, Stream::Err].map(|stream| is_coloured(variable, stream.is_terminal()))
        });
        COLOURED[self as usize]
    }

    /// Returns the number of columns of a line; `None` if the stream is no terminal.
    pub(crate) fn columns(self) -> Option<usize> {
        let term = match self {
            Self::Out => Term::stdout(),
            Self::Err => Term::stderr(),
        };
        let (_, columns) = term.size_checked().filter(|_| self.is_terminal())?;
        Some(usize::from(columns).clamp(NARROWEST, WIDEST))
    }
}

/// NO_COLOR is the strongest, then CLICOLOR_FORCE and CLICOLOR, as clap has it.
fn is_coloured<'a>(variable: impl Fn(&str) -> Option<&'a str>, is_terminal: bool) -> bool {
    if variable("NO_COLOR").is_some() {
        return false;
    }
    if variable("CLICOLOR_FORCE").is_some_and(|value| value != "0") {
        return true;
    }
    is_terminal && variable("CLICOLOR") != Some("0") && variable("TERM") != Some("dumb")
}

/// What a colour says. Everything makes sense without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Somebody must act.
    Bad,
    /// Somebody should look.
    Doubtful,
    Good,
    /// A heading, or a word that leads a line.
    Strong,
}

impl Tone {
    fn code(self) -> &'static str {
        match self {
            Self::Bad => "1;31",
            Self::Doubtful => "33",
            Self::Good => "32",
            Self::Strong => "1",
        }
    }
}

/// Something in a colour, if stdout shows colours.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Painted<T> {
    shown: T,
    tone: Option<Tone>,
}

/// Colours what goes to stdout.
pub(crate) fn paint<T: fmt::Display>(tone: Tone, shown: T) -> Painted<T> {
    paint_for(Stream::Out, tone, shown)
}

/// Colours what goes to this stream.
pub(crate) fn paint_for<T: fmt::Display>(stream: Stream, tone: Tone, shown: T) -> Painted<T> {
    Painted { shown, tone: stream.is_coloured().then_some(tone) }
}

impl<T: fmt::Display> fmt::Display for Painted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(tone) = self.tone else { return self.shown.fmt(f) };
        write!(f, "\u{1b}[{}m", tone.code())?;
        self.shown.fmt(f)?;
        f.write_str("\u{1b}[0m")
    }
}

/// The beginnings of lines with commands to paste. The terminal itself breaks these, so that they stay one line when they are copied.
const TO_PASTE: [&str; 5] = ["next:", "fix:", "hint:", "next ", "export "];

/// Breaks long lines at spaces. The rest of a line stands four columns further in than its beginning.
pub(crate) fn wrapped(text: &str, columns: usize) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    for line in text.split_inclusive('\n') {
        let words = line.trim_start_matches(' ');
        let is_to_paste = TO_PASTE.iter().any(|start| words.starts_with(start));
        if is_to_paste || measure_text_width(line.trim_end()) <= columns {
            out.push_str(line);
        } else {
            wrap(&mut out, line, line.len() - words.len() + 4, columns);
        }
    }
    out
}

fn wrap(out: &mut String, line: &str, indent: usize, columns: usize) {
    let mut at = 0;
    for word in line.split_inclusive(' ') {
        let width = measure_text_width(word.trim_end());
        if at > indent && at + width > columns {
            while out.ends_with(' ') {
                out.pop();
            }
            out.push('\n');
            out.push_str(&" ".repeat(indent));
            at = indent;
        }
        out.push_str(word);
        at += measure_text_width(word.trim_end_matches('\n'));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_shown_where_they_are_wanted() {
        let coloured = |set: &[(&str, &'static str)], is_terminal| {
            let found = |name: &str| set.iter().find(|(set, _)| *set == name).map(|(_, value)| *value);
            is_coloured(found, is_terminal)
        };
        assert!(coloured(&[], true) && !coloured(&[], false));
        assert!(coloured(&[("CLICOLOR_FORCE", "1")], false) && !coloured(&[("CLICOLOR_FORCE", "0")], false));
        assert!(!coloured(&[("NO_COLOR", "1"), ("CLICOLOR_FORCE", "1")], true));
        assert!(!coloured(&[("CLICOLOR", "0")], true) && !coloured(&[("TERM", "dumb")], true));
    }

    #[test]
    fn no_line_is_wider_than_the_terminal_and_commands_stay_whole() {
        let text = "short\n  - a line of many words that has to be broken somewhere\n    next: outbox-relay resume --all, when it is over\n";
        let wrapped = wrapped(text, 30);
        let lines: Vec<_> = wrapped.lines().collect();
        assert_eq!(lines[..3], ["short", "  - a line of many words that", "      has to be broken"]);
        assert_eq!(lines[lines.len() - 1], "    next: outbox-relay resume --all, when it is over");
        let longest = lines[..lines.len() - 1].iter().map(|line| line.len()).max();
        assert!(longest <= Some(30), "{wrapped}");
        assert_eq!(wrapped.split_whitespace().collect::<Vec<_>>(), text.split_whitespace().collect::<Vec<_>>());
    }
}
