//! The value of `synchronous_standby_names`: whom PostgreSQL itself waits for (`syncrep_gram.y`).

/// The standbys that a value names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SyncNames(Vec<String>);

impl SyncNames {
    /// Reads `a, b`, `2 (a, b)`, `FIRST 2 (a, b)` or `ANY 2 (a, b)`, where `*` is anybody and a name may be quoted.
    /// PostgreSQL has checked the value, so what is left over at its ends is a number or a keyword.
    pub fn parse(value: &str) -> SyncNames {
        let list = match value.split_once('(') {
            Some((_, list)) => list.trim_end().trim_end_matches(')'),
            None => value,
        };
        let mut names = vec![String::new()];
        let mut characters = list.chars().peekable();
        let mut is_quoted = false;
        while let Some(character) = characters.next() {
            let Some(name) = names.last_mut() else { break };
            match character {
                '"' if is_quoted && characters.peek() == Some(&'"') => {
                    characters.next();
                    name.push('"');
                }
                '"' => is_quoted = !is_quoted,
                ',' if !is_quoted => names.push(String::new()),
                space if !is_quoted && space.is_whitespace() => {}
                other => name.push(other),
            }
        }
        names.retain(|name| !name.is_empty());
        SyncNames(names)
    }

    /// Whether a standby of that name counts; PostgreSQL minds no case.
    pub fn names(&self, standby: &str) -> bool {
        self.0.iter().any(|name| name == "*" || name.eq_ignore_ascii_case(standby))
    }

    /// Whether one counts that is not of that name.
    pub fn names_others_than(&self, standby: &str) -> bool {
        self.0.iter().any(|name| name != "*" && !name.eq_ignore_ascii_case(standby))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_of_the_setting() {
        for (value, us, others) in [
            ("", false, false),
            ("walship", true, false),
            (" WALSHIP ", true, false),
            ("*", true, false),
            ("other", false, true),
            ("a, walship", true, true),
            ("2 (a, b)", false, true),
            ("FIRST 1 (walship)", true, false),
            ("any 2 (x, \"walship\" )", true, true),
            ("\"wal\"\"ship\", \"wal,ship\"", false, true),
            ("1(*)", true, false),
        ] {
            let names = SyncNames::parse(value);
            assert_eq!((names.names("walship"), names.names_others_than("walship")), (us, others), "{value}");
        }
    }
}
