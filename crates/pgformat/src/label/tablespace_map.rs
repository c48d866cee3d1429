use super::LabelError;
use crate::bytes::decimal;

/// One tablespace outside the data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tablespace {
    /// Its object id: the name of its link in `pg_tblspc`.
    pub oid: u32,
    /// Where the link leads, as the raw bytes of a path.
    pub path: Vec<u8>,
}

/// Which tablespaces lie where; recovery makes the links in `pg_tblspc` from it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TablespaceMap {
    /// In the order of the file.
    pub tablespaces: Vec<Tablespace>,
}

impl TablespaceMap {
    /// Reads `tablespace_map`: lines of `oid path`, in which a backslash keeps the next byte from meaning anything.
    pub fn parse(bytes: &[u8]) -> Result<Self, LabelError> {
        let mut tablespaces = Vec::new();
        let mut line = Vec::new();
        let mut escaped = false;
        for byte in bytes {
            match byte {
                b'\\' if !escaped => escaped = true,
                // Windows ends lines with both, which is one empty line to many.
                b'\n' | b'\r' if !escaped && line.is_empty() => {}
                b'\n' | b'\r' if !escaped => {
                    let entry = parse_line(&line).ok_or(LabelError::TablespaceMap { line: tablespaces.len() + 1 })?;
                    tablespaces.push(entry);
                    line.clear();
                }
                other => {
                    line.push(*other);
                    escaped = false;
                }
            }
        }
        if escaped || !line.is_empty() {
            return Err(LabelError::TablespaceMap { line: tablespaces.len() + 1 });
        }
        Ok(Self { tablespaces })
    }

    /// The file that [`parse`](Self::parse) reads and PostgreSQL understands.
    pub fn serialize(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for Tablespace { oid, path } in &self.tablespaces {
            bytes.extend_from_slice(format!("{oid} ").as_bytes());
            for byte in path {
                if matches!(byte, b'\n' | b'\r' | b'\\') {
                    bytes.push(b'\\');
                }
                bytes.push(*byte);
            }
            bytes.push(b'\n');
        }
        bytes
    }

    /// The map with every tablespace for which `place` has an answer moved there.
    #[must_use]
    pub fn remap(&self, mut place: impl FnMut(&Tablespace) -> Option<Vec<u8>>) -> Self {
        let moved = |tablespace: &Tablespace| {
            let path = place(tablespace).unwrap_or_else(|| tablespace.path.clone());
            Tablespace { oid: tablespace.oid, path }
        };
        Self { tablespaces: self.tablespaces.iter().map(moved).collect() }
    }
}

fn parse_line(line: &[u8]) -> Option<Tablespace> {
    let space = line.iter().position(|byte| *byte == b' ')?;
    let (oid, path) = line.split_at_checked(space)?;
    let path = path.get(1..).filter(|path| !path.is_empty() && !path.contains(&0))?;
    Some(Tablespace { oid: decimal(oid).filter(|oid| *oid != 0)?, path: path.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_escapes_and_moves() {
        let file = b"16385 /data/fast disk\n16386 /odd\\\nname\\\\\n16387  /leading\n";
        let map = TablespaceMap::parse(file).unwrap();
        let paths: Vec<_> = map.tablespaces.iter().map(|tablespace| tablespace.path.as_slice()).collect();
        assert_eq!(paths, [&b"/data/fast disk"[..], b"/odd\nname\\", b" /leading"]);
        assert_eq!(map.serialize(), file);

        let moved = map.remap(|tablespace| (tablespace.oid == 16385).then(|| b"/restored".to_vec()));
        assert_eq!(moved.tablespaces[0].path, b"/restored");
        assert_eq!(moved.tablespaces[1..], map.tablespaces[1..]);
        assert_eq!(TablespaceMap::parse(b""), Ok(TablespaceMap::default()));
    }

    #[test]
    fn refuses_what_postgresql_refuses() {
        for file in ["16385 /cut off", "16385 /escape\\", "16385\n", "16385 \n", "x /path\n", "-1 /path\n", " /path\n"]
        {
            assert!(TablespaceMap::parse(file.as_bytes()).is_err(), "{file:?}");
        }
        assert_eq!(
            TablespaceMap::parse(b"1 /a\nbad\n"),
            Err(LabelError::TablespaceMap { line: 2 }),
            "the error names the line"
        );
    }

    proptest! {
        #[test]
        fn any_map_survives_the_file(
            entries in prop::collection::vec((1u32.., prop::collection::vec(1u8.., 1..40)), 0..5)
        ) {
            let tablespaces = entries.into_iter().map(|(oid, path)| Tablespace { oid, path }).collect();
            let map = TablespaceMap { tablespaces };
            prop_assert_eq!(TablespaceMap::parse(&map.serialize()), Ok(map));
        }

        #[test]
        fn any_bytes_are_refused_or_survive(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(map) = TablespaceMap::parse(&bytes) {
                prop_assert_eq!(TablespaceMap::parse(&map.serialize()), Ok(map));
            }
        }
    }
}
