//! All packages that the solver can choose from, and which of them satisfy a dependency.

use crate::{
    debian::{
        depends::{self, Dependency},
        index::{Entry, Index, MultiArch},
        version::{self, Version},
    },
    model::Arch,
};
use std::{
    cell::{OnceCell, RefCell},
    cmp::{Ordering, Reverse},
    collections::{BTreeSet, HashMap},
    hash::{BuildHasherDefault, Hasher},
    ops::Range,
    rc::Rc,
};

/// The number of a package (of one version of it) in a [`Universe`].
pub(super) type Id = u32;

/// The number of a package's name.
pub(super) type Name = u32;

/// How strongly one package depends on another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `Depends` and `Pre-Depends`.
    Depends,
    /// `Recommends`.
    Recommends,
    /// `Suggests`.
    Suggests,
}

/// One of these is needed.
#[derive(Debug)]
pub(super) struct Group<'a> {
    pub(super) kind: Kind,
    /// The text in the index.
    pub(super) text: &'a str,
    pub(super) alternatives: Vec<Dependency<'a>>,
}

/// What a package says of others, in apt's order.
#[derive(Debug, Default)]
pub(super) struct Relations<'a> {
    pub(super) groups: Vec<Group<'a>>,
    /// `Conflicts` and `Breaks`.
    pub(super) refused: Vec<Dependency<'a>>,
}

/// All packages that may be chosen.
#[derive(Debug)]
pub(super) struct Universe<'a> {
    indices: &'a [Index],
    arch: Arch,
    entries: Vec<Entry<'a>>,
    versions: Vec<OnceCell<Option<Box<Version>>>>,
    name_of: Vec<Name>,
    names: Map<'a, Name>,
    /// By name: its packages, the candidate first.
    by_name: Lists<Id>,
    /// Names that are provided, numbered on their own.
    provided: Map<'a, u32>,
    providers: Lists<Provider<'a>>,
    relations: RefCell<HashMap<Id, Rc<Relations<'a>>>>,
    mentions: RefCell<HashMap<&'a str, Mention>>,
}

/// A package, and what it says of a name that it provides, such as `name (= 1.2)`.
type Provider<'a> = (Id, &'a str);

/// Many short lists in one piece of memory.
#[derive(Debug, Default)]
struct Lists<T> {
    items: Vec<T>,
    /// Where each list lies among the items.
    spans: Vec<Range<u32>>,
}

impl<T: Copy + Default> Lists<T> {
    /// The lists `0..count` of items that come with the number of their list, in their order.
    fn new(numbered: &[(u32, T)], count: usize) -> Lists<T> {
        let mut spans = vec![0..0; count];
        for &(list, _) in numbered {
            spans[list as usize].end += 1;
        }
        let mut start = 0;
        for span in &mut spans {
            let length = span.end;
            *span = start..start;
            start += length;
        }
        let mut items = vec![T::default(); numbered.len()];
        for &(list, item) in numbered {
            let end = &mut spans[list as usize].end;
            items[*end as usize] = item;
            *end += 1;
        }
        Lists { items, spans }
    }

    fn get(&self, list: u32) -> &[T] {
        self.spans.get(list as usize).map_or(&[], |span| &self.items[span.start as usize..span.end as usize])
    }

    fn get_mut(&mut self, list: u32) -> &mut [T] {
        let span = &self.spans[list as usize];
        &mut self.items[span.start as usize..span.end as usize]
    }

    /// Puts `items`, no more than there were, in the place of a list.
    fn replace(&mut self, list: u32, items: &[T]) {
        let span = &mut self.spans[list as usize];
        span.end = span.start + items.len() as u32;
        self.get_mut(list).copy_from_slice(items);
    }
}

/// A map from names. They come from a signed index, so an attacker cannot choose them to collide.
type Map<'a, T> = HashMap<&'a str, T, BuildHasherDefault<QuickHasher>>;

/// Takes in eight bytes at a time by rotation, exclusive or and multiplication.
#[derive(Debug, Default)]
struct QuickHasher(u64);

impl Hasher for QuickHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 = (self.0.rotate_left(5) ^ u64::from_le_bytes(word)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        }
    }

    fn finish(&self) -> u64 {
        // The high bits are well mixed; the table uses the low ones, too.
        self.0 ^ (self.0 >> 32)
    }
}

/// Where a name is first mentioned: index, paragraph, field in apt's order, place in the field.
type Mention = (usize, usize, usize, usize);

impl<'a> Universe<'a> {
    /// Gathers the packages of all indices but those whose names are excluded.
    pub(super) fn new(indices: &'a [Index], exclude: &[String]) -> Universe<'a> {
        let count = indices.iter().map(Index::len).sum();
        let mut entries = Vec::with_capacity(count);
        let mut names = Map::with_capacity_and_hasher(count, Default::default());
        let mut ids = Vec::with_capacity(count);
        let mut provided = Map::with_capacity_and_hasher(count, Default::default());
        let mut providers = Vec::with_capacity(count);
        for entry in indices.iter().flat_map(Index::entries) {
            if exclude.iter().any(|name| name == entry.name()) {
                continue;
            }
            let id = entries.len() as Id;
            ids.push((number(&mut names, entry.name()), id));
            entries.push(entry);
            for text in depends::groups(entry.provides()) {
                let end = text.find([' ', '(', ':', '\n', '\t']).unwrap_or(text.len());
                providers.push((number(&mut provided, &text[..end]), (id, text)));
            }
        }
        let mut universe = Universe {
            indices,
            arch: indices.first().map_or(Arch::HOST, Index::arch),
            versions: std::iter::repeat_with(OnceCell::new).take(entries.len()).collect(),
            entries,
            name_of: ids.iter().map(|&(name, _)| name).collect(),
            by_name: Lists::new(&ids, names.len()),
            names,
            providers: Lists::new(&providers, provided.len()),
            provided,
            relations: RefCell::default(),
            mentions: RefCell::default(),
        };
        for name in 0..universe.names() as Name {
            if universe.named(name).len() > 1 {
                let mut ids = universe.named(name).to_vec();
                // A stable sort: of equal versions, the first index's comes first.
                ids.sort_by(|&a, &b| universe.version(b).cmp(&universe.version(a)));
                ids.dedup_by_key(|id| universe.entry(*id).version());
                universe.by_name.replace(name, &ids);
            }
        }
        universe
    }

    pub(super) fn entry(&self, id: Id) -> Entry<'a> {
        self.entries[id as usize]
    }

    pub(super) fn name(&self, id: Id) -> Name {
        self.name_of[id as usize]
    }

    /// The packages of a name, the candidate first.
    pub(super) fn named(&self, name: Name) -> &[Id] {
        self.by_name.get(name)
    }

    /// How many names there are.
    pub(super) fn names(&self) -> usize {
        self.names.len()
    }

    /// How many packages there are.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    fn version(&self, id: Id) -> Option<&Version> {
        self.versions[id as usize]
            .get_or_init(|| version::parse(self.entry(id).version()).ok().map(Box::new))
            .as_deref()
    }

    /// Whether the package is the version of its name that is tried first.
    pub(super) fn is_candidate(&self, id: Id) -> bool {
        self.named(self.name(id)).first() == Some(&id)
    }

    /// The candidates of all essential packages, in the order of the indices.
    pub(super) fn essential(&self) -> impl Iterator<Item = Id> {
        (0..self.entries.len() as Id).filter(|&id| self.entry(id).essential() && self.is_candidate(id))
    }

    /// The package that is requested by name; makes its best version the candidate. The error is a line that says what
    /// is wrong, and a hint.
    pub(super) fn request(&mut self, wanted: &Dependency<'_>) -> Result<Id, (String, String)> {
        let name = match self.names.get(wanted.name) {
            Some(&name) => name,
            None => return self.only_provider(wanted),
        };
        let fits = |id: &Id| self.version(*id).is_some_and(|version| wanted.takes(version));
        match self.named(name).iter().position(fits) {
            Some(at) => {
                self.by_name.get_mut(name)[..=at].rotate_right(1);
                Ok(self.named(name)[0])
            }
            None => Err((
                format!("there is no package `{wanted}`, only {}", self.versions_of(wanted.name).join(", ")),
                "request a version that exists, or add a source that has the other".into(),
            )),
        }
    }

    /// Name and version of each package of a name.
    pub(super) fn versions_of(&self, name: &str) -> Vec<String> {
        let ids = self.names.get(name).map_or(&[][..], |&name| self.named(name));
        ids.iter().map(|&id| format!("{name} {}", self.entry(id).version())).collect()
    }

    /// The only package that provides a name that no package has.
    fn only_provider(&self, wanted: &Dependency<'_>) -> Result<Id, (String, String)> {
        let providers: BTreeSet<&str> = self.solutions(wanted).iter().map(|&id| self.entry(id).name()).collect();
        if providers.len() == 1 {
            return Ok(self.solutions(wanted)[0]);
        }
        if !providers.is_empty() {
            let list: Vec<_> = providers.into_iter().collect();
            return Err((
                format!("`{}` is not a package, but several provide it", wanted.name),
                format!("name one of {}", list.join(", ")),
            ));
        }
        let mut near: Vec<(Reverse<u32>, &str)> = self
            .names
            .keys()
            .map(|name| (Reverse((strsim::jaro_winkler(wanted.name, name) * 1000.0) as u32), *name))
            .filter(|(Reverse(likeness), _)| *likeness >= 860)
            .collect();
        near.sort_unstable();
        let near: Vec<_> = near.iter().take(3).map(|(_, name)| *name).collect();
        let hint = match near.as_slice() {
            [] => "check its spelling, or add the source that has it".to_owned(),
            near => format!("did you mean {}?", near.join(", ")),
        };
        Err((format!("there is no package `{}`", wanted.name), hint))
    }

    /// Every package that satisfies a dependency: those of its name, then those that provide it.
    pub(super) fn solutions(&self, wanted: &Dependency<'_>) -> Vec<Id> {
        let mut found = Vec::new();
        if let Some(&name) = self.names.get(wanted.name) {
            found.extend(self.named(name).iter().copied().filter(|&id| {
                self.qualifies(wanted.qualifier, id) && self.version(id).is_some_and(|version| wanted.takes(version))
            }));
        }
        let providers = self.provided.get(wanted.name).map_or(&[][..], |&name| self.providers.get(name));
        for &(id, provided) in providers {
            if !found.contains(&id) && self.provides(id, provided, wanted) && self.takes_part(id) {
                found.push(id);
            }
        }
        found
    }

    fn provides(&self, id: Id, provided: &str, wanted: &Dependency<'_>) -> bool {
        // What cannot be read satisfies nothing.
        let Ok(provided) = Dependency::parse(provided) else { return false };
        // An unversioned provision satisfies no versioned dependency (policy 7.5).
        let takes = match &provided.version {
            Some((_, version)) => wanted.takes(version),
            None => wanted.version.is_none(),
        };
        takes && (provided.qualifier == wanted.qualifier || self.qualifies(wanted.qualifier, id))
    }

    /// Whether the package was not left out for one of equal version from an earlier index.
    fn takes_part(&self, id: Id) -> bool {
        self.named(self.name(id)).contains(&id)
    }

    fn qualifies(&self, qualifier: Option<&str>, id: Id) -> bool {
        match qualifier {
            None => true,
            Some("any") => self.entry(id).multi_arch() == MultiArch::Allowed,
            Some(arch) => arch == self.arch.debian() || arch == "native",
        }
    }

    /// What a package says of others. What cannot be read in it is left out, as in apt.
    pub(super) fn relations(&self, id: Id) -> Rc<Relations<'a>> {
        if let Some(known) = self.relations.borrow().get(&id) {
            return known.clone();
        }
        let entry = self.entry(id);
        let groups_of = |field: &str| depends::groups(entry.get(field).unwrap_or_default());
        let mut relations = Relations::default();
        for (field, kind) in [
            ("Pre-Depends", Kind::Depends),
            ("Depends", Kind::Depends),
            ("Recommends", Kind::Recommends),
            ("Suggests", Kind::Suggests),
        ] {
            for text in groups_of(field) {
                if let Ok(alternatives) = depends::alternatives(text) {
                    relations.groups.push(Group { kind, text, alternatives });
                }
            }
        }
        for text in groups_of("Conflicts").chain(groups_of("Breaks")) {
            relations.refused.extend(Dependency::parse(text));
        }
        let relations = Rc::new(relations);
        self.relations.borrow_mut().insert(id, relations.clone());
        relations
    }

    /// Every package that `id` does not bear, by one of its refusals. A package may refuse what it provides itself.
    pub(super) fn refused(&self, id: Id, refusal: &Dependency<'_>) -> Vec<Id> {
        let mut refused = self.solutions(refusal);
        refused.retain(|&other| self.name(other) != self.name(id));
        refused
    }

    /// What satisfies one alternative, the best first: the rules by which apt ranks packages that provide a name.
    pub(super) fn ranked(&self, wanted: &Dependency<'_>) -> Vec<Id> {
        let mut found = self.solutions(wanted);
        let rank = |id: Id| {
            let entry = self.entry(id);
            (entry.name() != wanted.name, !entry.essential(), !entry.protected(), entry.priority())
        };
        found.sort_by(|&a, &b| {
            let by_mention = || self.first_mention(self.entry(b).name()).cmp(&self.first_mention(self.entry(a).name()));
            // Of one name, the candidate comes first already.
            let by_mention = || if self.name(a) == self.name(b) { Ordering::Equal } else { by_mention() };
            rank(a).cmp(&rank(b)).then_with(by_mention)
        });
        found
    }

    /// The packages of `solution` that something in it has a use for, counted from the roots; apt would remove the
    /// others again.
    pub(super) fn reachable(&self, roots: &[Id], solution: &BTreeSet<Id>) -> BTreeSet<Id> {
        let mut reached: BTreeSet<Id> = BTreeSet::new();
        let mut queue: Vec<Id> = roots.to_vec();
        queue.extend(solution.iter().copied().filter(|&id| self.entry(id).essential() || self.entry(id).protected()));
        while let Some(id) = queue.pop() {
            if !solution.contains(&id) || !reached.insert(id) {
                continue;
            }
            for group in &self.relations(id).groups {
                queue.extend(group.alternatives.iter().flat_map(|alternative| self.solutions(alternative)));
            }
        }
        reached
    }

    /// Where a name is first mentioned in the indices, in the order in which apt reads them. Apt numbers packages so,
    /// and where all else is equal it prefers the higher number.
    fn first_mention(&self, name: &'a str) -> Mention {
        if let Some(&known) = self.mentions.borrow().get(name) {
            return known;
        }
        let found = self
            .indices
            .iter()
            .enumerate()
            .find_map(|(number, index)| find_mention(index.text(), name).map(|(a, b, c)| (number, a, b, c)));
        let found = found.unwrap_or((usize::MAX, 0, 0, 0));
        self.mentions.borrow_mut().insert(name, found);
        found
    }
}

/// The fields that mention packages, in the order in which apt reads them.
const MENTIONING: [&str; 10] = [
    "Package",
    "Pre-Depends",
    "Depends",
    "Conflicts",
    "Breaks",
    "Recommends",
    "Suggests",
    "Replaces",
    "Enhances",
    "Provides",
];

/// The number of a name, a new one if it has none.
fn number<'a>(names: &mut Map<'a, u32>, name: &'a str) -> u32 {
    let next = names.len() as u32;
    *names.entry(name).or_insert(next)
}

fn find_mention(text: &str, name: &str) -> Option<(usize, usize, usize)> {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.' | b':' | b'_');
    let bytes = text.as_bytes();
    let mut best: Option<(usize, usize, usize)> = None;
    for at in memchr::memmem::find_iter(bytes, name) {
        let before = at.checked_sub(1).map_or(b'\n', |before| bytes[before]);
        let after = bytes.get(at + name.len()).copied().unwrap_or(b'\n');
        if is_part(before) || is_part(after) {
            continue;
        }
        let paragraph = text[..at].rfind("\n\n").map_or(0, |end| end + 2);
        if best.is_some_and(|(first, ..)| first != paragraph) {
            break;
        }
        let Some(line) = field_start(text, paragraph, at) else { continue };
        let field = text[line..].split(':').next().unwrap_or_default();
        if let Some(rank) = MENTIONING.iter().position(|known| *known == field) {
            let place = (paragraph, rank, at - line);
            best = Some(best.map_or(place, |best| best.min(place)));
        }
    }
    best
}

/// Where the field begins that `at` lies in.
fn field_start(text: &str, paragraph: usize, at: usize) -> Option<usize> {
    let mut end = at;
    loop {
        let line = text[paragraph..end].rfind('\n').map_or(paragraph, |end| paragraph + end + 1);
        if !matches!(text.as_bytes()[line], b' ' | b'\t') {
            return Some(line);
        }
        end = line.checked_sub(1).filter(|&end| end > paragraph)?;
    }
}
