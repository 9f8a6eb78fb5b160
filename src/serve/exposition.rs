//! The Prometheus text format 0.0.4, made from the OpenMetrics text that prometheus-client writes.
//!
//! The two differ in how counters are announced, in numbers of bucket bounds and in the end mark. It only
//! rewrites text; it must not change a value or drop a sample.

use std::collections::BTreeMap;

/// A metric family: its announcement and its samples by label set.
#[derive(Default)]
struct Family<'a> {
    help: &'a str,
    kind: &'a str,
    /// Samples of one label set stay in the order they came in, bucket bounds ascending. Label sets are
    /// sorted, so that two scrapes can be compared by eye: the library goes through them at random.
    samples: BTreeMap<String, Vec<String>>,
}

/// Rewrites `openmetrics`. Families come out in the order of their names, as in Go.
pub(super) fn to_prometheus(openmetrics: &str) -> String {
    let mut families: BTreeMap<String, Family<'_>> = BTreeMap::new();
    // The library writes HELP, then TYPE, then the samples of one family before it starts the next.
    let (mut help, mut current) = ("", String::new());
    for line in openmetrics.lines() {
        if let Some(announced) = line.strip_prefix("# HELP ") {
            help = announced.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some(announced) = line.strip_prefix("# TYPE ") {
            let (name, kind) = announced.split_once(' ').unwrap_or((announced, "unknown"));
            current = sample_name(name, kind);
            families.entry(current.clone()).or_default().announce(help, kind);
        } else if !line.starts_with('#')
            && let Some(family) = families.get_mut(&current)
        {
            let (labels, sample) = rewrite_sample(line);
            family.samples.entry(labels).or_default().push(sample);
        }
    }
    let mut text = String::with_capacity(openmetrics.len());
    for (name, family) in &families {
        family.write(name, &mut text);
    }
    text
}

/// In 0.0.4 a family is announced by the name its samples have.
fn sample_name(name: &str, kind: &str) -> String {
    match kind {
        "counter" => format!("{name}_total"),
        "info" => format!("{name}_info"),
        _ => name.into(),
    }
}

/// The label set without bucket bound, and the sample as 0.0.4 has it: the bound last and written as a
/// plain number, so that `le="1"` of kube-proxy's dashboards finds it.
fn rewrite_sample(line: &str) -> (String, String) {
    let Some((name, rest)) = line.split_once("{le=\"") else {
        // Values are numbers, so the last brace ends the labels.
        let labels = line.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}')).map_or("", |(labels, _)| labels);
        return (labels.into(), line.into());
    };
    let (bound, rest) = rest.split_once('"').unwrap_or((rest, ""));
    let (labels, value) = rest.rsplit_once('}').unwrap_or(("", rest));
    let labels = labels.trim_start_matches(',');
    let bound = bound.strip_suffix(".0").unwrap_or(bound);
    let comma = if labels.is_empty() { "" } else { "," };
    (labels.into(), format!("{name}{{{labels}{comma}le=\"{bound}\"}}{value}"))
}

impl<'a> Family<'a> {
    fn announce(&mut self, help: &'a str, kind: &'a str) {
        // The library ends every help text with a full stop of its own.
        self.help = help.strip_suffix('.').unwrap_or(help);
        self.kind = match kind {
            "info" => "gauge",
            "unknown" => "untyped",
            kind => kind,
        };
    }

    fn write(&self, name: &str, text: &mut String) {
        if self.samples.is_empty() {
            return;
        }
        for part in ["# HELP ", name, " ", self.help, "\n# TYPE ", name, " ", self.kind, "\n"] {
            text.push_str(part);
        }
        for sample in self.samples.values().flatten() {
            text.push_str(sample);
            text.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_announced_with_their_suffix() {
        let openmetrics = "# HELP b [ALPHA] What happened.\n# TYPE b counter\nb_total{f=\"2\"} 2\nb_total{f=\"1\"} 1\n\
                           # HELP a Which.\n# TYPE a info\na_info{v=\"x y}\"} 1\n# EOF\n";
        let text = "# HELP a_info Which\n# TYPE a_info gauge\na_info{v=\"x y}\"} 1\n\
                    # HELP b_total [ALPHA] What happened\n# TYPE b_total counter\nb_total{f=\"1\"} 1\nb_total{f=\"2\"} 2\n";
        assert_eq!(to_prometheus(openmetrics), text);
    }

    #[test]
    fn buckets_stay_ascending_with_plain_bounds() {
        let openmetrics = "# HELP h Time.\n# TYPE h histogram\nh_sum{f=\"1\"} 3.5\nh_count{f=\"1\"} 2\n\
                           h_bucket{le=\"1.0\",f=\"1\"} 1\nh_bucket{le=\"10.0\",f=\"1\"} 2\nh_bucket{le=\"+Inf\",f=\"1\"} 2\n\
                           # HELP n None.\n# TYPE n histogram\nn_sum 0.0\nn_bucket{le=\"0.25\"} 0\n# EOF\n";
        let text = "# HELP h Time\n# TYPE h histogram\nh_sum{f=\"1\"} 3.5\nh_count{f=\"1\"} 2\n\
                    h_bucket{f=\"1\",le=\"1\"} 1\nh_bucket{f=\"1\",le=\"10\"} 2\nh_bucket{f=\"1\",le=\"+Inf\"} 2\n\
                    # HELP n None\n# TYPE n histogram\nn_sum 0.0\nn_bucket{le=\"0.25\"} 0\n";
        assert_eq!(to_prometheus(openmetrics), text);
    }

    #[test]
    fn a_family_without_samples_is_not_announced() {
        assert_eq!(to_prometheus("# HELP e Empty.\n# TYPE e counter\n# EOF\n"), "");
    }
}
