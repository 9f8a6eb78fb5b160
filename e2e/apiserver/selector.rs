//! Label and field selectors, as far as a proxy uses them.

use serde_json::Value;

#[derive(Clone, Debug)]
enum Term {
    Exists(Vec<String>),
    Missing(Vec<String>),
    Is(Vec<String>, String),
    IsNot(Vec<String>, String),
}

/// All terms must hold.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    terms: Vec<Term>,
}

impl Selector {
    /// From the `labelSelector` and `fieldSelector` of a request.
    pub fn new(labels: &str, fields: &str) -> Self {
        let label = |key: &str| vec!["metadata".into(), "labels".into(), key.into()];
        let field = |key: &str| key.split('.').map(str::to_owned).collect();
        let labels = labels.split(',').filter(|t| !t.is_empty()).map(|text| Term::new(text, label));
        let fields = fields.split(',').filter(|t| !t.is_empty()).map(|text| Term::new(text, field));
        Self { terms: labels.chain(fields).collect() }
    }

    pub fn within(mut self, namespace: &str) -> Self {
        self.terms.push(Term::Is(vec!["metadata".into(), "namespace".into()], namespace.into()));
        self
    }

    pub fn matches(&self, object: &Value) -> bool {
        self.terms.iter().all(|term| term.holds(object))
    }
}

impl Term {
    fn new(text: &str, path: impl Fn(&str) -> Vec<String>) -> Self {
        if let Some(key) = text.strip_prefix('!') {
            Self::Missing(path(key))
        } else if let Some((key, value)) = text.split_once("!=") {
            Self::IsNot(path(key), value.into())
        } else if let Some((key, value)) = text.split_once('=') {
            Self::Is(path(key), value.trim_start_matches('=').into())
        } else {
            Self::Exists(path(text))
        }
    }

    fn holds(&self, object: &Value) -> bool {
        match self {
            Self::Exists(path) => at(object, path).is_some(),
            Self::Missing(path) => at(object, path).is_none(),
            // A field that is not there is the empty string.
            Self::Is(path, value) => at(object, path).unwrap_or_default() == value,
            Self::IsNot(path, value) => at(object, path).unwrap_or_default() != value,
        }
    }
}

fn at<'a>(object: &'a Value, path: &[String]) -> Option<&'a str> {
    path.iter().try_fold(object, |value, key| value.get(key))?.as_str()
}
