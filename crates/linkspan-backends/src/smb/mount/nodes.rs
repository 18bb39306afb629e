//! What the kernel knows by a number: a path of the share each, and what is not durable there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use fuser::Errno;

use super::super::kept::{Content, Kept};
use super::names::{folder, join};

/// The number of the folder that is mounted.
pub(super) const ROOT: u64 = 1;

/// A file or folder that the kernel knows, or that is open.
#[derive(Debug, Default)]
pub(super) struct Node {
    /// Where it is; nowhere if it was removed.
    pub(super) path: Option<String>,
    /// How often the kernel was told the number.
    lookups: u64,
    /// How often it is open.
    opens: u64,
    /// Its size, as far as is known here.
    pub(super) size: u64,
    /// Since when.
    learned: Option<Instant>,
    /// It was removed while it was open, and has another name until it is closed.
    pub(super) hidden: bool,
    /// What was written and is not durable.
    pub(super) kept: Kept,
    /// The smallest size that it was given and that is not durable, if it was given one.
    pub(super) cut: Option<u64>,
    /// How often it was given a size.
    pub(super) cuts: u64,
    /// A flush failed that nobody waited for, or the file was not there any more.
    pub(super) failed: Option<Errno>,
}

impl Node {
    /// Whether something is not durable.
    pub(super) fn is_dirty(&self) -> bool {
        !self.kept.is_empty() || self.cut.is_some()
    }

    /// Whether its name is hidden, and whether it is open once.
    pub(super) fn hides(&self) -> (bool, bool) {
        (self.hidden, self.opens == 1)
    }

    /// Nothing of it is to be made durable any more.
    pub(super) fn give_up(&mut self) {
        (self.kept, self.cut) = (Kept::default(), None);
    }

    /// It has this size.
    pub(super) fn learn(&mut self, size: u64) {
        (self.size, self.learned) = (size, Some(Instant::now()));
    }

    /// Bytes were written.
    pub(super) fn wrote(&mut self, offset: u64, len: u64, content: Content) {
        self.kept.add(offset..offset + len, content);
        self.learn(self.size.max(offset + len));
    }

    /// It was given this size.
    pub(super) fn sized(&mut self, size: u64) {
        self.kept.forget(size..u64::MAX);
        self.cut = Some(self.cut.map_or(size, |cut| cut.min(size)));
        self.cuts += 1;
        self.learn(size);
    }

    /// What had happened until then is durable.
    pub(super) fn durable(&mut self, last: u64, cuts: u64) {
        self.kept.durable(last);
        if self.cuts == cuts {
            self.cut = None;
        }
    }
}

/// A name for a file that was removed and is open: nobody has it yet.
pub(super) fn hidden_name(path: &str, secret: u64, number: u64) -> String {
    let random = secret.wrapping_add(number);
    join(folder(path), &format!(".linkspan-{random:016x}"))
}

/// All of them.
#[derive(Debug)]
pub(super) struct Nodes {
    nodes: BTreeMap<u64, Node>,
    numbers: BTreeMap<String, u64>,
    /// Those that are open: nothing else has anything that is not durable.
    open: BTreeSet<u64>,
    next: u64,
}

impl Nodes {
    /// With the folder that is mounted.
    pub(super) fn new(root: &str) -> Self {
        let mut all = Self {
            nodes: BTreeMap::new(),
            numbers: BTreeMap::new(),
            open: BTreeSet::new(),
            next: ROOT,
        };
        all.found(root);
        all
    }

    pub(super) fn get(&mut self, number: u64) -> Result<&mut Node, Errno> {
        self.nodes.get_mut(&number).ok_or(Errno::ESTALE)
    }

    pub(super) fn all(&mut self) -> impl Iterator<Item = (u64, &mut Node)> {
        self.nodes.iter_mut().map(|(number, node)| (*number, node))
    }

    /// Where it is.
    pub(super) fn path(&self, number: u64) -> Result<String, Errno> {
        let node = self.nodes.get(&number).ok_or(Errno::ESTALE)?;
        node.path.clone().ok_or(Errno::ESTALE)
    }

    /// The path of a name in a folder.
    pub(super) fn child(&self, folder: u64, name: &str) -> Result<String, Errno> {
        Ok(join(&self.path(folder)?, name))
    }

    /// The number of a path, if it has one.
    pub(super) fn known(&self, path: &str) -> Option<u64> {
        self.numbers.get(path).copied()
    }

    /// The size of what is at a path, if more is known of it than a listing says that was begun
    /// then: it was written meanwhile, or is open, and a server may tell that when it is closed.
    pub(super) fn newer_size(&self, path: &str, listed: Instant) -> Option<u64> {
        let node = self.nodes.get(&self.known(path)?)?;
        let is_newer = node.learned.is_some_and(|learned| learned >= listed);
        (is_newer || node.opens > 0).then_some(node.size)
    }

    /// The number of a path, which the kernel is told.
    pub(super) fn found(&mut self, path: &str) -> u64 {
        let number = self.known(path).unwrap_or_else(|| {
            let number = self.next;
            self.next += 1;
            self.numbers.insert(path.into(), number);
            let node = Node {
                path: Some(path.into()),
                ..Node::default()
            };
            self.nodes.insert(number, node);
            number
        });
        if let Some(node) = self.nodes.get_mut(&number) {
            node.lookups += 1;
        }
        number
    }

    /// The kernel forgets a number that it was told so often.
    pub(super) fn forget(&mut self, number: u64, lookups: u64) {
        if let Some(node) = self.nodes.get_mut(&number) {
            node.lookups = node.lookups.saturating_sub(lookups);
        }
        self.tidy(number);
    }

    pub(super) fn opened(&mut self, number: u64) {
        if let Some(node) = self.nodes.get_mut(&number) {
            node.opens += 1;
            self.open.insert(number);
        }
    }

    /// It was closed, once.
    pub(super) fn closed(&mut self, number: u64) {
        if let Some(node) = self.nodes.get_mut(&number) {
            node.opens = node.opens.saturating_sub(1);
            if node.opens == 0 {
                self.open.remove(&number);
            }
        }
        self.tidy(number);
    }

    pub(super) fn is_open(&self, number: u64) -> bool {
        self.nodes.get(&number).is_some_and(|node| node.opens > 0)
    }

    fn tidy(&mut self, number: u64) {
        let unused = |node: &Node| node.lookups == 0 && node.opens == 0;
        if number == ROOT || !self.nodes.get(&number).is_some_and(unused) {
            return;
        }
        if let Some(path) = self.nodes.remove(&number).and_then(|node| node.path) {
            self.numbers.remove(&path);
        }
    }

    /// What is below a path, itself included.
    pub(super) fn below(&self, path: &str) -> Vec<u64> {
        let from = join(path, "");
        let within = self
            .numbers
            .range(from.clone()..)
            .take_while(|(path, _)| path.starts_with(&from));
        let below = within.map(|(_, number)| *number);
        self.known(path).into_iter().chain(below).collect()
    }

    /// What was at a path is nowhere any more.
    pub(super) fn gone(&mut self, path: &str) {
        for number in self.below(path) {
            if let Some(node) = self.nodes.get_mut(&number)
                && let Some(path) = node.path.take()
            {
                self.numbers.remove(&path);
            }
        }
    }

    /// What was at a path is at another one, and what was there is nowhere.
    pub(super) fn moved(&mut self, from: &str, to: &str) {
        let moved = self.below(from);
        self.gone(to);
        for number in moved {
            let Some(node) = self.nodes.get_mut(&number) else {
                continue;
            };
            let Some(old) = node.path.take() else {
                continue;
            };
            let new = format!("{to}{}", &old[from.len()..]);
            self.numbers.remove(&old);
            self.numbers.insert(new.clone(), number);
            node.path = Some(new);
        }
    }

    /// The same, and it was to be hidden if that is what it is called now.
    pub(super) fn was_moved(&mut self, from: &str, to: &str, secret: u64) {
        let number = self.known(from);
        self.moved(from, to);
        if let Some(number) = number
            && to == hidden_name(from, secret, number)
            && let Some(node) = self.nodes.get_mut(&number)
        {
            node.hidden = true;
        }
    }

    /// Bytes that are not durable, of all. The kernel may know very many, and this is asked with
    /// everything it asks.
    pub(super) fn cost(&self) -> u64 {
        let open = self.open.iter().filter_map(|number| self.nodes.get(number));
        open.map(|node| node.kept.cost()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_takes_along_what_is_in_it() {
        let mut nodes = Nodes::new("");
        let [a, b, other, there] = ["a", "a/b", "ab", "c/b"].map(|path| nodes.found(path));
        nodes.moved("a", "c");
        assert_eq!(nodes.path(a).unwrap(), "c");
        assert_eq!(nodes.path(b).unwrap(), "c/b");
        assert_eq!(nodes.path(other).unwrap(), "ab");
        assert_eq!(nodes.path(there).unwrap_err(), Errno::ESTALE);
        assert_eq!(nodes.known("a/b"), None);
        assert_eq!(nodes.found("c/b"), b);
        nodes.forget(b, 1);
        assert_eq!(nodes.known("c/b"), Some(b));
        nodes.opened(b);
        nodes.forget(b, 1);
        nodes.gone("c/b");
        assert!(nodes.get(b).is_ok() && nodes.found("c/b") != b);
        nodes.closed(b);
        assert!(nodes.get(b).is_err());
        nodes.forget(ROOT, u64::MAX);
        assert_eq!(nodes.child(ROOT, "x").unwrap(), "x");
    }

    #[test]
    fn what_is_open_counts() {
        let mut nodes = Nodes::new("");
        let [a, b] = ["a", "b"].map(|path| nodes.found(path));
        nodes.opened(a);
        nodes.opened(a);
        nodes.opened(b);
        for number in [a, b] {
            nodes.get(number).unwrap().wrote(0, 10, Content::Zeroes);
        }
        let both = nodes.cost();
        nodes.closed(a);
        assert!(nodes.cost() == both && both > 0);
        nodes.get(a).unwrap().give_up();
        nodes.closed(a);
        assert_eq!(nodes.cost(), both / 2);
        nodes.get(b).unwrap().give_up();
        assert_eq!(nodes.cost(), 0);
    }

    #[test]
    fn what_was_cut_off_is_not_written_again() {
        let mut node = Node::default();
        node.wrote(0, 10, Content::Zeroes);
        node.sized(4);
        node.sized(20);
        assert_eq!((node.cut, node.size), (Some(4), 20));
        assert!(
            node.kept
                .runs()
                .map(|(range, _)| range)
                .eq(std::iter::once(0..4))
        );
        node.durable(node.kept.last(), 1);
        assert!(node.is_dirty(), "it was given a size since");
        node.durable(node.kept.last(), 2);
        assert!(!node.is_dirty());
    }
}
