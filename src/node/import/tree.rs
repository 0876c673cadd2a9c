//! In-memory tree of the files in a root file system archive, without their contents.
//!
//! Paths are resolved like those of `tar -x` in the new root: symbolic links are followed, but never lead out of the
//! root, and a later entry replaces an earlier one with the same name.

use std::collections::BTreeMap;

use mkext4::SpecialKind;

use super::archive::ArchiveEntry;
use super::attributes::{self, ATTRIBUTE_SPACE};
use super::pax::Records;

pub const ROOT: usize = 0;
/// Maximum number of symbolic links in a path, as in Linux.
const LINK_LIMIT: usize = 40;
/// Limits of a path and a name in bytes, as in Linux.
const PATH_LIMIT: usize = 4096;
const NAME_LIMIT: usize = 255;
/// Memory limit for an archive's names and attributes, in bytes. A million files with 20-byte names take about 0.5 GiB.
pub const MEMORY_LIMIT: u64 = 1 << 30;
/// Upper estimates of the bytes that a node, a name and an attribute take in the tree and in the ext4 plan together.
const NODE_MEMORY: u64 = 320;
const NAME_MEMORY: u64 = 192;
const ATTRIBUTE_MEMORY: u64 = 96;
/// The latest time that ext4 can store, in 2446.
const TIME_LIMIT: i64 = (1 << 34) - (1 << 31) - 1;

#[derive(Debug, Clone)]
pub struct Node {
    /// Permissions with the set-user-ID, set-group-ID and sticky bits.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// In seconds since 1970.
    pub modified: i64,
    pub attributes: Vec<(String, Vec<u8>)>,
    pub kind: NodeKind,
}

#[derive(Debug, Clone)]
pub enum NodeKind {
    /// Children's names and node indices.
    Directory(BTreeMap<String, usize>),
    File {
        size: u64,
        /// Index of the archive entry that holds the content.
        entry: u64,
    },
    Symlink(String),
    Special(SpecialKind),
}

#[derive(Debug)]
pub struct Tree {
    /// Includes nodes that later entries of the archive have replaced.
    pub nodes: Vec<Node>,
    memory: Memory,
}

#[derive(Debug, PartialEq, Eq)]
pub enum AddError {
    /// A relative clause about the entry, such as "whose ACL is damaged".
    ArchiveEntry(String),
    Memory {
        limit: u64,
    },
}

impl From<String> for AddError {
    fn from(reason: String) -> AddError {
        AddError::ArchiveEntry(reason)
    }
}

impl From<&str> for AddError {
    fn from(reason: &str) -> AddError {
        AddError::ArchiveEntry(reason.into())
    }
}

/// Memory accounting for a tree and its ext4 plan, in bytes. `used` never shrinks, since replaced nodes stay in memory.
#[derive(Debug)]
struct Memory {
    used: u64,
    limit: u64,
}

impl Memory {
    fn charge(&mut self, bytes: u64) -> Result<(), AddError> {
        self.used = self.used.saturating_add(bytes);
        if self.used > self.limit { Err(AddError::Memory { limit: self.limit }) } else { Ok(()) }
    }
}

impl Node {
    /// Returns the bytes that the node takes in the tree and in the ext4 plan. Both store attributes and link targets.
    fn memory(&self) -> u64 {
        let attributes =
            self.attributes.iter().map(|(name, value)| 2 * (ATTRIBUTE_MEMORY + (name.len() + value.len()) as u64));
        let target = if let NodeKind::Symlink(target) = &self.kind { 2 * target.len() as u64 } else { 0 };
        NODE_MEMORY + attributes.sum::<u64>() + target
    }

    /// Creates a node that is owned by root. `modified` is clamped to the years 1970 to 2446.
    pub fn new(mode: u16, modified: i64, kind: NodeKind) -> Node {
        Node { mode, uid: 0, gid: 0, modified: modified.clamp(0, TIME_LIMIT), attributes: Vec::new(), kind }
    }
}

impl Tree {
    #[cfg(test)]
    pub fn new(modified: i64) -> Tree {
        Tree::with_limit(modified, MEMORY_LIMIT)
    }

    /// Creates a tree with an empty root directory and a memory limit in bytes.
    pub fn with_limit(modified: i64, limit: u64) -> Tree {
        let nodes = vec![Node::new(0o755, modified, NodeKind::Directory(BTreeMap::new()))];
        Tree { nodes, memory: Memory { used: 0, limit } }
    }

    /// Adds an entry of the archive, or replaces an earlier one with the same path.
    pub fn add(&mut self, entry: &ArchiveEntry) -> Result<(), AddError> {
        use tar::EntryType::{Block, Char, Continuous, Directory, Fifo, GNUSparse, Link, Regular, Symlink};
        let path = components(&entry.name)?;
        let kind = match entry.kind {
            Directory => NodeKind::Directory(BTreeMap::new()),
            // Pre-POSIX archives mark a directory with a trailing slash in its name.
            Regular if entry.name.ends_with(b"/") => NodeKind::Directory(BTreeMap::new()),
            Regular | Continuous | GNUSparse => NodeKind::File { size: entry.size, entry: entry.index },
            Symlink => NodeKind::Symlink(link_target(entry)?),
            Link => return self.link(&path, entry),
            Char => entry.device().map(|(major, minor)| NodeKind::Special(SpecialKind::Char { major, minor }))?,
            Block => entry.device().map(|(major, minor)| NodeKind::Special(SpecialKind::Block { major, minor }))?,
            Fifo => NodeKind::Special(SpecialKind::Fifo),
            other => {
                let kind = char::from(other.as_byte());
                return Err(format!("which has the unsupported entry type {kind:?}").into());
            }
        };
        let mut node = Node::new(entry.mode()?, entry.modified()?, kind);
        node.uid = entry.uid()?;
        node.gid = entry.gid()?;
        node.attributes = attributes(&entry.records)?;
        self.put(&path, node).map(|_| ())
    }

    /// Adds `node` at `path`, creates missing parent directories, and returns the node's index.
    pub fn put(&mut self, path: &[&str], node: Node) -> Result<usize, AddError> {
        self.memory.charge(node.memory())?;
        let Some((name, parent)) = path.split_last() else {
            return match node.kind {
                NodeKind::Directory(_) => Ok(self.merge(ROOT, node)),
                _ => Err("which replaces the root directory but is not a directory".into()),
            };
        };
        let parent = self.directory(parent)?;
        let present = self.child(parent, name);
        if let Some(present) = present {
            let is_directory = matches!(node.kind, NodeKind::Directory(_));
            match &self.nodes[present].kind {
                NodeKind::Directory(_) if is_directory => return Ok(self.merge(present, node)),
                NodeKind::Directory(children) if !children.is_empty() => {
                    return Err("which is a non-empty directory and appears again as something else".into());
                }
                // For example, /lib is a link to /usr/lib, and the archive adds the directory /lib.
                NodeKind::Symlink(_) if is_directory => {
                    if let Some(target) = self.find(path)?
                        && matches!(self.nodes[target].kind, NodeKind::Directory(_))
                    {
                        return Ok(self.merge(target, node));
                    }
                }
                _ => {}
            }
        }
        let id = self.nodes.len();
        self.nodes.push(node);
        self.name(parent, name, id)?;
        Ok(id)
    }

    /// Returns the node at `path`, if it exists. Symbolic links are followed.
    pub fn find(&mut self, path: &[&str]) -> Result<Option<usize>, AddError> {
        self.walk(path, false)
    }

    /// Returns the node with this name in a directory. Symbolic links are not followed.
    pub fn child(&self, directory: usize, name: &str) -> Option<usize> {
        match &self.nodes[directory].kind {
            NodeKind::Directory(children) => children.get(name).copied(),
            _ => None,
        }
    }

    fn name(&mut self, directory: usize, name: &str, id: usize) -> Result<(), AddError> {
        self.memory.charge(NAME_MEMORY + 3 * name.len() as u64)?;
        if let NodeKind::Directory(children) = &mut self.nodes[directory].kind {
            children.insert(name.to_string(), id);
        }
        Ok(())
    }

    /// Returns one of a node's paths, for error messages.
    pub fn path_of(&self, node: usize) -> String {
        let mut pending = vec![(ROOT, String::new())];
        while let Some((directory, path)) = pending.pop() {
            if directory == node {
                return path;
            }
            let NodeKind::Directory(children) = &self.nodes[directory].kind else { continue };
            for (name, &id) in children {
                let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
                if id == node {
                    return path;
                }
                if matches!(self.nodes[id].kind, NodeKind::Directory(_)) {
                    pending.push((id, path));
                }
            }
        }
        String::new()
    }

    /// Replaces a directory's owner, mode, time and attributes, and keeps its children.
    fn merge(&mut self, id: usize, node: Node) -> usize {
        let kind = std::mem::replace(&mut self.nodes[id].kind, NodeKind::Directory(BTreeMap::new()));
        self.nodes[id] = Node { kind, ..node };
        id
    }

    fn link(&mut self, path: &[&str], entry: &ArchiveEntry) -> Result<(), AddError> {
        let target = entry.target.as_deref().ok_or("which is a hard link without a target")?;
        let shown = String::from_utf8_lossy(target);
        let target = components(target)?;
        let missing = || format!("which is a hard link to {shown:?}, but no earlier entry has that name");
        let (name, dir) = target.split_last().ok_or_else(missing)?;
        let dir = self.find(dir)?.ok_or_else(missing)?;
        let id = self.child(dir, name).ok_or_else(missing)?;
        if matches!(self.nodes[id].kind, NodeKind::Directory(_)) {
            return Err(format!("which is a hard link to the directory {shown:?}").into());
        }
        let (name, parent) = path.split_last().ok_or("which replaces the root directory but is not a directory")?;
        let parent = self.directory(parent)?;
        match self.child(parent, name).map(|present| &self.nodes[present].kind) {
            Some(NodeKind::Directory(_)) => Err("which is a directory and appears again as something else".into()),
            _ => self.name(parent, name, id),
        }
    }

    fn directory(&mut self, path: &[&str]) -> Result<usize, AddError> {
        let id = self.walk(path, true)?.expect("missing directories were created");
        match self.nodes[id].kind {
            NodeKind::Directory(_) => Ok(id),
            _ => Err(format!("whose parent {:?} is not a directory", format!("/{}", path.join("/"))).into()),
        }
    }

    /// Resolves a path, following symbolic links. If `make` is true, creates missing directories.
    fn walk(&mut self, path: &[&str], make: bool) -> Result<Option<usize>, AddError> {
        let mut trail = vec![ROOT];
        let mut pending: Vec<String> = path.iter().rev().map(ToString::to_string).collect();
        let mut links = 0;
        while let Some(name) = pending.pop() {
            let here = trail.last().copied().unwrap_or(ROOT);
            if name == ".." {
                // The root is its own parent.
                trail.truncate(trail.len().saturating_sub(1).max(1));
                continue;
            }
            if !matches!(self.nodes[here].kind, NodeKind::Directory(_)) {
                return if make {
                    Err(format!("whose parent {name:?} is inside something that is not a directory").into())
                } else {
                    Ok(None)
                };
            }
            match self.child(here, &name) {
                None if make => {
                    let id = self.nodes.len();
                    self.memory.charge(NODE_MEMORY)?;
                    self.nodes.push(Node::new(0o755, self.nodes[here].modified, NodeKind::Directory(BTreeMap::new())));
                    self.name(here, &name, id)?;
                    trail.push(id);
                }
                None => return Ok(None),
                Some(id) => match &self.nodes[id].kind {
                    NodeKind::Symlink(target) => {
                        links += 1;
                        if links > LINK_LIMIT {
                            return Err(format!("whose path contains more than {LINK_LIMIT} symbolic links").into());
                        }
                        if target.starts_with('/') {
                            trail.truncate(1);
                        }
                        pending.extend(
                            target.split('/').rev().filter(|part| !part.is_empty() && *part != ".").map(str::to_string),
                        );
                    }
                    _ => trail.push(id),
                },
            }
        }
        Ok(trail.last().copied())
    }
}

/// Splits a path in an archive, which is relative to the root. Refuses `..`, NULs, invalid UTF-8 and excessive length.
pub fn components(path: &[u8]) -> Result<Vec<&str>, String> {
    if path.len() > PATH_LIMIT {
        return Err(format!("whose name is longer than {PATH_LIMIT} bytes"));
    }
    let path = std::str::from_utf8(path).map_err(|_| "whose name is not valid UTF-8")?;
    let mut parts = Vec::new();
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            return Err("whose name contains \"..\"".into());
        }
        if part.len() > NAME_LIMIT || part.contains('\0') {
            return Err(format!("whose name has a component that is longer than {NAME_LIMIT} bytes or contains a NUL"));
        }
        parts.push(part);
    }
    Ok(parts)
}

fn link_target(entry: &ArchiveEntry) -> Result<String, String> {
    let target = entry.target.as_deref().unwrap_or_default();
    let target =
        std::str::from_utf8(target).map_err(|_| "which is a symbolic link to a name that is not valid UTF-8")?;
    if target.is_empty() || target.len() >= PATH_LIMIT || target.contains('\0') {
        return Err("which is a symbolic link with an invalid target".into());
    }
    Ok(target.to_string())
}

/// Returns the extended attributes that GNU tar, bsdtar or star stored. Ignores namespaces that Linux does not have.
fn attributes(records: &Records) -> Result<Vec<(String, Vec<u8>)>, String> {
    let mut attributes: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for (key, value) in records.iter() {
        let Some(name) = key.strip_prefix(b"SCHILY.xattr.") else { continue };
        let shown = String::from_utf8_lossy(name);
        let Some(space) =
            ["user.", "trusted.", "security.", "system."].iter().find(|space| name.starts_with(space.as_bytes()))
        else {
            continue;
        };
        let known = std::str::from_utf8(name).ok().filter(|name| name.len() - space.len() <= NAME_LIMIT);
        let Some(known) = known else {
            return Err(format!(
                "whose extended attribute {:?} has a name that is not valid UTF-8 or longer than {NAME_LIMIT} bytes",
                cut(&shown)
            ));
        };
        let value = if known.starts_with("system.posix_acl_") {
            ext4_acl(value).ok_or("whose ACL is damaged")?
        } else {
            value.to_vec()
        };
        attributes.insert(known.to_string(), value);
    }
    let attributes: Vec<(String, Vec<u8>)> = attributes.into_iter().collect();
    if let Err(size) = attributes::check_attributes(&attributes) {
        return Err(format!(
            "whose extended attributes take {size} bytes, but ext4 allows only {} per file. Exclude them with tar \
             --xattrs-exclude=PATTERN or --no-xattrs",
            ATTRIBUTE_SPACE
        ));
    }
    Ok(attributes)
}

fn cut(text: &str) -> String {
    text.chars().take(60).collect()
}

/// Converts an ACL to ext4's format (linux/fs/ext4/acl.h), in which only entries for named users and groups
/// have an ID. Returns `None` if the ACL is damaged.
fn ext4_acl(list: &[u8]) -> Option<Vec<u8>> {
    const VERSION: [u8; 4] = 2u32.to_le_bytes();
    const EXT4_VERSION: [u8; 4] = 1u32.to_le_bytes();
    const USER: u16 = 0x02;
    const GROUP: u16 = 0x08;
    let entries = list.strip_prefix(&VERSION)?;
    let mut stored = EXT4_VERSION.to_vec();
    let (entries, rest) = entries.as_chunks::<8>();
    for entry in entries {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let length = if matches!(tag, USER | GROUP) { 8 } else { 4 };
        stored.extend(&entry[..length]);
    }
    rest.is_empty().then_some(stored)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn put(tree: &mut Tree, path: &str, kind: NodeKind) -> Result<usize, AddError> {
        let parts = components(path.as_bytes())?;
        tree.put(&parts, Node::new(0o644, 0, kind))
    }

    fn reason(result: Result<usize, AddError>) -> String {
        match result {
            Err(AddError::ArchiveEntry(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }

    fn file() -> NodeKind {
        NodeKind::File { size: 0, entry: 0 }
    }

    fn directory() -> NodeKind {
        NodeKind::Directory(BTreeMap::new())
    }

    fn find(tree: &mut Tree, path: &str) -> Option<usize> {
        tree.find(&path.split('/').filter(|part| !part.is_empty()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn symlinks_in_path_are_followed_within_root() {
        let mut tree = Tree::new(0);
        put(&mut tree, "lib", NodeKind::Symlink("usr/lib".into())).unwrap();
        put(&mut tree, "out", NodeKind::Symlink("../../..".into())).unwrap();
        put(&mut tree, "absolute", NodeKind::Symlink("/usr/./lib".into())).unwrap();
        put(&mut tree, "usr/lib", directory()).unwrap();
        let first = put(&mut tree, "lib/a", file()).unwrap();
        let second = put(&mut tree, "out/usr/b", file()).unwrap();
        let third = put(&mut tree, "absolute/c", file()).unwrap();
        assert_eq!(find(&mut tree, "usr/lib/a"), Some(first));
        assert_eq!(find(&mut tree, "usr/b"), Some(second));
        assert_eq!(find(&mut tree, "lib/c"), Some(third));
        // An entry for a directory of that name applies to the link's target.
        put(&mut tree, "lib", directory()).unwrap();
        assert_eq!(find(&mut tree, "lib/a"), Some(first));
    }

    #[test]
    fn symlink_cycle_is_refused() {
        let mut tree = Tree::new(0);
        put(&mut tree, "a", NodeKind::Symlink("b".into())).unwrap();
        put(&mut tree, "b", NodeKind::Symlink("a".into())).unwrap();
        assert!(reason(put(&mut tree, "a/file", file())).contains("40 symbolic links"));
    }

    #[test]
    fn later_entry_replaces_earlier_one() {
        let mut tree = Tree::new(0);
        put(&mut tree, "etc/a", file()).unwrap();
        let second = put(&mut tree, "./etc//a", file()).unwrap();
        assert_eq!(find(&mut tree, "etc/a"), Some(second));
        assert!(reason(put(&mut tree, "etc", file())).contains("something else"));
        assert!(put(&mut tree, "etc/a/b", file()).is_err());
    }

    #[test]
    fn tree_over_memory_limit_is_refused() {
        let mut tree = Tree::with_limit(0, 100_000);
        let added = (0..1000).map(|number| put(&mut tree, &format!("etc/{number}"), file())).take_while(Result::is_ok);
        assert!((150..250).contains(&added.count()));
        assert_eq!(put(&mut tree, "etc/next", file()), Err(AddError::Memory { limit: 100_000 }));
        // Attributes, symbolic link targets and implicitly created directories also use memory.
        let mut node = Node::new(0o644, 0, file());
        node.attributes = vec![("user.a".into(), vec![0; 60_000])];
        assert!(Tree::with_limit(0, 100_000).put(&["a"], node).is_err());
        assert!(put(&mut Tree::with_limit(0, 8_000), "a", NodeKind::Symlink("x".repeat(4095))).is_err());
        assert!(put(&mut Tree::with_limit(0, 100_000), &"d/".repeat(300), file()).is_err());
    }

    #[test]
    fn attributes_over_ext4_limit_are_refused() {
        let record = |length: usize| {
            let record = format!("SCHILY.xattr.user.a={}\n", "x".repeat(length));
            Records::parse(format!("{} {record}", record.len() + 5).as_bytes()).unwrap()
        };
        assert!(attributes(&record(4000)).is_ok());
        let error = attributes(&record(4100)).unwrap_err();
        assert!(error.contains("take 4120 bytes") && error.contains("--no-xattrs"), "{error}");
    }

    #[test]
    fn acl_conversion_drops_unused_ids() {
        let entry = |tag: u16, id: u32| [&tag.to_le_bytes()[..], &7u16.to_le_bytes(), &id.to_le_bytes()].concat();
        let list = [2u32.to_le_bytes().to_vec(), entry(1, u32::MAX), entry(2, 1000)].concat();
        let stored = [1u32.to_le_bytes().to_vec(), entry(1, 0)[..4].to_vec(), entry(2, 1000)].concat();
        assert_eq!(ext4_acl(&list), Some(stored));
        assert_eq!(ext4_acl(&list[..list.len() - 1]), None);
    }

    proptest! {
        #[test]
        fn path_components_stay_within_root(path in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(parts) = components(&path) {
                for part in parts {
                    prop_assert!(!part.is_empty() && part != "." && part != ".." && !part.contains(['/', '\0']));
                }
            }
        }

        #[test]
        fn path_spelling_does_not_change_components(parts in proptest::collection::vec("[a-z.]{1,8}", 0..6)) {
            let plain = parts.join("/");
            let spelled = format!("/.//{}/./", parts.join("//./"));
            prop_assert_eq!(components(plain.as_bytes()), components(spelled.as_bytes()));
        }

        #[test]
        fn arbitrary_trees_have_no_cycles(
            steps in proptest::collection::vec(("[abc./]{0,6}", "[abc./]{1,6}", 0..3), 0..40),
        ) {
            let mut tree = Tree::new(0);
            for (path, target, kind) in steps {
                let kind = match kind { 0 => file(), 1 => directory(), _ => NodeKind::Symlink(target) };
                let _ = put(&mut tree, &path, kind);
            }
            // Each directory has at most one name, so there are no cycles.
            let mut names = vec![0; tree.nodes.len()];
            for node in &tree.nodes {
                if let NodeKind::Directory(children) = &node.kind {
                    children.values().for_each(|id| names[*id] += 1);
                }
            }
            for (id, node) in tree.nodes.iter().enumerate() {
                prop_assert!(names[id] <= 1, "{:?}", node);
            }
        }
    }
}
