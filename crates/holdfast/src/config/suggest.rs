//! What a misspelt word was meant to be.

use super::reference::SETTINGS;

/// The known word that is nearest, if it is near enough to be meant.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (word.chars().count() / 3).max(1);
    let measured = known.into_iter().map(|candidate| (distance(word, candidate), candidate));
    measured.filter(|(distance, _)| *distance <= limit).min().map(|(_, candidate)| candidate)
}

/// How many letters must be added, removed or changed, or swapped with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut best = (above[j] + usize::from(x != y)).min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

/// A hint for a key that serde refused with a message that lists what it `expected`.
pub(super) fn for_key(key: &str, expected: &[&str]) -> Option<String> {
    if let Some(meant) = nearest(key, expected.iter().copied()) {
        return Some(format!("Did you mean `{meant}`?"));
    }
    // A key of another table: people put it one level too high.
    let elsewhere = SETTINGS.iter().find(|setting| setting.key == key);
    if let Some(setting) = elsewhere {
        return Some(format!("`{key}` belongs into [{}].", setting.table));
    }
    let listed = expected.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
    (!listed.is_empty()).then(|| format!("Known here: {listed}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_meant() {
        let known = ["interval", "synchronous", "rate_limit"];
        assert_eq!(nearest("intervall", known), Some("interval"));
        assert_eq!(nearest("rate-limit", known), Some("rate_limit"));
        assert_eq!(nearest("intreval", known), Some("interval"));
        assert_eq!(nearest("retention", known), None);
        assert_eq!(
            for_key("interval", &["backup", "wal"]).as_deref(),
            Some("`interval` belongs into [source.NAME.wal].")
        );
    }
}
