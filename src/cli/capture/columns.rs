//! Reads a list of columns from the command line: `id,name`, or `"a,b",c` for a name with a comma.

/// Names of columns, as they are in the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Columns(pub(super) Vec<String>);

/// Parses a list. Names are taken as they are, in quotes or not; two quotes in a quoted name are one.
pub(super) fn parse(text: &str) -> Result<Columns, String> {
    let (mut columns, mut name) = (Vec::new(), String::new());
    let (mut quoted, mut was_quoted) = (false, false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                name.push('"');
            }
            '"' if quoted || name.is_empty() => {
                quoted = !quoted;
                was_quoted = true;
            }
            ',' if !quoted => {
                columns.push(std::mem::take(&mut name));
                was_quoted = false;
            }
            _ if was_quoted && !quoted => return Err("expected a comma after a quoted name".to_owned()),
            c => name.push(c),
        }
    }
    columns.push(name);
    if quoted || columns.iter().any(String::is_empty) {
        return Err("expected COLUMN or COLUMN,COLUMN; a name with a comma in double quotes".to_owned());
    }
    Ok(Columns(columns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_split_at_commas_outside_of_quotes() {
        let parsed = |text| parse(text).map(|columns| columns.0).ok();
        let names = |names: &[&str]| Some(names.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(parsed("id"), names(&["id"]));
        assert_eq!(parsed("id,Name"), names(&["id", "Name"]));
        assert_eq!(parsed(r#""a,b",c"#), names(&["a,b", "c"]));
        assert_eq!(parsed(r#""a""b""#), names(&["a\"b"]));
        assert_eq!(parsed("it's"), names(&["it's"]));
        for bad in ["", ",", "a,", "\"a", "\"a\"b", "\"\""] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }
}
