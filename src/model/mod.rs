//! What Services mean for one node: the objects cut down to what rules depend on, the state they make
//! together, which endpoints get which traffic, and which tracked flows are stale.
//!
//! Pure: no clock, socket, log, metric or lock. It knows Kubernetes and no kernel. Sources feed it
//! [`Event`]s; [`crate::render`] reads [`State`].

pub mod endpoint;
pub mod flows;
pub mod node;
pub mod select;
pub mod service;
mod state;

use std::cmp::Ordering;
use std::fmt::{self, Write as _};
use std::sync::Arc;

pub use endpoint::{Endpoint, EndpointSlice};
pub use node::Node;
pub use service::{Service, ServicePort};
pub use state::{Changes, Received, Size, State, Trigger};

/// Namespace and name of an object. Cluster-scoped objects have an empty namespace.
///
/// One allocation, shared by all copies: each object's key stands in several maps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ObjectKey {
    /// The namespace, and behind it the name.
    text: Arc<str>,
    /// Length of the namespace.
    split: usize,
}

impl ObjectKey {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { text: format!("{namespace}{name}").into(), split: namespace.len() }
    }

    pub fn namespace(&self) -> &str {
        &self.text[..self.split]
    }

    pub fn name(&self) -> &str {
        &self.text[self.split..]
    }
}

/// By namespace, then by name.
impl Ord for ObjectKey {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.namespace(), self.name()).cmp(&(other.namespace(), other.name()))
    }
}

impl PartialOrd for ObjectKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// On one line, whatever a file calls its objects: keys stand in log lines.
impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.namespace().is_empty() {
            write_visible(f, self.namespace())?;
            f.write_char('/')?;
        }
        write_visible(f, self.name())
    }
}

fn write_visible(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    if !text.contains(char::is_control) {
        return f.write_str(text);
    }
    text.chars().try_for_each(|c| if c.is_control() { write!(f, "{}", c.escape_default()) } else { f.write_char(c) })
}

/// A part of an object that could not be used, and what it was. The rest of the object was used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Path of the field, as in the object: `spec.externalIPs[1]`.
    pub field: String,
    pub cause: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.cause)
    }
}

/// An API object cut down to what rules need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed<T> {
    pub key: ObjectKey,
    /// `None`: the object is not for us (headless, ExternalName, another proxy's) or has no usable part.
    pub value: Option<T>,
    pub problems: Vec<Problem>,
}

/// A change of what is wanted. `None` as a value means: it is gone, or no longer for us.
///
/// The plural ones carry everything there is of a kind and take the place of all that was known of it
/// in one step: the end of a complete list. A list that broke off half-way is never sent.
#[derive(Clone, Debug)]
pub enum Event {
    Service(ObjectKey, Option<Service>),
    Slice(ObjectKey, Option<EndpointSlice>),
    Node(ObjectKey, Option<Node>),
    Services(Vec<(ObjectKey, Service)>),
    Slices(Vec<(ObjectKey, EndpointSlice)>),
    Nodes(Vec<(ObjectKey, Node)>),
    /// All addresses on the node's interfaces, loopback included.
    Addresses(Vec<std::net::IpAddr>),
}

impl Problem {
    /// The same problem, seen from the object that holds `parent`.
    fn under(self, parent: &str) -> Self {
        Self { field: format!("{parent}.{}", self.field), cause: self.cause }
    }
}

fn key_of(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> ObjectKey {
    ObjectKey::new(metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default())
}

fn port_number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|&n| n != 0)
}

fn bad_port(field: &str, number: i32) -> Problem {
    Problem { field: field.into(), cause: format!("{number} is not a port number (1 to 65535)") }
}
