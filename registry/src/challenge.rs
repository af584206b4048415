//! `WWW-Authenticate` (RFC 9110, section 11.6.1, once RFC 7235): what a host wants to see before it answers.
//!
//! One header may hold several challenges, separated by the same comma that separates the parameters of each:
//!
//! ```text
//! Basic realm="x", Bearer realm="https://auth.example/token",service="registry",scope="repository:a/b:pull"
//! ```

/// One challenge: its scheme in lower case, its parameters with names in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Challenge {
    pub(crate) scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    /// The first parameter of this name.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// The challenges of one header value. What is malformed ends the list; what stands before it counts.
pub(crate) fn challenges(header: &str) -> Vec<Challenge> {
    let mut scanner = Scanner { rest: header };
    let mut challenges: Vec<Challenge> = Vec::new();
    loop {
        scanner.skip_separators();
        let Some(token) = scanner.token() else { return challenges };
        scanner.skip_spaces();
        // `name =` continues the current challenge, a token alone begins one.
        match (scanner.value_after_equals(), challenges.last_mut()) {
            (Some(value), Some(challenge)) => {
                challenge.parameters.push((token.to_ascii_lowercase(), value));
            }
            (Some(_), None) => return challenges,
            (None, _) if scanner.rest.starts_with('=') => return challenges,
            (None, _) => {
                challenges.push(Challenge { scheme: token.to_ascii_lowercase(), parameters: Vec::new() });
                scanner.skip_token68();
            }
        }
    }
}

struct Scanner<'a> {
    rest: &'a str,
}

impl<'a> Scanner<'a> {
    fn skip_separators(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', ',']);
    }

    fn skip_spaces(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t']);
    }

    fn token(&mut self) -> Option<&'a str> {
        let end = self.rest.find(|character| !is_token(character)).unwrap_or(self.rest.len());
        let (token, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!token.is_empty()).then_some(token)
    }

    /// `= token` or `= "quoted"`, or nothing if there is no equals sign followed by a value.
    fn value_after_equals(&mut self) -> Option<String> {
        let rest = self.rest.strip_prefix('=')?.trim_start_matches([' ', '\t']);
        let mut scanner = Scanner { rest };
        let value = match rest.strip_prefix('"') {
            Some(quoted) => scanner.quoted(quoted)?,
            None => scanner.token()?.to_owned(),
        };
        self.rest = scanner.rest;
        Some(value)
    }

    fn quoted(&mut self, text: &'a str) -> Option<String> {
        let mut value = String::new();
        let mut characters = text.char_indices();
        while let Some((position, character)) = characters.next() {
            match character {
                '"' => {
                    self.rest = &text[position + 1..];
                    return Some(value);
                }
                '\\' => value.push(characters.next()?.1),
                other => value.push(other),
            }
        }
        None
    }

    /// Skips a token68 (`Negotiate oYG2…==`), which no scheme of ours uses.
    fn skip_token68(&mut self) {
        let is_token68 = |character: char| character.is_ascii_alphanumeric() || "-._~+/".contains(character);
        let end = self.rest.find(|character| !is_token68(character)).unwrap_or(self.rest.len());
        let padded = self.rest[end..].trim_start_matches('=');
        let after = padded.trim_start_matches([' ', '\t']);
        if end > 0 && (after.is_empty() || after.starts_with(',')) {
            self.rest = after;
        }
    }
}

fn is_token(character: char) -> bool {
    character.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(character)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(header: &str) -> Vec<(String, Vec<(String, String)>)> {
        challenges(header).into_iter().map(|challenge| (challenge.scheme, challenge.parameters)).collect()
    }

    fn expected(challenges: &[(&str, &[(&str, &str)])]) -> Vec<(String, Vec<(String, String)>)> {
        let owned = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        challenges
            .iter()
            .map(|(scheme, parameters)| (scheme.to_string(), parameters.iter().map(owned).collect()))
            .collect()
    }

    #[test]
    fn challenges_are_told_apart() {
        let bearer: (&str, &[(&str, &str)]) = (
            "bearer",
            &[
                ("realm", "https://auth.example/token"),
                ("service", "registry"),
                ("scope", "repository:a/b:pull,push"),
            ],
        );
        for (header, wanted) in [
            (
                r#"Bearer realm="https://auth.example/token",service="registry",scope="repository:a/b:pull,push""#,
                expected(&[bearer]),
            ),
            (
                r#"Basic realm="x, y", BEARER Realm="https://auth.example/token", service=registry ,scope = "repository:a/b:pull,push""#,
                expected(&[("basic", &[("realm", "x, y")]), bearer]),
            ),
            (
                r#"Newauth realm="apps", type=1, title="Login to \"apps\"", Basic realm="simple""#,
                expected(&[
                    ("newauth", &[("realm", "apps"), ("type", "1"), ("title", r#"Login to "apps""#)]),
                    ("basic", &[("realm", "simple")]),
                ]),
            ),
            (
                r#"Negotiate oYG2==, Basic realm="r""#,
                expected(&[("negotiate", &[]), ("basic", &[("realm", "r")])]),
            ),
            ("Negotiate, ,, Basic", expected(&[("negotiate", &[]), ("basic", &[])])),
            (r#"Basic realm="unterminated"#, expected(&[("basic", &[])])),
            (r#"realm="no scheme""#, expected(&[])),
            ("", expected(&[])),
            ("=,=\"", expected(&[])),
        ] {
            assert_eq!(parsed(header), wanted, "{header}");
        }
    }
}
