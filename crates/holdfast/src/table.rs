//! Plain tables: columns two spaces apart.

use std::fmt;
use std::time::Duration;

use holdfast_types::ByteSize;

/// Rows of cells. Under headings, numbers are right-aligned.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    has_headings: bool,
}

impl Table {
    pub(crate) fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(ToString::to_string).collect()], has_headings: true }
    }

    /// Names and values.
    pub(crate) fn bare() -> Self {
        Self { rows: Vec::new(), has_headings: false }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [&str; N]) {
        self.rows.push(cells.iter().map(ToString::to_string).collect());
    }

    pub(crate) fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width =
            |column: usize| self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let padding = " ".repeat(width - cell.chars().count());
                if self.has_headings && is_number(cell) {
                    line.push_str(&padding);
                    line.push_str(cell);
                } else {
                    line.push_str(cell);
                    line.push_str(&padding);
                }
                line.push_str("  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Text that is made line by line.
pub(crate) trait Lines {
    fn line(&mut self, line: fmt::Arguments<'_>);
}

impl Lines for String {
    fn line(&mut self, line: fmt::Arguments<'_>) {
        fmt::Write::write_fmt(self, line).expect("writing to a string cannot fail");
        self.push('\n');
    }
}

/// A number, or a number with a unit as sizes have.
fn is_number(cell: &str) -> bool {
    let (number, rest) = cell.split_once(' ').unwrap_or((cell, "B"));
    number.parse::<f64>().is_ok() && rest.len() <= 5
}

/// `1 pack`, `2 packs`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

pub(crate) fn size(bytes: u64) -> String {
    ByteSize::new(bytes).to_string()
}

/// `1.24 s`, `3 min 20 s`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    match duration.as_secs() {
        0..60 => format!("{seconds:.2} s"),
        60..3600 => format!("{} min {} s", duration.as_secs() / 60, duration.as_secs() % 60),
        long => format!("{} h {} min", long / 3600, long % 3600 / 60),
    }
}

/// Bytes a second.
pub(crate) fn rate(bytes: u64, duration: Duration) -> String {
    format!("{}/s", size((bytes as f64 / duration.as_secs_f64().max(0.001)) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["id", "size"]);
        table.row(["a", "5 B"]);
        table.row(["long name", "12.0 MiB"]);
        assert_eq!(table.text(), "id         size\na               5 B\nlong name  12.0 MiB\n");
        assert_eq!(duration(Duration::from_millis(200_400)), "3 min 20 s");
        assert_eq!(rate(10 << 20, Duration::from_secs(2)), "5.0 MiB/s");
    }

    #[test]
    fn one_is_singular() {
        assert_eq!(
            [0, 1, 2].map(|number| count(number, "log object")),
            ["0 log objects", "1 log object", "2 log objects"]
        );
    }
}
