//! Translates the regular expression and the replacement of a topic route from Java to Postgres.
//!
//! The two languages choose differently between several matches, and some constructs exist in one only. So this module takes a subset in
//! which both agree: literals, `.`, classes, groups, and greedy quantifiers behind a single character. Everything else is refused by name.
//! The translation is also valid for Rust.

use event_outbox::names::literal;

use super::name::check_name;

/// A route by a regular expression: `route.topic.regex` and `route.topic.replacement`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    /// The pattern, which matches the whole text.
    pattern: String,
    /// True if the pattern is one group that takes everything.
    takes_all: bool,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    Group(usize),
}

impl Route {
    /// Translates a regular expression and a replacement.
    ///
    /// # Errors
    /// What cannot be kept, as the end of a sentence.
    pub(super) fn parse(regex: &str, replacement: &str) -> Result<Self, String> {
        check_name("pattern", regex)?;
        let pattern = Pattern::parse(regex)?;
        let parts = parse_replacement(replacement, &pattern.groups)?;
        let takes_all = pattern.text == "^([^\\n\\r]*)$";
        Ok(Self { pattern: pattern.text, takes_all, parts })
    }

    /// Returns the literal parts of the replacement, and whether it has groups as well.
    pub(super) fn literals(&self) -> (String, bool) {
        let mut text = String::new();
        for part in &self.parts {
            if let Part::Literal(literal) = part {
                text += literal;
            }
        }
        (text, self.parts.iter().any(|part| matches!(part, Part::Group(_))))
    }

    /// Returns the topic of a value as the trigger computes it.
    #[cfg(test)]
    pub(super) fn topic(&self, value: &str) -> String {
        let Some(found) = regex_lite::Regex::new(&self.pattern).ok().and_then(|regex| regex.captures(value)) else {
            return value.to_owned();
        };
        let part = |part: &Part| match part {
            Part::Literal(text) => text.clone(),
            Part::Group(group) => found.get(*group).map_or_else(String::new, |group| group.as_str().to_owned()),
        };
        self.parts.iter().map(part).collect()
    }

    /// Returns an expression for the topic, from an expression for the value. A value that does not match is the topic itself.
    pub(super) fn sql(&self, value: &str) -> String {
        let join = |group: &dyn Fn(usize) -> String| -> String {
            let part = |part: &Part| match part {
                Part::Literal(text) => literal(text),
                Part::Group(number) => group(*number),
            };
            let parts: Vec<_> = self.parts.iter().map(part).collect();
            if parts.is_empty() { "''".to_owned() } else { parts.join(" || ") }
        };
        if self.takes_all {
            return format!("({})", join(&|_| value.to_owned()));
        }
        let replaced = join(&|number| if number == 0 { value.to_owned() } else { format!("m[{number}]") });
        format!(
            "coalesce((select {replaced} from regexp_match({value}, {}) m where m is not null), {value})",
            literal(&self.pattern)
        )
    }
}

/// Returns true if a Java pattern matches the whole text.
///
/// # Errors
/// What the pattern contains that is not understood.
pub(super) fn matches(regex: &str, text: &str) -> Result<bool, String> {
    let pattern = Pattern::parse(regex)?.text;
    let compiled = regex_lite::Regex::new(&pattern).map_err(|error| error.to_string())?;
    Ok(compiled.is_match(text))
}

/// A translated regular expression with the names of its groups.
struct Pattern {
    text: String,
    groups: Vec<Option<String>>,
}

impl Pattern {
    fn parse(regex: &str) -> Result<Self, String> {
        let inner = regex.strip_prefix('^').unwrap_or(regex);
        let inner = match inner.strip_suffix('$') {
            Some(rest) if !rest.ends_with('\\') => rest,
            _ => inner,
        };
        let mut parser =
            Parser { rest: inner.chars().collect::<Vec<_>>().into_iter().peekable(), groups: Vec::new(), depth: 0 };
        let text = parser.alternatives()?;
        if parser.rest.next().is_some() {
            return Err("its parentheses are not balanced".to_owned());
        }
        let text = if text.contains('|') && parser.groups.is_empty() { format!("(?:{text})") } else { text };
        // A class that no group needs would shift the numbers, so alternatives outside of groups get one without a number.
        Ok(Self { text: format!("^{text}$"), groups: parser.groups })
    }
}

struct Parser {
    rest: std::iter::Peekable<std::vec::IntoIter<char>>,
    groups: Vec<Option<String>>,
    depth: usize,
}

impl Parser {
    /// Parses until the end of a group. Several alternatives must be literals of which none begins with another: Java takes the first that
    /// fits, Postgres the longest.
    fn alternatives(&mut self) -> Result<String, String> {
        let mut all = Vec::new();
        let mut plain = true;
        loop {
            let (text, is_literal) = self.sequence()?;
            all.push(text);
            plain &= is_literal;
            if self.rest.next_if_eq(&'|').is_none() {
                break;
            }
        }
        if let [only] = all.as_mut_slice() {
            return Ok(std::mem::take(only));
        }
        let overlap = all
            .iter()
            .enumerate()
            .any(|(n, one)| all.iter().enumerate().any(|(m, other)| n != m && other.starts_with(one.as_str())));
        if !plain || overlap {
            return Err("alternatives (|) are kept only between plain texts of which none begins with another".into());
        }
        if self.depth == 0 {
            return Ok(format!("(?:{})", all.join("|")));
        }
        Ok(all.join("|"))
    }

    fn sequence(&mut self) -> Result<(String, bool), String> {
        let (mut text, mut is_literal) = (String::new(), true);
        while let Some(next) = self.rest.peek().copied() {
            if matches!(next, '|' | ')') {
                break;
            }
            self.rest.next();
            match next {
                '(' => {
                    text += &self.group()?;
                    is_literal = false;
                    if self.rest.peek().is_some_and(|c| "*+?{".contains(*c)) {
                        return Err("a quantifier behind a group is not kept".into());
                    }
                    continue;
                }
                '.' => {
                    text += "[^\\n\\r]";
                    is_literal = false;
                }
                '[' => {
                    text += &self.class()?;
                    is_literal = false;
                }
                '\\' => {
                    let (escaped, plain) = escape(self.rest.next(), false)?;
                    text += &escaped;
                    is_literal &= plain;
                }
                '*' | '+' | '?' | '{' | '}' => return Err(format!("{next:?} has nothing to repeat")),
                '^' | '$' => return Err(format!("{next:?} is kept only at the ends of the pattern")),
                other => text.push(other),
            }
            let quantifier = self.quantifier()?;
            is_literal &= quantifier.is_empty();
            text += &quantifier;
        }
        Ok((text, is_literal))
    }

    fn group(&mut self) -> Result<String, String> {
        let mut open = "(".to_owned();
        if self.rest.next_if_eq(&'?').is_some() {
            match self.rest.next() {
                Some(':') => open = "(?:".to_owned(),
                Some('<') if self.rest.peek().is_some_and(char::is_ascii_alphabetic) => {
                    let mut name = String::new();
                    loop {
                        match self.rest.next() {
                            Some('>') => break,
                            Some(c) if c.is_ascii_alphanumeric() => name.push(c),
                            _ => return Err("the name of a group is not closed".into()),
                        }
                    }
                    self.groups.push(Some(name));
                }
                _ => return Err("groups that begin with (? are kept only as (?:…) and (?<name>…)".into()),
            }
        } else {
            self.groups.push(None);
        }
        self.depth += 1;
        let inner = self.alternatives()?;
        self.depth -= 1;
        match self.rest.next() {
            Some(')') => Ok(format!("{open}{inner})")),
            _ => Err("its parentheses are not balanced".into()),
        }
    }

    fn class(&mut self) -> Result<String, String> {
        let mut text = "[".to_owned();
        if self.rest.next_if_eq(&'^').is_some() {
            text.push('^');
        }
        let mut is_empty = true;
        loop {
            match self.rest.next() {
                Some(']') if !is_empty => {
                    text.push(']');
                    return Ok(text);
                }
                Some('\\') => text += &escape(self.rest.next(), true)?.0,
                Some('[' | ']') => return Err("a class inside of a class is not kept".into()),
                Some('&') if self.rest.peek() == Some(&'&') => return Err("&& in a class is not kept".into()),
                Some(c) => text.push(c),
                None => return Err("a class is not closed".into()),
            }
            is_empty = false;
        }
    }

    fn quantifier(&mut self) -> Result<String, String> {
        let quantifier = match self.rest.peek() {
            Some(c @ ('*' | '+' | '?')) => {
                let text = c.to_string();
                self.rest.next();
                text
            }
            Some('{') => {
                let mut text = String::new();
                loop {
                    match self.rest.next() {
                        Some('}') => break,
                        Some(c) if c.is_ascii_digit() || c == ',' || c == '{' => text.push(c),
                        _ => return Err("a quantifier in braces is not closed".into()),
                    }
                }
                text + "}"
            }
            _ => return Ok(String::new()),
        };
        match self.rest.peek() {
            Some('?') => Err("a quantifier that takes as little as possible (*?, +?) is not kept".into()),
            Some('+' | '*') => Err("a quantifier behind a quantifier is not kept".into()),
            _ => Ok(quantifier),
        }
    }
}

/// Translates an escape. Returns also whether it is a plain character.
fn escape(next: Option<char>, in_class: bool) -> Result<(String, bool), String> {
    let class = |inner: &str| if in_class { inner.to_owned() } else { format!("[{inner}]") };
    match next {
        Some('d') => Ok((class("0-9"), false)),
        Some('w') => Ok((class("A-Za-z0-9_"), false)),
        Some('s') => Ok((class(" \\t\\n\\r"), false)),
        Some('D') if !in_class => Ok(("[^0-9]".into(), false)),
        Some('W') if !in_class => Ok(("[^A-Za-z0-9_]".into(), false)),
        Some(c) if c.is_ascii_punctuation() => Ok((format!("\\{c}"), true)),
        Some(c) => Err(format!("the escape \\{c} is not kept")),
        None => Err("it ends in a backslash".into()),
    }
}

/// Parses a replacement of Java: `$1`, `${name}`, and a backslash before a character that stands for itself.
fn parse_replacement(text: &str, groups: &[Option<String>]) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = text.chars().peekable();
    while let Some(next) = rest.next() {
        match next {
            '\\' => literal.push(rest.next().ok_or("the replacement ends in a backslash")?),
            '$' => {
                let group = if rest.next_if_eq(&'{').is_some() {
                    let name: String = std::iter::from_fn(|| rest.next_if(|c| *c != '}')).collect();
                    rest.next().ok_or("the replacement has ${ without }")?;
                    let found = groups.iter().position(|group| group.as_deref() == Some(name.as_str()));
                    found.ok_or_else(|| format!("the pattern has no group named {name:?}"))? + 1
                } else {
                    let digit = rest.next().and_then(|c| c.to_digit(10));
                    let mut number = digit.ok_or("$ in the replacement must name a group: $1 or ${name}")? as usize;
                    while let Some(digit) = rest.peek().and_then(|c| c.to_digit(10)) {
                        let longer = number * 10 + digit as usize;
                        if longer > groups.len() {
                            break;
                        }
                        number = longer;
                        rest.next();
                    }
                    if number > groups.len() {
                        return Err(format!("the pattern has no group {number}"));
                    }
                    number
                };
                if !literal.is_empty() {
                    parts.push(Part::Literal(std::mem::take(&mut literal)));
                }
                parts.push(Part::Group(group));
            }
            other => literal.push(other),
        }
    }
    if !literal.is_empty() {
        parts.push(Part::Literal(literal));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(regex: &str, replacement: &str, value: &str) -> String {
        Route::parse(regex, replacement).expect(regex).topic(value)
    }

    #[test]
    fn the_usual_routes_are_kept() {
        assert_eq!(topic("(?<routedByValue>.*)", "outbox.event.${routedByValue}", "order"), "outbox.event.order");
        assert_eq!(topic("(.*)\\.(.*)", "$2-$1-events", "shop.order"), "order-shop-events");
        assert_eq!(topic("^shop\\.([a-z]+)$", "$1", "shop.order"), "order");
        assert_eq!(topic("^shop\\.([a-z]+)$", "$1", "other"), "other");
        assert_eq!(topic("(order|customer)-(.*)", "$1.$2", "customer-7"), "customer.7");
        assert_eq!(topic(".*", "all", "order"), "all");
        assert_eq!(topic("(\\d{1,3})(.*)", "$2_$1", "123order"), "order_123");
    }

    #[test]
    fn what_postgres_would_match_otherwise_is_refused() {
        for regex in [
            "(.*?)x",
            "(a|ab)(.*)",
            "(?i)order",
            "(?=x)x",
            "a*+",
            "(ab)*",
            "\\p{L}+",
            "\\bx",
            "[a-z&&[^b]]",
            "(",
            "a)",
            "x{2",
            "*",
            "a\\",
        ] {
            assert!(Route::parse(regex, "x").is_err(), "{regex}");
        }
        for replacement in ["$2", "${other}", "$", "x\\", "${open"] {
            assert!(Route::parse("(.*)", replacement).is_err(), "{replacement}");
        }
    }

    #[test]
    fn a_group_that_takes_everything_needs_no_regular_expression() {
        let route = Route::parse("(?<routedByValue>.*)", "outbox.event.${routedByValue}").expect("the default");
        assert_eq!(route.sql("r.\"type\""), "(E'outbox.event.' || r.\"type\")");
        assert!(Route::parse("x(.*)", "$1").expect("a pattern").sql("r.t").contains("regexp_match"));
    }
}
