//! Writing `postgresql.conf` and its relatives.

/// Why a setting cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingError {
    #[error("`{name}` cannot be the name of a setting")]
    Name { name: String },

    #[error("the value of `{name}` contains a zero byte")]
    ZeroByte { name: String },
}

/// One line of a configuration file, `name = 'value'` and a newline.
pub fn setting(name: &str, value: &str) -> Result<String, SettingError> {
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$')
    };
    // Extensions' settings have a prefix: `plan_filter.statement_cost_limit`.
    if !name.split('.').all(part) {
        return Err(SettingError::Name { name: name.to_owned() });
    }
    if value.contains('\0') {
        return Err(SettingError::ZeroByte { name: name.to_owned() });
    }
    Ok(format!("{name} = {}\n", quote(value)))
}

/// Quotes a value: `it's` becomes `'it''s'`, a backslash two, a line break `\n`.
///
/// A value must not contain a zero byte, which PostgreSQL would take for its end; [`setting`] checks that.
pub fn quote(value: &str) -> String {
    let mut quoted = String::with_capacity(value.len() + 2);
    quoted.push('\'');
    for c in value.chars() {
        match c {
            '\'' => quoted.push_str("''"),
            '\\' => quoted.push_str(r"\\"),
            '\n' => quoted.push_str(r"\n"),
            '\r' => quoted.push_str(r"\r"),
            c => quoted.push(c),
        }
    }
    quoted.push('\'');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads a quoted value as PostgreSQL's `guc-file.l` does.
    fn unquote(text: &str) -> Option<String> {
        let mut value = String::new();
        let mut characters = text.strip_prefix('\'')?.strip_suffix('\'')?.chars();
        while let Some(c) = characters.next() {
            match c {
                '\n' => return None,
                '\'' => value.push(characters.next().filter(|c| *c == '\'')?),
                '\\' => value.push(match characters.next()? {
                    'n' => '\n',
                    'r' => '\r',
                    c => c,
                }),
                c => value.push(c),
            }
        }
        Some(value)
    }

    #[test]
    fn settings_are_one_line() {
        assert_eq!(
            setting("restore_command", r#"holdfast "a b" 'c' \d"#).unwrap(),
            "restore_command = 'holdfast \"a b\" ''c'' \\\\d'\n"
        );
        assert!(setting("a.b_1", "x\ny").unwrap().matches('\n').count() == 1);
        for name in ["", "a b", "a=b", "a\nb", "1a", "a..b", "a."] {
            assert!(setting(name, "x").is_err(), "{name}");
        }
        assert!(setting("a", "x\0").is_err());
    }

    proptest! {
        #[test]
        fn postgresql_reads_what_was_quoted(value in r"[^\x00]{0,40}") {
            prop_assert_eq!(unquote(&quote(&value)), Some(value));
        }
    }
}
