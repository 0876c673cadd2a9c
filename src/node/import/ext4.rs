//! Creates an ext4 file system from a [`Tree`]. The layout is computed completely before anything is written.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::Path;

use mkext4::{FsBuilder, InodeCount, InodeHandle, Layout, Meta, Options, RegionSink};

use super::archive::TarFile;
use super::attributes::BLOCK;
use super::tree::{Node, NodeKind, ROOT, Tree};
use super::{ImportError, ImportProgress};
use disk::space::FreeSpace;
use disk::sparse;

/// Size of an inode, and the default ratio of disk space to inodes, in bytes.
const INODE: u64 = 256;
const BYTES_PER_INODE: u64 = 16 << 10;
/// Minimum free space in bytes, unless the user sets a size. If a quarter of the files' size is more, that applies.
pub const HEADROOM: u64 = 512 << 20;
/// Minimum size of a file system in bytes, unless the user sets a size.
pub const SMALLEST: u64 = 1 << 30;
/// File system sizes are multiples of this, in bytes.
const ROUND: u64 = 4 << 20;
/// Maximum length of a symbolic link that is stored in its inode.
const SHORT_LINK: usize = 59;
/// Directory in the root of every ext4 file system. It is created empty; that of the archive is left out.
const LOST_FOUND: &str = "lost+found";

/// linux/fs/ext4/ext4.h, EXT4_LINK_MAX.
const LINK_LIMIT: u32 = 65_000;

#[derive(Debug, Clone)]
pub struct Shape {
    pub uuid: [u8; 16],
    /// In seconds since 1970.
    pub made: i64,
    /// Size in bytes. If `None`, the size of the files plus [`HEADROOM`] or more, and at least [`SMALLEST`].
    pub size: Option<u64>,
}

/// A file system with a complete layout, ready to be written.
pub struct Plan {
    layout: Layout,
    /// Files whose content comes from the archive, by entry index.
    entries: HashMap<u64, (InodeHandle, u64)>,
}

/// Returns the disk usage of a tree's files in bytes, and their number.
pub fn usage(tree: &Tree) -> (u64, u64) {
    let (mut blocks, mut count) = (0u64, 0u64);
    for_each(tree, &mut |_, node, _, new| {
        if new {
            count += 1;
            blocks = blocks.saturating_add(node_blocks(node));
        }
        Ok::<(), ()>(())
    })
    .expect("the visitor never fails");
    (blocks.saturating_mul(BLOCK), count)
}

fn node_blocks(node: &Node) -> u64 {
    let own = match &node.kind {
        // A directory entry takes its name and eight bytes. A large directory also has an index.
        NodeKind::Directory(children) => {
            let bytes: u64 = children.keys().map(|name| name.len().next_multiple_of(4) as u64 + 8).sum();
            1 + bytes.div_ceil(BLOCK) * 3 / 2
        }
        // A block holds 340 extents of up to 128 MiB. One block for every 32 GiB leaves a margin for shorter extents.
        NodeKind::File { size, .. } => size.div_ceil(BLOCK) + size.div_ceil(32 << 30),
        NodeKind::Symlink(target) => u64::from(target.len() > SHORT_LINK),
        NodeKind::Special(_) => 0,
    };
    own + u64::from(!node.attributes.is_empty())
}

/// Computes the layout. The error is the reason for [`ImportError::FileSystem`].
pub fn plan(tree: Tree, shape: &Shape) -> Result<Plan, String> {
    let (bytes, count) = usage(&tree);
    let inodes = count + count / 4 + 1024;
    // Each block group of 128 MiB has at most 32,768 inodes, so each inode takes at least one block of disk space.
    let needed = (bytes + inodes * INODE).max(inodes * BLOCK);
    let size = match shape.size {
        Some(size) if size < needed => {
            return Err(format!(
                "its files take {} MiB, more than the requested size of {} MiB",
                needed >> 20,
                size >> 20
            ));
        }
        Some(size) => size,
        None => (needed + HEADROOM.max(needed / 4)).max(SMALLEST),
    };
    let size = size.next_multiple_of(ROUND);
    let mut options = Options::new(size, shape.uuid, shape.made);
    options.label = Some("root".into());
    options.reserved_percent = 0;
    options.inodes = match u32::try_from(inodes.max(size / BYTES_PER_INODE)) {
        Ok(inodes) => InodeCount::Exact(inodes),
        Err(_) => return Err(format!("it has {count} files, more than ext4 supports")),
    };
    let text = |error: mkext4::Error| error.to_string();
    let mut builder = FsBuilder::new(options).map_err(text)?;
    let entries = declare(&mut builder, &tree)?;
    drop(tree);
    Ok(Plan { layout: builder.seal().map_err(text)?, entries })
}

/// The file that gets the content of an entry, and its size in bytes, by entry index.
type Contents = HashMap<u64, (InodeHandle, u64)>;

/// Declares all files to the builder. The error includes the file's path.
fn declare(builder: &mut FsBuilder, tree: &Tree) -> Result<Contents, String> {
    let mut handles: HashMap<usize, InodeHandle> = HashMap::from([(ROOT, mkext4::ROOT)]);
    let mut links: HashMap<usize, u32> = HashMap::new();
    let mut entries = HashMap::new();
    for_each(tree, &mut |id, node, place, new| {
        let failed = |error: mkext4::Error| format!("{:?}: {error}", tree.path_of(id));
        let Some((parent, name)) = place else {
            builder.set_meta(mkext4::ROOT, meta(node)).map_err(failed)?;
            return set_attributes(builder, mkext4::ROOT, node).map_err(failed);
        };
        let parent = handles[&parent];
        if !new {
            let links = links.entry(id).or_insert(1);
            *links += 1;
            if *links > LINK_LIMIT {
                return Err(format!(
                    "{:?} has more than {LINK_LIMIT} hard links, the maximum in ext4: replace some of them with copies \
                     or symbolic links",
                    tree.path_of(id)
                ));
            }
            return builder.hardlink(parent, name, handles[&id]).map_err(failed);
        }
        let handle = match &node.kind {
            NodeKind::Directory(_) => builder.mkdir(parent, name, meta(node)),
            NodeKind::File { size, .. } => builder.file(parent, name, meta(node), *size),
            NodeKind::Symlink(target) => builder.symlink(parent, name, target, meta(node)),
            NodeKind::Special(kind) => builder.mknod(parent, name, meta(node), *kind),
        };
        let handle = handle.map_err(failed)?;
        // Files without content need no data from the archive.
        if let NodeKind::File { size, entry } = node.kind
            && size > 0
        {
            entries.insert(entry, (handle, size));
        }
        handles.insert(id, handle);
        set_attributes(builder, handle, node).map_err(failed)
    })?;
    Ok(entries)
}

fn meta(node: &Node) -> Meta {
    Meta::new(node.mode, node.uid, node.gid, (node.modified, 0))
}

fn set_attributes(builder: &mut FsBuilder, handle: InodeHandle, node: &Node) -> mkext4::Result<()> {
    node.attributes.iter().try_for_each(|(name, value)| builder.set_xattr(handle, name, value))
}

/// Parameters: the node's ID, the node, its directory and name (`None` for the root), and true for its first name.
type Visit<'a, 'v, E> = dyn FnMut(usize, &'a Node, Option<(usize, &'a str)>, bool) -> Result<(), E> + 'v;

/// Visits all names in a tree except the root's [`LOST_FOUND`]. A directory comes before its children.
fn for_each<'a, E>(tree: &'a Tree, visit: &mut Visit<'a, '_, E>) -> Result<(), E> {
    let mut seen = vec![false; tree.nodes.len()];
    visit(ROOT, &tree.nodes[ROOT], None, true)?;
    let mut pending = vec![ROOT];
    while let Some(directory) = pending.pop() {
        let NodeKind::Directory(children) = &tree.nodes[directory].kind else { continue };
        for (name, &id) in children {
            let node = &tree.nodes[id];
            let is_directory = matches!(node.kind, NodeKind::Directory(_));
            if directory == ROOT && name == LOST_FOUND && is_directory {
                continue;
            }
            visit(id, node, Some((directory, name)), !std::mem::replace(&mut seen[id], true))?;
            if is_directory {
                pending.push(id);
            }
        }
    }
    Ok(())
}

impl Plan {
    pub fn write(
        self,
        archive: &TarFile,
        file: &File,
        path: &Path,
        space: &FreeSpace,
        progress: &dyn ImportProgress,
    ) -> Result<(), ImportError> {
        let failed = |error: mkext4::Error| match error {
            mkext4::Error::Io(error) if error.kind() == io::ErrorKind::StorageFull => ImportError::write(path)(error),
            error => ImportError::FileSystem { path: archive.path.clone(), reason: error.to_string() },
        };
        let length = self.layout.image_len();
        file.set_len(length).map_err(|error| failed(error.into()))?;
        let mut writer = self.layout.writer(Sink { file, length, space }).map_err(failed)?;
        archive.entries(progress, &mut |entry| match self.entries.get(&entry.index) {
            Some((_, size)) if *size != entry.size => {
                Err(entry.error(&archive.path, "which changed while the archive was being read: import it again"))
            }
            Some((handle, _)) => writer.fill(*handle, &mut entry.content()).map_err(failed),
            None => Ok(()),
        })?;
        writer.finish().map_err(failed)?;
        Ok(())
    }
}

/// Writes only blocks that are not all zeros, so that the file stays sparse.
struct Sink<'a> {
    file: &'a File,
    length: u64,
    space: &'a FreeSpace,
}

impl RegionSink for Sink<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        sparse::write_blocks_within(self.file, offset, bytes, self.space)
    }

    fn zeros(&mut self, offset: u64, length: u64) -> io::Result<()> {
        // Nothing to write: the new file consists of holes, which read as zeros.
        if offset.checked_add(length).is_none_or(|end| end > self.length) {
            return Err(io::Error::other("zeros past the end of the file system"));
        }
        Ok(())
    }
}
