//! File names of relations: `<number>[_<fork>][.<segment>]` (`common/relpath.c`, `storage/file/reinit.c`).

/// A file of a permanent or unlogged relation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RelationFile {
    /// The relation's file number; its forks and segments share it.
    pub number: u32,
    /// Which fork.
    pub fork: Fork,
    /// Which file of the fork, each of [`super::checksum::PAGES_PER_FILE`] pages.
    pub segment: u32,
}

/// What a relation's file is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fork {
    /// The data.
    Main,
    /// The free space map.
    FreeSpace,
    /// The visibility map.
    Visibility,
    /// What an unlogged relation is reset to after a crash; only those have one.
    Init,
}

impl RelationFile {
    /// Reads a file name; `None` for every other file, temporary relations included.
    pub fn parse(name: &str) -> Option<RelationFile> {
        let (stem, segment) = match name.split_once('.') {
            Some((stem, digits)) => (stem, plain_number(digits).filter(|&segment| segment > 0)?),
            None => (name, 0),
        };
        let (digits, fork) = match stem.split_once('_') {
            None => (stem, Fork::Main),
            Some((digits, "fsm")) => (digits, Fork::FreeSpace),
            Some((digits, "vm")) => (digits, Fork::Visibility),
            Some((digits, "init")) => (digits, Fork::Init),
            Some(_) => return None,
        };
        Some(RelationFile { number: plain_number(digits)?, fork, segment })
    }
}

/// True for the file of a temporary relation, `t<backend>_<relation file>`, which means nothing after a restart.
pub fn is_temporary(name: &str) -> bool {
    let parts = name.strip_prefix('t').and_then(|rest| rest.split_once('_'));
    parts
        .is_some_and(|(backend, file)| plain_number(backend).is_some() && RelationFile::parse(file).is_some())
}

fn plain_number(digits: &str) -> Option<u32> {
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_relations() {
        let known = [
            ("16384", 16384, Fork::Main, 0),
            ("16384.1", 16384, Fork::Main, 1),
            ("16384_fsm", 16384, Fork::FreeSpace, 0),
            ("16384_vm.12", 16384, Fork::Visibility, 12),
            ("4294967295_init", u32::MAX, Fork::Init, 0),
        ];
        for (name, number, fork, segment) in known {
            assert_eq!(RelationFile::parse(name), Some(RelationFile { number, fork, segment }), "{name}");
            assert!(is_temporary(&format!("t3_{name}")) && !is_temporary(name), "{name}");
        }
    }

    #[test]
    fn other_names() {
        let others = [
            "",
            "PG_VERSION",
            "pg_filenode.map",
            "16384_main",
            "16384.",
            "16384.0",
            "16384.x",
            "_vm",
            "+1",
            "16384_",
            "16384.1_fsm",
            "t3_16384",
            "4294967296",
            "16384_init_x",
        ];
        for name in others {
            assert_eq!(RelationFile::parse(name), None, "{name}");
        }
        for name in ["t_1", "t3", "tx_1", "t3_", "t3_PG_VERSION", "16384"] {
            assert!(!is_temporary(name), "{name}");
        }
    }
}
