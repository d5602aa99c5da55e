//! Places a tree on a volume.

use super::{
    super::map::{Data, Map},
    BLOCK, GROUP_BLOCKS, INODE_SIZE, Options, Run, Seed,
    directory::{self, Name, Place, types},
    extent,
    geometry::{Geometry, Space, set_bits},
    inode::{self, Inode, modes},
    special::{Resize, journal_blocks, journal_superblock},
    superblock::{self, Counts, FIRST_INODE, Group, JOURNAL_INODE},
    xattr::{self, Attributes},
};
use crate::{
    error::UserError,
    model::GuestPath,
    rootfs::{Content, Entry, Kind, Tree},
};
use anyhow::{Context as _, Result, bail, ensure};
use std::collections::{BTreeMap, HashMap};

const ROOT_INODE: u32 = 2;
const RESIZE_INODE: u32 = 7;
const LOST_AND_FOUND: &str = "/lost+found";
/// Blocks of a new `lost+found`, which must take names when the disk is in a bad state.
const LOST_AND_FOUND_BLOCKS: usize = 4;
/// Inodes that stay free at least, whatever the size.
const SPARE_INODES: u64 = 512;
/// More names than this and a directory's number of links is 1, for "many" (dir_nlink).
const MANY_LINKS: usize = 65000;
/// A size at which the fixed parts of any tree fit.
const ROOMY: u64 = 64 << 30;

/// A volume without room for what should be on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the file system needs {needed} bytes, not {size}")]
pub struct TooSmall {
    /// Bytes that are enough: whole MiB.
    pub needed: u64,
    /// Bytes that there are.
    pub size: u64,
}

/// Lays out an ext4 file system that holds `tree`. Files' bytes stay in the store.
///
/// # Errors
/// [`TooSmall`]; [`UserError`] when the tree holds what ext4 cannot.
pub fn format(tree: &Tree, options: &Options) -> Result<Map> {
    ensure!(options.label.len() <= 16, "the label `{}` is longer than 16 bytes", options.label);
    let inodes = Inodes::number(tree)?;
    if let Some(geometry) = Geometry::new(options.size, inodes.wanted()) {
        let (map, _, fits) = Builder::new(options, geometry).build(tree, &inodes)?;
        if fits {
            return map.finish();
        }
    }
    let needed = needed_by(tree, &inodes, options)?;
    Err(TooSmall { needed, size: options.size }.into())
}

/// The least size in bytes, whole MiB, of a file system that holds `tree`, whatever [`Options::size`] says.
///
/// # Errors
/// [`UserError`] when the tree holds what ext4 cannot.
pub fn needed(tree: &Tree, options: &Options) -> Result<u64> {
    needed_by(tree, &Inodes::number(tree)?, options)
}

fn needed_by(tree: &Tree, inodes: &Inodes<'_>, options: &Options) -> Result<u64> {
    // What there is shows on a volume where all of it has room.
    let geometry = Geometry::new(ROOMY, inodes.wanted()).context("the tree has too many files")?;
    let journal = journal_blocks(geometry.blocks);
    let (_, taken, _) = Builder::new(options, geometry).build(tree, inodes)?;
    Ok(enough(taken - journal, inodes.wanted()))
}

/// The least number of whole MiB that has room for `taken` blocks and a journal.
fn enough(taken: u64, inodes: u64) -> u64 {
    let mut size = (taken * BLOCK).next_multiple_of(1 << 20);
    loop {
        let missing = Geometry::new(size, inodes)
            .map_or(1, |geometry| (taken + journal_blocks(geometry.blocks)).saturating_sub(geometry.room()));
        if missing == 0 {
            return size;
        }
        size += (missing * BLOCK).next_multiple_of(1 << 20);
    }
}

fn placing(path: &GuestPath) -> String {
    format!("placing `{path}` on the disk")
}

/// The inode numbers of a tree.
struct Inodes<'t> {
    /// By path; a hard link has its target's.
    numbers: HashMap<&'t str, u32>,
    /// Names by directory.
    names: HashMap<&'t str, Vec<Name<'t>>>,
    /// Names of each regular file that has several.
    links: HashMap<u32, u16>,
    /// The highest number in use.
    count: u32,
}

impl<'t> Inodes<'t> {
    /// How many inodes a file system should have for them.
    fn wanted(&self) -> u64 {
        u64::from(self.count) + SPARE_INODES
    }

    fn number(tree: &'t Tree) -> Result<Inodes<'t>> {
        let mut inodes =
            Inodes { numbers: HashMap::new(), names: HashMap::new(), links: HashMap::new(), count: FIRST_INODE };
        ensure!(tree.get("/").is_some_and(|root| root.kind == Kind::Directory), "the tree has no root directory");
        for (path, entry) in &tree.entries {
            inodes.add(path, entry)?;
        }
        if !inodes.numbers.contains_key(LOST_AND_FOUND) {
            inodes.numbers.insert(LOST_AND_FOUND, FIRST_INODE);
            inodes.name("/", b"lost+found", FIRST_INODE, types::DIRECTORY);
        }
        Ok(inodes)
    }

    fn add(&mut self, path: &'t GuestPath, entry: &'t Entry) -> Result<()> {
        let known = match (&entry.kind, path.as_str()) {
            (_, "/") => Some(ROOT_INODE),
            (Kind::Directory, LOST_AND_FOUND) => Some(FIRST_INODE),
            (_, LOST_AND_FOUND) => bail!(UserError::usage("`/lost+found` must be a directory")),
            (Kind::Hardlink(target), _) => {
                let target = *self
                    .numbers
                    .get(target.as_str())
                    .with_context(|| format!("`{path}` is a link to `{target}`, which is not there"))?;
                let links = self.links.entry(target).or_insert(1);
                *links = links
                    .checked_add(1)
                    .filter(|links| usize::from(*links) <= MANY_LINKS)
                    .with_context(|| format!("`{path}` is one link too many: a file has {MANY_LINKS} names at most"))?;
                Some(target)
            }
            _ => None,
        };
        let number = known.unwrap_or_else(|| {
            self.count += 1;
            self.count
        });
        self.numbers.insert(path.as_str(), number);
        let name = path.file_name();
        if name.len() > 255 {
            bail!(UserError::usage(format!("the last part of `{path}` is longer than 255 bytes")));
        }
        if path.as_str() != "/" {
            let parent = &path.as_str()[..path.as_str().len() - name.len() - 1];
            let kind = match entry.kind {
                Kind::Directory => types::DIRECTORY,
                Kind::File(_) | Kind::Hardlink(_) => types::FILE,
                Kind::Symlink(_) => types::SYMLINK,
                Kind::Fifo => types::FIFO,
            };
            self.name(if parent.is_empty() { "/" } else { parent }, name.as_bytes(), number, kind);
        }
        Ok(())
    }

    fn name(&mut self, directory: &'t str, name: &'t [u8], inode: u32, kind: u8) {
        self.names.entry(directory).or_default().push(Name { name, inode, kind });
    }

    fn links(&self, number: u32) -> u16 {
        self.links.get(&number).copied().unwrap_or(1)
    }
}

struct Builder<'o> {
    options: &'o Options,
    seed: Seed,
    geometry: Geometry,
    space: Space,
    map: Map,
    /// Encoded inodes by number.
    inodes: BTreeMap<u32, [u8; INODE_SIZE]>,
    /// Directories by group.
    directories: HashMap<u64, u32>,
}

impl<'o> Builder<'o> {
    fn new(options: &'o Options, geometry: Geometry) -> Builder<'o> {
        let space = Space::new(&geometry);
        Builder {
            options,
            seed: Seed::new(options.uuid),
            space,
            // What does not fit is found out in the end, when all of it is known.
            map: Map::new(options.size),
            geometry,
            inodes: BTreeMap::new(),
            directories: HashMap::new(),
        }
    }

    /// Returns the map, the blocks taken, and whether the volume has them.
    fn build(mut self, tree: &Tree, inodes: &Inodes<'_>) -> Result<(Map, u64, bool)> {
        let journal = self.journal();
        self.resize();
        let (mut files, mut others) = (Vec::new(), Vec::new());
        for (path, entry) in &tree.entries {
            match &entry.kind {
                Kind::File(content) => files.push((self.rank(content), path, entry, *content)),
                Kind::Hardlink(_) => {}
                _ => others.push((path, entry)),
            }
        }
        files.sort_by_key(|(rank, ..)| *rank);
        for (_, path, entry, content) in files {
            let number = inodes.numbers[path.as_str()];
            let mut file = self.inode(entry, modes::FILE).with_context(|| placing(path))?;
            file.links = inodes.links(number);
            file.size = content.size;
            let runs = self.data(&Data::Content(content));
            self.extents(&mut file, number, &runs);
            self.add(number, &file);
        }
        for (path, entry) in others {
            let number = inodes.numbers[path.as_str()];
            let context = || placing(path);
            match &entry.kind {
                Kind::Directory => self.directory(path, entry, inodes).with_context(context)?,
                Kind::Symlink(target) => self.symlink(number, entry, target).with_context(context)?,
                _ => {
                    let fifo = self.inode(entry, modes::FIFO).with_context(context)?;
                    self.add(number, &fifo);
                }
            }
        }
        if tree.get(LOST_AND_FOUND).is_none() {
            self.lost_and_found();
        }
        let taken = self.space.taken;
        let fits = self.space.cursor <= self.geometry.blocks;
        if fits {
            self.groups(&journal, inodes.count);
        }
        Ok((self.map, taken, fits))
    }

    /// Where a file's bytes come among those of others.
    fn rank(&self, content: &Content) -> usize {
        let order = &self.options.order;
        order.iter().position(|blob| *blob == content.blob).unwrap_or(order.len())
    }

    fn journal(&mut self) -> Inode {
        let blocks = journal_blocks(self.geometry.blocks);
        let runs = self.space.take(blocks);
        self.map.put(runs[0].start * BLOCK, Data::Bytes(journal_superblock(blocks)));
        let mut journal = self.own_inode(modes::FILE | 0o600);
        journal.size = blocks * BLOCK;
        self.extents(&mut journal, JOURNAL_INODE, &runs);
        self.add(JOURNAL_INODE, &journal);
        journal
    }

    fn resize(&mut self) {
        let resize = Resize::new(&self.geometry, self.space.take_one());
        for (place, node) in resize.nodes {
            self.map.put(place * BLOCK, Data::Bytes(node));
        }
        let mut inode = self.own_inode(modes::FILE | 0o600);
        (inode.block, inode.size, inode.blocks) = (resize.block, resize.size, resize.blocks);
        self.add(RESIZE_INODE, &inode);
    }

    fn lost_and_found(&mut self) {
        let place = Place { inode: FIRST_INODE, parent: ROOT_INODE };
        let blocks = directory::roomy(place, LOST_AND_FOUND_BLOCKS, self.seed);
        let mut inode = self.own_inode(modes::DIRECTORY | 0o700);
        inode.links = 2;
        self.directory_blocks(inode, FIRST_INODE, blocks);
    }

    fn directory(&mut self, path: &GuestPath, entry: &Entry, inodes: &Inodes<'_>) -> Result<()> {
        let number = inodes.numbers[path.as_str()];
        let parent = path.parent().map_or(ROOT_INODE, |parent| inodes.numbers[parent.as_str()]);
        let names = inodes.names.get(path.as_str()).map_or(&[][..], Vec::as_slice);
        let place = Place { inode: number, parent };
        let directory::Blocks { blocks, indexed } = directory::blocks(place, names, self.options.hash_seed, self.seed)?;
        let mut inode = self.inode(entry, modes::DIRECTORY)?;
        let below = names.iter().filter(|name| name.kind == types::DIRECTORY).count();
        inode.links = if 2 + below > MANY_LINKS { 1 } else { 2 + below as u16 };
        if indexed {
            inode.flags |= inode::INDEX;
        }
        self.directory_blocks(inode, number, blocks);
        Ok(())
    }

    fn directory_blocks(&mut self, mut inode: Inode, number: u32, blocks: Vec<u8>) {
        inode.size = blocks.len() as u64;
        let runs = self.data(&Data::Bytes(blocks));
        self.extents(&mut inode, number, &runs);
        *self.directories.entry(self.group_of(number)).or_default() += 1;
        self.add(number, &inode);
    }

    fn symlink(&mut self, number: u32, entry: &Entry, target: &str) -> Result<()> {
        if target.is_empty() || target.len() >= BLOCK as usize {
            bail!(UserError::usage(format!("a symbolic link of {} bytes cannot be stored", target.len())));
        }
        let mut inode = self.inode(entry, modes::SYMLINK)?;
        inode.size = target.len() as u64;
        if target.len() < inode.block.len() {
            inode.block[..target.len()].copy_from_slice(target.as_bytes());
        } else {
            let runs = self.data(&Data::Bytes(target.into()));
            self.extents(&mut inode, number, &runs);
        }
        self.add(number, &inode);
        Ok(())
    }

    /// An inode of an entry of the tree, with its extended attributes stored.
    fn inode(&mut self, entry: &Entry, kind: u16) -> Result<Inode> {
        let mut inode = Inode {
            mode: kind | (entry.mode as u16 & 0o7777),
            uid: entry.uid,
            gid: entry.gid,
            time: entry.mtime,
            ..self.own_inode(0)
        };
        match xattr::encode(&entry.xattrs)? {
            Attributes::Inline(bytes) => inode.attributes = bytes,
            Attributes::Block(mut block) => {
                inode.attribute_block = self.space.take_one();
                inode.blocks += 1;
                xattr::seal(&mut block, inode.attribute_block, self.seed);
                self.map.put(inode.attribute_block * BLOCK, Data::Bytes(block));
            }
        }
        Ok(inode)
    }

    /// An inode that is not of the tree.
    fn own_inode(&self, mode: u16) -> Inode {
        Inode {
            mode,
            uid: 0,
            gid: 0,
            time: self.options.epoch,
            size: 0,
            links: 1,
            blocks: 0,
            flags: 0,
            block: [0; 60],
            attribute_block: 0,
            attributes: Vec::new(),
        }
    }

    /// Puts data on the next free blocks.
    fn data(&mut self, data: &Data) -> Vec<Run> {
        let runs = self.space.take(data.size().div_ceil(BLOCK));
        let mut skip = 0;
        for run in &runs {
            let length = (run.blocks * BLOCK).min(data.size() - skip);
            match data {
                Data::Content(content) => {
                    self.map.put_part(run.start * BLOCK, Data::Content(*content), skip, length);
                }
                Data::Bytes(bytes) => {
                    let part = bytes[skip as usize..(skip + length) as usize].to_vec();
                    self.map.put(run.start * BLOCK, Data::Bytes(part));
                }
            }
            skip += length;
        }
        runs
    }

    fn extents(&mut self, inode: &mut Inode, number: u32, runs: &[Run]) {
        let tree = extent::tree(runs, self.seed.of_inode(number), || self.space.take_one());
        inode.flags |= inode::EXTENTS;
        inode.block = tree.root;
        inode.blocks += runs.iter().map(|run| run.blocks).sum::<u64>() + tree.nodes.len() as u64;
        for (place, node) in tree.nodes {
            self.map.put(place * BLOCK, Data::Bytes(node));
        }
    }

    fn add(&mut self, number: u32, inode: &Inode) {
        self.inodes.insert(number, inode.encode(number, self.seed));
    }

    fn group_of(&self, inode: u32) -> u64 {
        u64::from((inode - 1) / self.geometry.inodes_per_group)
    }

    /// Puts what describes the groups: bitmaps, inode tables, descriptors, superblocks. `last` is the highest inode.
    fn groups(&mut self, journal: &Inode, last: u32) {
        let per_group = self.geometry.inodes_per_group;
        let mut descriptors = Vec::new();
        let mut free_blocks = 0;
        for number in 0..self.geometry.groups {
            let bitmap = self.space.bitmap(&self.geometry, number);
            let used: u64 = bitmap.iter().map(|byte| u64::from(byte.count_ones())).sum();
            let free = GROUP_BLOCKS - used;
            free_blocks += free;
            // A reader of the file system can see what is used in a group that has only the copy of the superblock.
            let untouched = self.space.cursor <= self.geometry.start(number)
                && !self.geometry.holds_tables(number)
                && number + 1 < self.geometry.groups;
            let block_bitmap = (!untouched).then(|| self.bitmap(self.geometry.block_bitmap(number), bitmap, BLOCK));
            let inodes = last.saturating_sub(number as u32 * per_group).min(per_group);
            let inode_bitmap = (inodes > 0).then(|| self.inodes(number, inodes));
            let group = Group {
                free_blocks: free as u32,
                inodes,
                directories: self.directories.get(&number).copied().unwrap_or(0),
                block_bitmap,
                inode_bitmap,
            };
            descriptors.extend(group.encode(&self.geometry, number, self.seed));
        }
        let counts = Counts {
            free_blocks,
            free_inodes: self.geometry.inodes() - u64::from(last),
            journal: journal.block,
            journal_size: journal.size,
        };
        for group in (0..self.geometry.groups).filter(|group| self.geometry.has_superblock(*group)) {
            let block = self.geometry.start(group) * BLOCK;
            let superblock = superblock::encode(self.options, &self.geometry, &counts, group);
            let at = if group == 0 { block + superblock.len() as u64 } else { block };
            self.map.put(at, Data::Bytes(superblock));
            self.map.put(block + BLOCK, Data::Bytes(descriptors.clone()));
        }
    }

    /// Puts a bitmap; returns the checksum of its first `size` bytes, those that say something.
    fn bitmap(&mut self, place: u64, bitmap: Vec<u8>, size: u64) -> u32 {
        let checksum = self.seed.checksum(&[&bitmap[..size as usize]]);
        self.map.put(place * BLOCK, Data::Bytes(bitmap));
        checksum
    }

    /// Puts the first `used` inodes of a group and their bitmap; returns the bitmap's checksum.
    fn inodes(&mut self, group: u64, used: u32) -> u32 {
        let per_group = self.geometry.inodes_per_group;
        let first = group as u32 * per_group + 1;
        let mut table = vec![0; used as usize * INODE_SIZE];
        for (number, inode) in self.inodes.range(first..first + used) {
            table[(number - first) as usize * INODE_SIZE..][..INODE_SIZE].copy_from_slice(inode);
        }
        self.map.put(self.geometry.inode_table(group) * BLOCK, Data::Bytes(table));
        let mut bitmap = vec![0; BLOCK as usize];
        set_bits(&mut bitmap, 0, used as usize);
        set_bits(&mut bitmap, per_group as usize, GROUP_BLOCKS as usize);
        self.bitmap(self.geometry.inode_bitmap(group), bitmap, u64::from(per_group) / 8)
    }
}
