//! In which form `/flagz` and `/statusz` are wanted, by the request's `Accept`: text for people, or a versioned object.
//!
//! Kubernetes' own negotiation, as far as it can matter here: the group, version and kind of the object are parameters
//! of the media type, and a media type without them is not served as an object.

use hyper::header::{ACCEPT, USER_AGENT};
use hyper::http::request::Parts;

const GROUP: &str = "config.k8s.io";

/// What the client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Text,
    Object {
        encoding: Encoding,
        version: Version,
    },
    /// None of what the client would take is there.
    NotAcceptable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Json,
    Yaml,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// Deprecated.
    V1Alpha1,
    V1Beta1,
}

impl Encoding {
    pub(super) fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
        }
    }
}

impl Version {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::V1Alpha1 => "v1alpha1",
            Self::V1Beta1 => "v1beta1",
        }
    }
}

/// The form for an object of this kind. Go looks at the first `Accept` alone.
pub(super) fn form(head: &Parts, kind: &str) -> Form {
    let accept = head.headers.get(ACCEPT).map(|value| value.to_str().unwrap_or_default().trim());
    match accept {
        None | Some("") => Form::Text,
        Some(accept) => ranges(accept).iter().find_map(|range| range.form(kind)).unwrap_or(Form::NotAcceptable),
    }
}

/// Is JSON indented? For people's tools it is, unless the query says otherwise.
pub(super) fn is_pretty(head: &Parts) -> bool {
    let query = head.uri.query().unwrap_or_default();
    let asked = query.split('&').find_map(|pair| pair.strip_prefix("pretty=")).filter(|value| !value.is_empty());
    if let Some(value) = asked {
        return matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True");
    }
    let agent = head.headers.get(USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    ["curl", "Wget", "Mozilla/5.0"].iter().any(|tool| agent.starts_with(tool))
}

/// One media range of an `Accept`.
struct Range<'a> {
    media: &'a str,
    weight: f32,
    target: Target<'a>,
}

/// The object that is asked for.
#[derive(Clone, Copy, Default, PartialEq)]
struct Target<'a> {
    group: Option<&'a str>,
    version: Option<&'a str>,
    kind: Option<&'a str>,
}

/// The ranges of the header, the most wanted first.
fn ranges(accept: &str) -> Vec<Range<'_>> {
    let mut ranges: Vec<_> = accept.split(',').map(Range::parse).filter(|range| range.weight > 0.0).collect();
    ranges.sort_by(|a, b| b.weight.total_cmp(&a.weight));
    ranges
}

impl<'a> Range<'a> {
    fn parse(text: &'a str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let mut range = Self { media: parts.next().unwrap_or_default(), weight: 1.0, target: Target::default() };
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            match name.trim() {
                "q" => range.weight = value.trim().parse().unwrap_or(1.0),
                "g" => range.target.group = Some(value.trim()),
                "v" => range.target.version = Some(value.trim()),
                "as" => range.target.kind = Some(value.trim()),
                _ => {}
            }
        }
        range
    }

    fn form(&self, kind: &str) -> Option<Form> {
        let includes = |media: &str| {
            let folder = media.split('/').next().unwrap_or_default();
            self.media == media || self.media == "*/*" || self.media.strip_suffix("/*") == Some(folder)
        };
        if self.target == Target::default() {
            return includes("text/plain").then_some(Form::Text);
        }
        let encoding = [Encoding::Json, Encoding::Yaml].into_iter().find(|encoding| includes(encoding.media_type()))?;
        let version = [Version::V1Alpha1, Version::V1Beta1].into_iter().find(|v| self.target.version == Some(v.as_str()))?;
        let is_known = self.target.group == Some(GROUP) && self.target.kind == Some(kind);
        is_known.then_some(Form::Object { encoding, version })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(headers: &[(&str, &str)], uri: &str) -> Parts {
        let mut request = hyper::Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn of(accept: &str) -> Form {
        form(&head(&[("accept", accept)], "/statusz"), "Statusz")
    }

    #[test]
    fn text_is_for_those_who_do_not_ask_for_an_object() {
        assert_eq!(form(&head(&[], "/statusz"), "Statusz"), Form::Text);
        for accept in ["", " ", "*/*", "text/plain", "text/*", "text/plain;charset=utf-8", "text/html, */*;q=0.8"] {
            assert_eq!(of(accept), Form::Text, "{accept}");
        }
        assert_eq!(of("application/json;v=foo;g=config.k8s.io;as=Statusz,*/*"), Form::Text);
    }

    #[test]
    fn objects_are_for_those_who_name_group_version_and_kind() {
        let json = |version| Form::Object { encoding: Encoding::Json, version };
        assert_eq!(of("application/json;v=v1beta1;g=config.k8s.io;as=Statusz"), json(Version::V1Beta1));
        assert_eq!(of("application/json; as=Statusz; v=v1alpha1; g=config.k8s.io"), json(Version::V1Alpha1));
        assert_eq!(of("application/*;v=v1beta1;g=config.k8s.io;as=Statusz"), json(Version::V1Beta1));
        let yaml = Form::Object { encoding: Encoding::Yaml, version: Version::V1Beta1 };
        assert_eq!(of("application/yaml;v=v1beta1;g=config.k8s.io;as=Statusz"), yaml);
        let both = "text/plain;q=0.5,application/yaml;v=v1beta1;g=config.k8s.io;as=Statusz;q=0.9";
        assert_eq!(of(both), yaml);
        for accept in [
            "application/json",
            "application/*",
            "application/xml",
            "application/json;v=v1beta1;g=config.k8s.io",
            "application/json;v=v1beta1;g=config.k8s.io;as=Flagz",
            "application/json;v=v2;g=config.k8s.io;as=Statusz",
            "text/plain;as=Statusz;v=v1beta1;g=config.k8s.io",
            "text/plain;q=0",
        ] {
            assert_eq!(of(accept), Form::NotAcceptable, "{accept}");
        }
    }

    #[test]
    fn people_get_indented_json() {
        for (agent, uri, pretty) in [
            ("curl/8.5.0", "/statusz", true),
            ("Mozilla/5.0 (X11)", "/statusz", true),
            ("curl/8.5.0", "/statusz?pretty=false", false),
            ("Go-http-client/1.1", "/statusz", false),
            ("Go-http-client/1.1", "/statusz?pretty=true", true),
        ] {
            assert_eq!(is_pretty(&head(&[("user-agent", agent)], uri)), pretty, "{agent} {uri}");
        }
    }
}
