use std::fmt;
use std::io;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;

use super::body::{Reader, invalid};

/// The names of a result's columns.
#[derive(Clone, Debug, Default)]
pub(crate) struct Columns(Arc<[String]>);

impl Columns {
    pub(crate) fn read(body: &[u8]) -> io::Result<Self> {
        // What follows a name: the table's oid, the column's number, the type's oid, size and modifier, the format.
        const DETAIL_BYTES: usize = 4 + 2 + 4 + 2 + 4 + 2;
        let mut reader = Reader(body);
        let names = (0..reader.u16()?)
            .map(|_| {
                let name = reader.text()?;
                reader.bytes(DETAIL_BYTES)?;
                Ok(name)
            })
            .collect::<io::Result<Vec<_>>>()?;
        reader.finish()?;
        Ok(Self(names.into()))
    }
}

/// Why a value of a row is not what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RowError {
    #[error("the answer has no column {column}")]
    NoColumn { column: String },

    #[error("column {column} is null")]
    Null { column: String },

    #[error("`{text}` in column {column} is not a {expected}")]
    Invalid { column: String, text: String, expected: &'static str },
}

/// One row of a result, in PostgreSQL's text form.
#[derive(Clone)]
pub struct Row {
    columns: Columns,
    body: Bytes,
    values: Vec<Option<Range<usize>>>,
}

impl Row {
    pub(crate) fn read(columns: &Columns, body: Bytes) -> io::Result<Self> {
        let mut reader = Reader(&body);
        let count = reader.u16()?;
        let mut values = Vec::with_capacity(count.into());
        for _ in 0..count {
            values.push(match usize::try_from(reader.i32()?) {
                Err(_) => None,
                Ok(length) => {
                    let start = body.len() - reader.0.len();
                    reader.bytes(length)?;
                    Some(start..start + length)
                }
            });
        }
        reader.finish()?;
        if values.len() != columns.0.len() {
            return Err(invalid("a row has not as many values as its result has columns"));
        }
        Ok(Self { columns: columns.clone(), body, values })
    }

    pub fn len(&self) -> usize {
        self.values.len()
    }

    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The value as it came; `None` if it is null or there is no such column.
    pub fn bytes(&self, column: impl ColumnIndex) -> Option<&[u8]> {
        let range = self.values.get(column.find(&self.columns.0)?)?.clone()?;
        Some(&self.body[range])
    }

    /// The value as text; `None` if it is null, there is no such column, or it is not UTF-8.
    pub fn get(&self, column: impl ColumnIndex) -> Option<&str> {
        self.bytes(column).and_then(|bytes| std::str::from_utf8(bytes).ok())
    }

    /// The value as text; null, an absent column and bytes that are not UTF-8 are errors.
    pub fn text(&self, column: impl ColumnIndex) -> Result<&str, RowError> {
        self.optional_text(column)?.ok_or_else(|| RowError::Null { column: column.to_string() })
    }

    /// The same, with `None` for null.
    pub fn optional_text(&self, column: impl ColumnIndex) -> Result<Option<&str>, RowError> {
        let index = column.find(&self.columns.0).filter(|index| *index < self.values.len());
        let index = index.ok_or_else(|| RowError::NoColumn { column: column.to_string() })?;
        let Some(range) = self.values[index].clone() else { return Ok(None) };
        let bytes = &self.body[range];
        std::str::from_utf8(bytes).map(Some).map_err(|_| RowError::Invalid {
            column: column.to_string(),
            text: bytes.escape_ascii().to_string(),
            expected: "text in UTF-8",
        })
    }

    /// The value read as `T`, such as a number or an `Lsn`. For truth values see [`Row::truth`].
    pub fn parse<T: FromStr>(&self, column: impl ColumnIndex) -> Result<T, RowError> {
        self.optional(column)?.ok_or_else(|| RowError::Null { column: column.to_string() })
    }

    /// The same, with `None` for null.
    pub fn optional<T: FromStr>(&self, column: impl ColumnIndex) -> Result<Option<T>, RowError> {
        let Some(text) = self.optional_text(column)? else { return Ok(None) };
        text.parse().map(Some).map_err(|_| RowError::Invalid {
            column: column.to_string(),
            text: text.to_owned(),
            expected: std::any::type_name::<T>().rsplit("::").next().unwrap_or("value"),
        })
    }

    /// A `boolean`, which PostgreSQL writes as `t` or `f`.
    pub fn truth(&self, column: impl ColumnIndex) -> Result<bool, RowError> {
        match self.text(column)? {
            "t" => Ok(true),
            "f" => Ok(false),
            text => Err(RowError::Invalid { column: column.to_string(), text: text.to_owned(), expected: "boolean" }),
        }
    }
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = |range: &Option<Range<usize>>| {
            range.clone().map(|range| String::from_utf8_lossy(&self.body[range]).into_owned())
        };
        f.debug_map().entries(self.columns.0.iter().zip(self.values.iter().map(value))).finish()
    }
}

/// How a column is named: by its place, from 0, or by its name.
pub trait ColumnIndex: Copy + fmt::Display + sealed::Sealed {
    #[doc(hidden)]
    fn find(self, columns: &[String]) -> Option<usize>;
}

impl ColumnIndex for usize {
    fn find(self, _columns: &[String]) -> Option<usize> {
        Some(self)
    }
}

impl ColumnIndex for &str {
    fn find(self, columns: &[String]) -> Option<usize> {
        columns.iter().position(|name| name == self)
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for usize {}
    impl Sealed for &str {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn columns(names: &[&str]) -> Columns {
        let mut body = (names.len() as u16).to_be_bytes().to_vec();
        for name in names {
            body.extend_from_slice(name.as_bytes());
            body.extend_from_slice(&[0; 19]);
        }
        Columns::read(&body).unwrap()
    }

    fn row(names: &[&str], values: &[Option<&[u8]>]) -> io::Result<Row> {
        let mut body = (values.len() as u16).to_be_bytes().to_vec();
        for value in values {
            let length = value.map_or(-1, |value| value.len() as i32);
            body.extend_from_slice(&length.to_be_bytes());
            body.extend_from_slice(value.unwrap_or_default());
        }
        Row::read(&columns(names), body.into())
    }

    #[test]
    fn null_absent_and_unreadable_are_told_apart() {
        let row = row(&["a", "b", "c", "d"], &[Some(b"12"), None, Some(b"\xff"), Some(b"t")]).unwrap();
        assert_eq!((row.get("a"), row.get(0), row.parse::<u32>("a")), (Some("12"), Some("12"), Ok(12)));
        assert_eq!(row.optional::<u32>("b"), Ok(None));
        assert_eq!(row.text("b"), Err(RowError::Null { column: "b".to_owned() }));
        assert!(matches!(row.text("c"), Err(RowError::Invalid { .. })));
        assert_eq!(row.bytes("c"), Some(b"\xff".as_slice()));
        assert_eq!(row.text("x"), Err(RowError::NoColumn { column: "x".to_owned() }));
        assert_eq!(row.text(4), Err(RowError::NoColumn { column: "4".to_owned() }));
        assert_eq!(row.truth("d"), Ok(true));
        assert!(row.truth("a").is_err());
    }

    #[test]
    fn a_row_fits_its_result() {
        assert!(row(&["a"], &[None, None]).is_err());
    }

    proptest! {
        #[test]
        fn no_body_makes_it_panic(body: Vec<u8>) {
            if let Ok(columns) = Columns::read(&body) {
                prop_assert!(columns.0.len() <= body.len());
            }
            if let Ok(row) = Row::read(&columns(&["a"]), body.into()) {
                prop_assert_eq!(row.len(), 1);
            }
        }
    }
}
