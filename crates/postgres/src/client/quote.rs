/// Quotes a value for SQL, whatever `standard_conforming_strings` says: `it's` becomes `'it''s'`.
pub fn literal(value: &str) -> String {
    let doubled = value.replace('\'', "''");
    if value.contains('\\') { format!(" E'{}'", doubled.replace('\\', r"\\")) } else { format!("'{doubled}'") }
}

/// Quotes a name for SQL: `my table` becomes `"my table"`.
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_escapes() {
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"a\'; DROP"), r" E'a\\''; DROP'");
        assert_eq!(identifier(r#"a"b"#), r#""a""b""#);
    }

    proptest! {
        #[test]
        fn quotes_inside_come_in_pairs(text in r#"[a'"\\]{0,20}"#) {
            let quoted = literal(&text);
            let inside = quoted.trim_start_matches([' ', 'E']);
            let inside = &inside[1..inside.len() - 1];
            prop_assert_eq!(inside.replace("''", "").matches('\'').count(), 0);
            let name = identifier(&text);
            prop_assert_eq!(name[1..name.len() - 1].replace("\"\"", "").matches('"').count(), 0);
        }
    }
}
