//! The filters by which containerd asks for snapshots (containerd, package `filters`).
//!
//! ```text
//! filter   := selector {"," selector}            all of them must hold; of several filters, one
//! selector := path [operator value]              without an operator: whether there is such a field
//! path     := field {"." field}
//! field    := letters, digits, "_"  |  quoted
//! operator := "==" | "!=" | "~="                 "~=": the value is a regular expression that some part of the field matches
//! value    := what comes up to a comma or a space  |  quoted
//! quoted   := "…"                                with the escapes of Go; after "~=" also /…/ and |…|
//! ```
//!
//! A field that is not there is unequal to every value and matches what the empty string matches.

use regex::Regex;

/// Longest filter that is read, in bytes.
const MAXIMUM_LENGTH: usize = 64 << 10;

/// A filter that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the filter {filter:?} cannot be read: {reason} (at byte {position})")]
pub struct FilterError {
    /// As given.
    pub filter: String,
    /// Where it goes wrong.
    pub position: usize,
    /// What is wrong.
    pub reason: String,
}

/// What filters ask of: the value of a field, by the components of its path; nothing if there is none.
pub trait Fields {
    /// The value of that field.
    fn field(&self, path: &[String]) -> Option<&str>;
}

/// Filters, of which one must hold. None at all hold for everything.
#[derive(Clone, Debug, Default)]
pub struct Filters(Vec<Vec<Selector>>);

#[derive(Clone, Debug)]
struct Selector {
    path: Vec<String>,
    condition: Condition,
}

#[derive(Clone, Debug)]
enum Condition {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

impl Filters {
    /// Reads filters.
    ///
    /// # Errors
    /// If one of them is none.
    pub fn parse<T: AsRef<str>>(filters: &[T]) -> Result<Filters, FilterError> {
        filters
            .iter()
            .map(|filter| Parser::new(filter.as_ref()).filter())
            .collect::<Result<_, _>>()
            .map(Filters)
    }

    /// Whether one of them holds.
    pub fn match_fields(&self, fields: &impl Fields) -> bool {
        let holds = |filter: &Vec<Selector>| filter.iter().all(|selector| selector.holds(fields));
        self.0.is_empty() || self.0.iter().any(holds)
    }
}

impl Selector {
    fn holds(&self, fields: &impl Fields) -> bool {
        let value = fields.field(&self.path);
        match &self.condition {
            Condition::Present => value.is_some(),
            Condition::Equal(wanted) => value == Some(wanted),
            Condition::NotEqual(unwanted) => value.unwrap_or_default() != unwanted,
            Condition::Matches(pattern) => pattern.is_match(value.unwrap_or_default()),
        }
    }
}

struct Parser<'a> {
    filter: &'a str,
    position: usize,
}

impl<'a> Parser<'a> {
    fn new(filter: &'a str) -> Parser<'a> {
        Parser { filter, position: 0 }
    }

    fn wrong<T>(&self, reason: impl Into<String>) -> Result<T, FilterError> {
        let filter = self.filter.chars().take(256).collect();
        Err(FilterError { filter, position: self.position, reason: reason.into() })
    }

    fn rest(&self) -> &'a str {
        &self.filter[self.position..]
    }

    fn skip_spaces(&mut self) {
        self.position = self.filter.len() - self.rest().trim_start().len();
    }

    /// What comes next, behind spaces.
    fn peek(&mut self) -> Option<char> {
        self.skip_spaces();
        self.rest().chars().next()
    }

    /// As long a piece as its characters are such.
    fn take_while(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|character| !belongs(character)).unwrap_or(rest.len());
        self.position += end;
        &rest[..end]
    }

    fn filter(mut self) -> Result<Vec<Selector>, FilterError> {
        if self.filter.len() > MAXIMUM_LENGTH {
            return self.wrong(format!("it has more than {MAXIMUM_LENGTH} bytes"));
        }
        let mut selectors = vec![self.selector()?];
        loop {
            match self.peek() {
                None => return Ok(selectors),
                Some(',') => self.position += 1,
                Some(other) => return self.wrong(format!("{other:?} where a comma or the end should be")),
            }
            selectors.push(self.selector()?);
        }
    }

    fn selector(&mut self) -> Result<Selector, FilterError> {
        let mut path = vec![self.field()?];
        while self.peek() == Some('.') {
            self.position += 1;
            path.push(self.field()?);
        }
        let condition = match self.peek() {
            None | Some(',') => Condition::Present,
            Some(_) => self.condition()?,
        };
        Ok(Selector { path, condition })
    }

    fn field(&mut self) -> Result<String, FilterError> {
        match self.peek() {
            Some('"') => self.quoted('"'),
            Some(first) if is_of_field(first) => Ok(self.take_while(is_of_field).to_owned()),
            _ => self.wrong("a field should be here"),
        }
    }

    fn condition(&mut self) -> Result<Condition, FilterError> {
        match self.take_while(|character| matches!(character, '=' | '!' | '~')) {
            "==" => Ok(Condition::Equal(self.value(false)?)),
            "!=" => Ok(Condition::NotEqual(self.value(false)?)),
            "~=" => {
                let pattern = self.value(true)?;
                match Regex::new(&pattern) {
                    Ok(pattern) => Ok(Condition::Matches(pattern)),
                    Err(error) => self.wrong(error.to_string()),
                }
            }
            _ => self.wrong("an operator (== != ~=), a comma or the end should be here"),
        }
    }

    fn value(&mut self, is_pattern: bool) -> Result<String, FilterError> {
        match self.peek() {
            Some('"') => self.quoted('"'),
            Some(quote @ ('/' | '|')) if is_pattern => self.quoted(quote),
            Some('/' | '|') => self.wrong("such quotes are for patterns only (~=)"),
            // What would be taken for another operator, or a separator.
            Some('=' | '!' | '~' | ',' | '.') | None => self.wrong("a value should be here"),
            Some(_) => {
                let value = self.take_while(|character| {
                    character != ',' && !character.is_whitespace() && !character.is_control()
                });
                if value.is_empty() { self.wrong("a value should be here") } else { Ok(value.to_owned()) }
            }
        }
    }

    /// A quoted piece, whose quote comes next.
    fn quoted(&mut self, quote: char) -> Result<String, FilterError> {
        self.position += quote.len_utf8();
        let mut bytes = Vec::new();
        loop {
            let Some(character) = self.rest().chars().next() else {
                return self.wrong("a quote is not closed");
            };
            self.position += character.len_utf8();
            match character {
                '\n' => return self.wrong("a line ends within quotes"),
                '\\' => self.escape(quote, &mut bytes)?,
                _ if character == quote => break,
                _ => bytes.extend(character.encode_utf8(&mut [0; 4]).bytes()),
            }
        }
        // Names and labels are UTF-8, so nothing else is equal to any.
        String::from_utf8(bytes).or_else(|_| self.wrong("what is quoted is not UTF-8"))
    }

    /// An escape, behind its backslash.
    fn escape(&mut self, quote: char, bytes: &mut Vec<u8>) -> Result<(), FilterError> {
        let Some(character) = self.rest().chars().next() else { return self.wrong("a quote is not closed") };
        if !character.is_digit(8) {
            self.position += character.len_utf8();
        }
        let byte = match character {
            'a' => 0x07,
            'b' => 0x08,
            'f' => 0x0c,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 0x0b,
            '\\' => b'\\',
            '"' | '/' | '|' if character == quote => character as u8,
            '0'..='7' => match u8::try_from(self.number(8, 3)?) {
                Ok(byte) => byte,
                Err(_) => return self.wrong("no byte has that number"),
            },
            // Two hexadecimal digits: a byte.
            'x' => self.number(16, 2)? as u8,
            'u' | 'U' => {
                let number = self.number(16, if character == 'u' { 4 } else { 8 })?;
                let Some(character) = char::from_u32(number) else {
                    return self.wrong("no character has that number");
                };
                bytes.extend(character.encode_utf8(&mut [0; 4]).bytes());
                return Ok(());
            }
            _ => return self.wrong("there is no such escape"),
        };
        bytes.push(byte);
        Ok(())
    }

    /// A number of exactly so many digits.
    fn number(&mut self, base: u32, digits: usize) -> Result<u32, FilterError> {
        let text = self.rest().get(..digits).filter(|text| text.chars().all(|digit| digit.is_digit(base)));
        match text.and_then(|text| u32::from_str_radix(text, base).ok()) {
            Some(number) => {
                self.position += digits;
                Ok(number)
            }
            None => self.wrong(format!("{digits} digits should be here")),
        }
    }
}

fn is_of_field(character: char) -> bool {
    character == '_' || character.is_ascii_alphanumeric()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    struct Thing(BTreeMap<&'static str, &'static str>);

    impl Fields for Thing {
        fn field(&self, path: &[String]) -> Option<&str> {
            self.0.get(path.join(".").as_str()).copied()
        }
    }

    fn thing() -> Thing {
        Thing(BTreeMap::from([
            ("name", "a/b:c"),
            ("kind", "active"),
            ("parent", ""),
            ("labels.l", "1"),
            ("labels.containerd.io/gc.root", "now, or \"then\""),
            ("labels.ümlaut", "straße"),
        ]))
    }

    fn holds(filters: &[&str]) -> bool {
        Filters::parse(filters).unwrap_or_else(|error| panic!("{error}")).match_fields(&thing())
    }

    #[test]
    fn filters_hold_as_containerd_has_them() {
        for (filters, expected) in [
            (&[][..], true),
            (&["name==a/b:c"], true),
            (&["name==a/b"], false),
            (&["name==\"a/b:c\""], true),
            (&["name!=a/b:c"], false),
            (&["name!=x"], true),
            (&["kind==active,name==a/b:c"], true),
            (&["kind==view,name==a/b:c"], false),
            (&["kind==view", "name==a/b:c"], true),
            (&["kind==view", "name==x"], false),
            (&["labels.l"], true),
            (&["labels.l,kind==active"], true),
            (&["labels.other"], false),
            (&["labels.\"l\"==1"], true),
            (&["labels.\"containerd.io/gc.root\""], true),
            (&[r#"labels."containerd.io/gc.root"=="now, or \"then\"""#], true),
            (&[r#"labels."containerd.io/gc.root"~=/^now.*then/"#], true),
            (&[r#"labels."containerd.io/gc.root"~=|^then|"#], false),
            (&["parent"], true),
            (&["parent==\"\""], true),
            (&["parent!=\"\""], false),
            // What is not there is empty, but not equal to it.
            (&["labels.other==\"\""], false),
            (&["labels.other!=\"\""], false),
            (&["labels.other!=x"], true),
            (&["labels.other~=\"^$\""], true),
            (&["name~=b:"], true),
            (&["name~=^b"], false),
            (&["name ~= /a\\/b/"], true),
            (&[" kind == active , labels.l == 1 "], true),
            (&["labels . l"], true),
            (&[r#"labels."\u00fcmlaut"=="stra\xc3\x9fe""#], true),
            (&[r#"labels."\U000000fcml\141ut"==straße"#], true),
            (&["name==a/b:c,name!=y,name~=c$"], true),
        ] {
            assert_eq!(holds(filters), expected, "{filters:?}");
        }
    }

    #[test]
    fn what_is_no_filter_is_an_error_that_says_where() {
        for (filter, position) in [
            ("", 0),
            (",", 0),
            ("name,", 5),
            ("name==", 6),
            ("name=x", 5),
            ("name=!x", 6),
            ("name===x", 7),
            ("==x", 0),
            ("name==x y", 8),
            ("name x", 5),
            ("labels.", 7),
            ("labels..l", 7),
            ("name==\"x", 8),
            ("name==\"x\ny\"", 9),
            ("name==/x/", 6),
            ("/name/==x", 0),
            ("name==\"\\q\"", 9),
            ("name==\"\\x4\"", 9),
            ("name==\"\\400\"", 11),
            ("name==\"\\18\"", 8),
            ("name==\"\\ud800\"", 13),
            ("name==\"\\xff\"", 12),
            ("name~=\"(\"", 9),
            ("näme", 1),
        ] {
            let error = Filters::parse(&[filter]).map(|_| ()).expect_err(filter);
            assert_eq!(error.position, position, "{error}");
        }
        assert!(Filters::parse(&["name", ""]).is_err());
        assert!(Filters::parse(&["x".repeat(MAXIMUM_LENGTH + 1)]).is_err());
    }
}
