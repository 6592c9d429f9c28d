//! Scripts of operations on files, made from a seed, and the operations that `trace` must report
//! for them.
//!
//! A script is a sequence of steps. A guest performs the steps of one sync, then synchronises. The
//! expectation is derived from the meaning of the system calls, and from a model of the tree.

use crate::random::Random;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What a filesystem has.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// Symbolic links, permissions, owners.
    pub is_unix: bool,
    /// Hard links.
    pub has_links: bool,
    /// Extended attributes.
    pub has_xattrs: bool,
    /// `renameat2` with `RENAME_EXCHANGE`.
    pub has_exchange: bool,
    /// `fallocate` with `FALLOC_FL_PUNCH_HOLE`.
    pub has_punch: bool,
    /// Empty files can be identified: they have an inode number.
    pub has_inodes: bool,
}

/// All of them.
pub const ALL: Features = Features {
    is_unix: true,
    has_links: true,
    has_xattrs: true,
    has_exchange: true,
    has_punch: true,
    has_inodes: true,
};

/// What the filesystem with this name has.
pub fn features(name: &str) -> Features {
    match name {
        // The driver of ext2 has no such system calls.
        "ext2" => Features { has_exchange: false, has_punch: false, ..ALL },
        "fat" => Features {
            is_unix: false,
            has_links: false,
            has_xattrs: false,
            has_punch: false,
            has_inodes: false,
            ..ALL
        },
        "ntfs" => {
            Features { is_unix: false, has_xattrs: false, has_exchange: false, has_punch: false, ..ALL }
        }
        _ => ALL,
    }
}

/// An operation that must be reported.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Expected {
    /// The word for it.
    pub op: &'static str,
    /// The letter of the type: `f`, `d` or `s`.
    pub kind: char,
    /// Its path.
    pub path: String,
    /// The previous name of a rename; any other name of a link's file; the other name of an
    /// exchange.
    pub from: BTreeSet<String>,
    /// Bytes of the file that must be among the written ones: offset and length.
    pub written: Option<(u64, u64)>,
    /// The size afterwards.
    pub size: Option<u64>,
}

/// The steps up to a sync.
#[derive(Clone, Debug, Default)]
pub struct Round {
    /// For `operations.py`.
    pub steps: Vec<Value>,
    /// What must be reported, in the order of the steps.
    pub expected: Vec<Expected>,
}

#[derive(Clone, Debug)]
struct Node {
    kind: char,
    names: BTreeSet<String>,
    size: u64,
    mode: u64,
    /// Ranges that were punched and not written since.
    holes: Vec<(u64, u64)>,
    /// Whether a step of this round concerns it.
    is_touched: bool,
    /// Whether this round created it.
    is_new: bool,
}

/// Makes scripts.
pub struct Writer {
    random: Random,
    features: Features,
    nodes: BTreeMap<u64, Node>,
    names: BTreeMap<String, u64>,
    count: u64,
    round: Round,
    /// What the round created, and where it is expected.
    created: Vec<(u64, usize)>,
}

/// The size of a block, a multiple of every tested filesystem's.
const BLOCK: u64 = 4096;
/// Smaller files may lie within their inode or in a tail.
pub const SMALL: u64 = 4096;

const WORDS: [&str; 18] = [
    "create", "create", "create", "mkdir", "write", "write", "append", "truncate", "rename", "replace",
    "link", "delete", "rmdir", "chmod", "chown", "touch", "symlink", "more",
];
/// These need features that few filesystems have.
const MORE: [&str; 3] = ["setxattr", "exchange", "punch"];

impl Writer {
    /// For a filesystem whose root directory is empty.
    pub fn new(seed: u64, part: usize, features: Features) -> Self {
        Self {
            random: Random::of(seed, part),
            features,
            nodes: BTreeMap::new(),
            names: BTreeMap::new(),
            count: 0,
            round: Round::default(),
            created: Vec::new(),
        }
    }

    /// The next rounds: `steps` steps in rounds of `each`.
    pub fn rounds(&mut self, steps: usize, each: usize) -> Vec<Round> {
        (0..steps.div_ceil(each)).map(|_| self.round(each)).collect()
    }

    fn round(&mut self, steps: usize) -> Round {
        for node in self.nodes.values_mut() {
            (node.is_touched, node.is_new) = (false, false);
        }
        while self.round.steps.len() < steps {
            let word = self.choose(&WORDS);
            let word = if word == "more" { self.choose(&MORE) } else { word };
            self.step(word);
        }
        // What was created in the round is reported by its last name, unless it is gone.
        let mut round = std::mem::take(&mut self.round);
        let mut gone = BTreeSet::new();
        for (id, at) in std::mem::take(&mut self.created) {
            match self.nodes.get(&id) {
                Some(node) => {
                    round.expected[at].path = node.names.first().unwrap().clone();
                    round.expected[at].size = (node.kind == 'f').then_some(node.size);
                    round.expected[at].written = (node.size >= SMALL).then_some((0, node.size));
                    if !node.holes.is_empty() {
                        round.expected[at].written = None;
                    }
                }
                None => drop(gone.insert(at)),
            }
        }
        let mut at = 0..;
        round.expected.retain(|_| !gone.contains(&at.next().unwrap()));
        round
    }

    /// Adds a step of this kind, if the tree has something for it.
    fn step(&mut self, word: &'static str) {
        let Features { is_unix, has_links, has_xattrs, has_exchange, has_punch, .. } = self.features;
        match word {
            "create" => self.create(),
            "mkdir" => self.mkdir(),
            "symlink" if is_unix => self.symlink(),
            "write" | "append" | "truncate" => self.change_content(word),
            "punch" if has_punch => self.punch(),
            "rename" => self.rename(),
            "replace" => self.replace(),
            "exchange" if has_exchange => self.exchange(),
            "link" if has_links => self.link(),
            "delete" => self.delete(),
            "rmdir" => self.rmdir(),
            "chmod" | "chown" if is_unix => self.change_attributes(word),
            "touch" => self.change_attributes(word),
            "setxattr" if has_xattrs => self.change_attributes(word),
            _ => {}
        }
    }

    fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.random.below(from.len() as u64) as usize]
    }

    /// One of the nodes that `is_suitable`: their ids.
    fn pick(&mut self, is_suitable: impl Fn(&Node) -> bool) -> Option<u64> {
        let ids: Vec<u64> =
            self.nodes.iter().filter(|(_, node)| is_suitable(node)).map(|(id, _)| *id).collect();
        (!ids.is_empty()).then(|| self.choose(&ids))
    }

    /// A directory in which something may be made: one of the tree's, or the root.
    fn directory(&mut self) -> String {
        if self.random.below(3) == 0 {
            return String::new();
        }
        let id = self.pick(|node| node.kind == 'd');
        id.map(|id| self.name(id)).filter(|name| name.matches('/').count() < 5).unwrap_or_default()
    }

    fn name(&self, id: u64) -> String {
        self.nodes[&id].names.first().unwrap().clone()
    }

    /// A path that was never used.
    fn fresh(&mut self, letter: char) -> String {
        let directory = self.directory();
        self.count += 1;
        format!("{directory}/{letter}{}", self.count)
    }

    fn expect(&mut self, op: &'static str, kind: char, path: &str) -> &mut Expected {
        let (from, path) = (BTreeSet::new(), path.to_owned());
        self.round.expected.push(Expected { op, kind, path, from, written: None, size: None });
        self.round.expected.last_mut().unwrap()
    }

    fn add(&mut self, kind: char, path: &str, size: u64, op: &'static str) {
        self.count += 1;
        let id = self.count;
        let names = BTreeSet::from([path.to_owned()]);
        let node = Node { kind, names, size, mode: 0, holes: Vec::new(), is_touched: true, is_new: true };
        self.nodes.insert(id, node);
        self.names.insert(path.to_owned(), id);
        self.expect(op, kind, path);
        self.created.push((id, self.round.expected.len() - 1));
    }

    fn create(&mut self) {
        let path = self.fresh('f');
        let size = match self.random.below(8) {
            0 if self.features.has_inodes => 0,
            0..3 => 1 + self.random.below(600),
            _ => 1 + self.random.below(15 * BLOCK),
        };
        self.count += 1;
        self.round.steps.push(json!(["create", path, self.count, size]));
        self.add('f', &path, size, "create");
    }

    fn mkdir(&mut self) {
        let path = self.fresh('d');
        self.round.steps.push(json!(["mkdir", path]));
        self.add('d', &path, 0, "mkdir");
    }

    fn symlink(&mut self) {
        let path = self.fresh('s');
        // A long target does not fit into the inode.
        let target = format!("../{}", "t".repeat(1 + self.random.below(120) as usize));
        self.round.steps.push(json!(["symlink", path, target]));
        self.add('s', &path, 0, "symlink");
    }

    /// Marks a node as changed by a step. Returns whether its creation in this round includes the
    /// change.
    fn touch(&mut self, id: u64) -> bool {
        let node = self.nodes.get_mut(&id).unwrap();
        node.is_touched = true;
        node.is_new
    }

    fn change_content(&mut self, word: &'static str) {
        let suits = |node: &Node| node.kind == 'f' && node.names.len() == 1 && node.size > 0 && is_free(node);
        let Some(id) = self.pick(suits) else { return };
        let (path, size) = (self.name(id), self.nodes[&id].size);
        self.count += 1;
        let tag = self.count;
        let (written, after) = match word {
            "write" => {
                let offset = self.random.below(size.div_ceil(BLOCK)) * BLOCK;
                let length = BLOCK.min(size - offset);
                self.round.steps.push(json!([word, path, tag, offset, length]));
                (Some((offset, length)), size)
            }
            "append" => {
                let length = 1 + self.random.below(5 * BLOCK);
                self.round.steps.push(json!([word, path, tag, length]));
                (Some((size, length)), size + length)
            }
            _ => {
                let least = u64::from(!self.features.has_inodes);
                if size <= least {
                    return;
                }
                let after = least + self.random.below(size - least);
                self.round.steps.push(json!([word, path, after]));
                (None, after)
            }
        };
        let node = self.nodes.get_mut(&id).unwrap();
        node.size = after;
        if let Some((start, length)) = written {
            node.holes.retain(|hole| hole.0 + hole.1 <= start || start + length <= hole.0);
        }
        if !self.touch(id) {
            let expected = self.expect(word, 'f', &path);
            expected.size = Some(after);
            expected.written = written.filter(|_| after >= SMALL);
        }
    }

    fn punch(&mut self) {
        let suits = |node: &Node| {
            let is_large = node.kind == 'f' && node.size >= 3 * BLOCK;
            is_large && node.names.len() == 1 && node.holes.is_empty() && is_free(node)
        };
        let Some(id) = self.pick(suits) else { return };
        let (path, blocks) = (self.name(id), self.nodes[&id].size / BLOCK);
        let start = self.random.below(blocks - 1);
        let (offset, length) = (start * BLOCK, (1 + self.random.below(blocks - start)) * BLOCK);
        self.round.steps.push(json!(["punch", path, offset, length]));
        self.nodes.get_mut(&id).unwrap().holes.push((offset, length));
        if !self.touch(id) {
            let size = self.nodes[&id].size;
            self.expect("punch", 'f', &path).size = Some(size);
        }
    }

    /// A node that can be renamed or exchanged: neither it nor anything in it was touched.
    fn movable(&mut self, kinds: &str) -> Option<u64> {
        let touched: Vec<String> = self
            .nodes
            .values()
            .filter(|node| node.is_touched)
            .flat_map(|node| node.names.iter().cloned())
            .collect();
        let linked: Vec<String> = self
            .nodes
            .values()
            .filter(|node| node.names.len() > 1)
            .flat_map(|node| node.names.iter().cloned())
            .collect();
        self.pick(|node| {
            let within = |names: &[String]| {
                let prefix = format!("{}/", node.names.first().unwrap());
                names.iter().any(|name| name.starts_with(&prefix))
            };
            let is_alone = node.names.len() == 1 && !within(&touched) && !within(&linked);
            kinds.contains(node.kind) && is_alone && !node.is_touched
        })
    }

    /// Gives everything at or below `old` its new name, and marks it as touched.
    fn moved(&mut self, old: &str, new: &str) {
        let prefix = format!("{old}/");
        let below = |name: &&String| *name == old || name.starts_with(&prefix);
        let names: Vec<String> = self.names.keys().filter(below).cloned().collect();
        let ids: Vec<(String, u64)> = names
            .into_iter()
            .map(|name| {
                let id = self.names.remove(&name).unwrap();
                (name, id)
            })
            .collect();
        for (name, id) in ids {
            let renamed = format!("{new}{}", &name[old.len()..]);
            let node = self.nodes.get_mut(&id).unwrap();
            node.names.remove(&name);
            node.names.insert(renamed.clone());
            node.is_touched = true;
            self.names.insert(renamed, id);
        }
    }

    fn rename(&mut self) {
        let Some(id) = self.movable("fds") else { return };
        let (old, kind) = (self.name(id), self.nodes[&id].kind);
        let new = self.fresh(kind);
        if new.starts_with(&format!("{old}/")) {
            return;
        }
        self.round.steps.push(json!(["rename", old, new]));
        self.moved(&old, &new);
        self.expect("rename", kind, &new).from.insert(old);
    }

    /// A rename over an existing file: the old file is deleted.
    fn replace(&mut self) {
        let Some(id) = self.movable("f") else { return };
        let victim = self.pick(|node| node.kind == 'f' && !node.is_touched);
        let Some(victim) = victim.filter(|victim| *victim != id) else { return };
        let (old, new) = (self.name(id), self.name(victim));
        self.round.steps.push(json!(["rename", old, new]));
        self.forget(victim, &new);
        self.moved(&old, &new);
        self.expect("rename", 'f', &new).from.insert(old);
    }

    fn exchange(&mut self) {
        let kinds = self.choose(&["f", "f", "d"]);
        let (Some(a), Some(b)) = (self.movable(kinds), self.movable(kinds)) else { return };
        let (a, b) = (self.name(a), self.name(b));
        if a == b || b.starts_with(&format!("{a}/")) || a.starts_with(&format!("{b}/")) {
            return;
        }
        self.round.steps.push(json!(["exchange", a, b]));
        self.moved(&a, "/x");
        self.moved(&b, &a);
        self.moved("/x", &b);
        self.expect("exchange", kinds.chars().next().unwrap(), &a).from.insert(b);
    }

    fn link(&mut self) {
        let Some(id) = self.pick(|node| node.kind == 'f' && !node.is_touched && node.names.len() < 3) else {
            return;
        };
        let (old, new) = (self.name(id), self.fresh('f'));
        let from = self.nodes[&id].names.clone();
        self.round.steps.push(json!(["link", old, new]));
        self.touch(id);
        self.nodes.get_mut(&id).unwrap().names.insert(new.clone());
        self.names.insert(new.clone(), id);
        self.expect("link", 'f', &new).from = from;
    }

    /// Removes a name, and expects what this means for the file.
    fn forget(&mut self, id: u64, name: &str) {
        self.names.remove(name);
        let node = self.nodes.get_mut(&id).unwrap();
        node.names.remove(name);
        node.is_touched = true;
        let (kind, is_new, is_gone) = (node.kind, node.is_new, node.names.is_empty());
        if is_gone {
            self.nodes.remove(&id);
        }
        if !is_new {
            let op = match (kind, is_gone) {
                ('d', _) => "rmdir",
                (_, true) => "delete",
                (_, false) => "unlink",
            };
            self.expect(op, kind, name);
        }
    }

    fn delete(&mut self) {
        let Some(id) = self.pick(|node| node.kind != 'd' && is_free(node)) else { return };
        let names: Vec<String> = self.nodes[&id].names.iter().cloned().collect();
        let name = self.choose(&names.iter().collect::<Vec<_>>()).clone();
        self.round.steps.push(json!([if names.len() > 1 { "unlink" } else { "delete" }, name]));
        self.forget(id, &name);
    }

    fn rmdir(&mut self) {
        let names: Vec<String> = self.names.keys().cloned().collect();
        let suits = |node: &Node| {
            let prefix = format!("{}/", node.names.first().unwrap());
            node.kind == 'd' && is_free(node) && !names.iter().any(|name| name.starts_with(&prefix))
        };
        let Some(id) = self.pick(suits) else { return };
        let name = self.name(id);
        self.round.steps.push(json!(["rmdir", name]));
        self.forget(id, &name);
    }

    fn change_attributes(&mut self, word: &'static str) {
        let is_directory_too = matches!(word, "chmod" | "chown");
        let Some(id) = self.pick(|node| {
            let is_kind = node.kind == 'f' || is_directory_too && node.kind == 'd';
            is_kind && is_free(node) && node.names.len() == 1
        }) else {
            return;
        };
        let (path, kind) = (self.name(id), self.nodes[&id].kind);
        self.count += 1;
        let number = self.count;
        let node = self.nodes.get_mut(&id).unwrap();
        let step = match word {
            "chmod" => {
                node.mode = if node.mode == 0o700 { 0o750 } else { 0o700 };
                json!([word, path, node.mode])
            }
            "chown" => json!([word, path, 1000 + number, 100]),
            // FAT keeps even seconds, and the date of the last access.
            "touch" => json!([word, path, 1_600_000_000 + number * 86400]),
            _ => json!([word, path, format!("user.a{}", number % 3), format!("value {number}")]),
        };
        self.round.steps.push(step);
        if !self.touch(id) {
            self.expect(word, kind, &path);
        }
    }
}

/// Whether a step may change it: no step of this round did, or the round created it.
fn is_free(node: &Node) -> bool {
    !node.is_touched || node.is_new
}

#[test]
fn a_script_has_steps_of_every_kind_and_expects_each_of_them() {
    let rounds = Writer::new(1, 0, ALL).rounds(300, 1);
    let words: BTreeSet<&str> =
        rounds.iter().flat_map(|round| round.expected.iter().map(|expected| expected.op)).collect();
    let all = [
        "append", "chmod", "chown", "create", "delete", "exchange", "link", "mkdir", "punch", "rename",
        "rmdir", "setxattr", "symlink", "touch", "truncate", "unlink", "write",
    ];
    assert_eq!(words, BTreeSet::from(all));
    for round in &rounds {
        let step = round.steps[0][0].as_str().unwrap();
        assert_eq!(round.expected.last().unwrap().op, step, "{round:?}");
        // A rename over an existing name also deletes or unlinks a file.
        assert!(round.expected.len() == 1 || step == "rename" && round.expected.len() == 2, "{round:?}");
    }
}
