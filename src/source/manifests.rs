//! Files as a source: Services, EndpointSlices and Nodes from YAML or JSON.
//!
//! One pass over the files makes one [`Loaded`], or an error that names file, document and line; a part
//! of the files is never the result. Each document is cut down before the next is read. Does not log
//! and does not watch: [`super::follow`] does.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::Metadata as _;
use serde::Deserialize;

pub use super::follow::{FollowError, follow};

use super::Watched;
use super::batch::Batch;
use super::documents::{self, Document};
use super::list;
use crate::model::{EndpointSlice, Event, Node, ObjectKey, Service};

/// What the files say.
#[derive(Debug, Default)]
pub struct Loaded {
    pub services: Vec<(ObjectKey, Service)>,
    pub slices: Vec<(ObjectKey, EndpointSlice)>,
    /// All there are, not only this node's.
    pub nodes: Vec<(ObjectKey, Node)>,
    /// Kinds that were left out, each once: `Deployment (apps/v1)`.
    pub skipped: Vec<String>,
    /// For the log, a line each: skipped kinds, objects given twice, fields that cannot be used.
    pub warnings: Vec<String>,
}

/// Why the files are not what is wanted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("manifests: {path} cannot be read")]
    Read { path: String, source: io::Error },
    #[error("manifests: {file}: document {document} (line {line}): {cause}")]
    Document { file: String, document: usize, line: usize, cause: String },
    #[error("manifests: {file} is empty, as if it were just being written")]
    Empty { file: String },
}

impl Loaded {
    /// The three events that make a State of it.
    pub fn into_events(self) -> [Event; 3] {
        [Event::Nodes(self.nodes), Event::Slices(self.slices), Event::Services(self.services)]
    }
}

/// Reads a file, or all manifests of a folder (not of the folders in it).
pub fn load(path: &Path) -> Result<Loaded, Error> {
    let mut loader = Loader::default();
    for file in files(path)? {
        loader.file(&file)?;
    }
    Ok(loader.finish())
}

/// As [`load`], from a text; `file` is what messages call it.
pub fn parse(file: &str, text: &str) -> Result<Loaded, Error> {
    let mut loader = Loader::default();
    loader.text(file, text)?;
    Ok(loader.finish())
}

/// The files that make up `path`, in the order in which they are read.
pub(crate) fn files(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::Read { path: path.display().to_string(), source };
    if !fs::metadata(path).map_err(failed)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        // A mounted ConfigMap is a folder of symbolic links, so the link's target is what counts.
        if is_manifest(&file) && fs::metadata(&file).is_ok_and(|data| data.is_file()) {
            found.push(file);
        }
    }
    found.sort();
    Ok(found)
}

fn is_manifest(file: &Path) -> bool {
    let hidden = file.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden && file.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
}

/// What a document's first words make of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    Service,
    Slice,
    Node,
    List,
    /// Nothing to say, and no reason to complain.
    Ignored,
    Skipped,
}

fn meaning(api_version: &str, kind: &str) -> Meaning {
    match (api_version, kind) {
        (Service::API_VERSION, Service::KIND) => Meaning::Service,
        (EndpointSlice::API_VERSION, EndpointSlice::KIND) => Meaning::Slice,
        (Node::API_VERSION, Node::KIND) => Meaning::Node,
        (_, "ServiceCIDR" | "ServiceCIDRList") => Meaning::Ignored,
        (_, list) if list.ends_with("List") => Meaning::List,
        _ => Meaning::Skipped,
    }
}

/// Kind and version of a document.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Header {
    pub api_version: String,
    pub kind: String,
}

/// The text of a document in either of its two languages.
#[derive(Clone, Copy)]
pub(crate) enum Text<'a> {
    Yaml(&'a str),
    Json(&'a str),
}

impl Text<'_> {
    fn decode<T: serde::de::DeserializeOwned>(self) -> Result<T, Mistake> {
        match self {
            Self::Yaml(text) => Ok(serde_norway::from_str(text)?),
            Self::Json(text) => Ok(serde_json::from_str(text)?),
        }
    }
}

/// What is wrong with a document.
#[derive(Debug)]
pub(crate) struct Mistake {
    /// In the document, from 1; 0: not known.
    line: usize,
    cause: String,
}

impl From<String> for Mistake {
    fn from(cause: String) -> Self {
        Self { line: 0, cause }
    }
}

impl From<serde_norway::Error> for Mistake {
    fn from(error: serde_norway::Error) -> Self {
        let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
        Self::at(line, column, &error.to_string())
    }
}

impl From<serde_json::Error> for Mistake {
    fn from(error: serde_json::Error) -> Self {
        Self::at(error.line(), error.column(), &error.to_string())
    }
}

impl Mistake {
    /// Both libraries end their texts with the line in the document, which would contradict the file's.
    fn at(line: usize, column: usize, text: &str) -> Self {
        let cause = text.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(text);
        Self { line, cause: cause.into() }
    }
}

#[derive(Default)]
struct Loader {
    services: Kept<Service>,
    slices: Kept<EndpointSlice>,
    nodes: Kept<Node>,
    skipped: BTreeSet<String>,
    warnings: Vec<String>,
}

/// The objects of a kind and which were seen: also of those that are not for us.
struct Kept<W> {
    batch: Batch<W>,
    seen: HashSet<ObjectKey>,
}

impl<W> Default for Kept<W> {
    fn default() -> Self {
        Self { batch: Batch::default(), seen: HashSet::new() }
    }
}

impl Loader {
    fn file(&mut self, file: &Path) -> Result<(), Error> {
        let name = file.display().to_string();
        let text = fs::read_to_string(file).map_err(|source| Error::Read { path: name.clone(), source })?;
        self.text(&name, &text)
    }

    fn text(&mut self, file: &str, text: &str) -> Result<(), Error> {
        for document in documents::split(text) {
            self.document(&document, file).map_err(|mistake| Error::Document {
                file: file.into(),
                document: document.number,
                line: document.line + mistake.line.saturating_sub(1),
                cause: mistake.cause,
            })?;
        }
        Ok(())
    }

    fn document(&mut self, document: &Document<'_>, file: &str) -> Result<(), Mistake> {
        let text = if document.is_json() { Text::Json(document.text) } else { Text::Yaml(document.text) };
        let header = match (document.top_level("apiVersion"), document.top_level("kind")) {
            (Some(version), Some(kind)) => Header { api_version: version.into(), kind: kind.into() },
            _ => text.decode::<Header>()?,
        };
        let place = format!("{file}, document {}", document.number);
        match meaning(&header.api_version, &header.kind) {
            Meaning::Service => keep(&mut self.services, text.decode()?, &place, &mut self.warnings)?,
            Meaning::Slice => keep(&mut self.slices, text.decode()?, &place, &mut self.warnings)?,
            Meaning::Node => keep(&mut self.nodes, text.decode()?, &place, &mut self.warnings)?,
            Meaning::List => list::each_item(text, |item, number| self.item(item, number, &header, &place))?,
            Meaning::Ignored | Meaning::Skipped => {
                // It need not make sense to us, but half a document must not pass for another kind.
                text.decode::<serde::de::IgnoredAny>()?;
                self.skip(&header)?;
            }
        }
        Ok(())
    }

    /// An object out of a list. A typed list (`ServiceList`) need not say the kind of each.
    fn item(&mut self, item: serde_json::Value, number: usize, list: &Header, place: &str) -> Result<(), String> {
        let word = |key: &str| item.get(key).and_then(serde_json::Value::as_str).map(str::to_owned);
        let header = Header {
            kind: word("kind").unwrap_or_else(|| list.kind.strip_suffix("List").unwrap_or_default().into()),
            api_version: word("apiVersion").unwrap_or_else(|| list.api_version.clone()),
        };
        let place = format!("{place}, items[{number}]");
        let done = match meaning(&header.api_version, &header.kind) {
            Meaning::Service => decode_item(item).and_then(|o| keep(&mut self.services, o, &place, &mut self.warnings)),
            Meaning::Slice => decode_item(item).and_then(|o| keep(&mut self.slices, o, &place, &mut self.warnings)),
            Meaning::Node => decode_item(item).and_then(|o| keep(&mut self.nodes, o, &place, &mut self.warnings)),
            Meaning::List | Meaning::Ignored | Meaning::Skipped => self.skip(&header),
        };
        done.map_err(|cause| format!("items[{number}]: {cause}"))
    }

    /// Leaves an object out, and says so once for its kind.
    fn skip(&mut self, header: &Header) -> Result<(), String> {
        if header.kind.is_empty() {
            return Err("has no kind".into());
        }
        if meaning(&header.api_version, &header.kind) == Meaning::Ignored {
            return Ok(());
        }
        let text = format!("{} ({})", header.kind, header.api_version);
        if self.skipped.insert(text.clone()) {
            self.warnings.push(format!("manifests: objects of kind {text} are skipped"));
        }
        Ok(())
    }

    fn finish(self) -> Loaded {
        let mut warnings = self.warnings;
        warnings.extend(self.services.batch.describe_problems());
        warnings.extend(self.slices.batch.describe_problems());
        warnings.extend(self.nodes.batch.describe_problems());
        Loaded {
            services: self.services.batch.into_values(),
            slices: self.slices.batch.into_values(),
            nodes: self.nodes.batch.into_values(),
            skipped: self.skipped.into_iter().collect(),
            warnings,
        }
    }
}

fn decode_item<T: serde::de::DeserializeOwned>(item: serde_json::Value) -> Result<T, String> {
    serde_json::from_value(item).map_err(|error| error.to_string())
}

/// Cuts an object down and keeps that. `place` is where it was read.
fn keep<W: Watched>(kept: &mut Kept<W>, mut object: W::Object, place: &str, warnings: &mut Vec<String>) -> Result<(), String> {
    let metadata = object.metadata_mut();
    if metadata.name.as_deref().unwrap_or_default().is_empty() {
        return Err(format!("{} has no metadata.name", W::KIND));
    }
    let namespace = metadata.namespace.take().filter(|n| !n.is_empty());
    metadata.namespace = W::NAMESPACED.then(|| namespace.unwrap_or_else(|| "default".into()));
    let parsed = W::cut_down(&object);
    if !kept.seen.insert(parsed.key.clone()) {
        warnings.push(format!(
            "{} {}: given more than once, the one of {place} takes the place of those before",
            W::KIND,
            parsed.key
        ));
    }
    kept.batch.add(parsed);
    Ok(())
}
