//! Who may do what: requests as an authorizer sees them, and rules as RBAC has them.

use serde_json::json;

use super::http::Refusal;
use super::{Request, State};

/// Verbs on resources of API groups. `*` is not known here: whoever is tested should need no such rule.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    pub groups: &'static [&'static str],
    pub resources: &'static [&'static str],
    pub verbs: &'static [&'static str],
}

/// What a request wants of a resource.
#[derive(Debug, PartialEq, Eq)]
pub struct Attributes<'a> {
    pub verb: &'static str,
    pub group: &'a str,
    pub namespace: Option<&'a str>,
    pub resource: &'a str,
    pub name: Option<&'a str>,
}

impl Request {
    /// `None`: it is about no resource, as `/version` is.
    pub fn attributes(&self) -> Option<Attributes<'_>> {
        let parts: Vec<_> = self.path.split('/').skip(1).collect();
        let (group, rest) = match &parts[..] {
            ["api", _, rest @ ..] => ("", rest),
            ["apis", group, _, rest @ ..] => (*group, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some(*namespace), rest),
            rest => (None, rest),
        };
        let (resource, name) = (*rest.first()?, rest.get(1).copied());
        let verb = match (self.method.as_str(), name) {
            ("GET", _) if self.is_watch() => "watch",
            ("GET", None) => "list",
            ("GET", Some(_)) => "get",
            ("POST", _) => "create",
            ("PUT", _) => "update",
            ("PATCH", _) => "patch",
            ("DELETE", Some(_)) => "delete",
            _ => "deletecollection",
        };
        Some(Attributes { verb, group, namespace, resource, name })
    }
}

impl Attributes<'_> {
    fn is_allowed_by(&self, rule: &Rule) -> bool {
        rule.verbs.contains(&self.verb) && rule.groups.contains(&self.group) && rule.resources.contains(&self.resource)
    }
}

/// Refuses what is not allowed as kube-apiserver does.
pub fn permit(request: &Request, state: &State) -> Result<(), Refusal> {
    // Everybody may ask for those few paths that are no resource's.
    let Some(wanted) = request.attributes() else { return Ok(()) };
    let allowed = state.rules.as_ref().is_none_or(|rules| rules.iter().any(|rule| wanted.is_allowed_by(rule)));
    if allowed && !state.forbidden.contains(wanted.resource) {
        return Ok(());
    }
    let Attributes { verb, group, namespace, resource, name } = wanted;
    let qualified = if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") };
    let object = name.map_or_else(|| qualified.clone(), |name| format!("{qualified} {name:?}"));
    let place = namespace.map_or_else(|| "at the cluster scope".into(), |ns| format!("in the namespace {ns:?}"));
    let subject = r#"User "system:serviceaccount:kube-system:sluice""#;
    let message = format!("{object} is forbidden: {subject} cannot {verb} resource {resource:?} in API group {group:?} {place}");
    let mut details = json!({"kind": resource});
    if !group.is_empty() {
        details["group"] = json!(group);
    }
    if let Some(name) = name {
        details["name"] = json!(name);
    }
    Err(Refusal::new(403, "Forbidden", message).about(details))
}
