//! Rules of iptables-legacy on the same node: the kernel runs them beside those of `nf_tables`, and no tool shows both.

/// Where the kernel lists the legacy tables of this network namespace, and the tool that shows them.
const TABLES: [(&str, &str); 2] =
    [("/proc/net/ip_tables_names", "iptables-legacy-save"), ("/proc/net/ip6_tables_names", "ip6tables-legacy-save")];

/// Names the legacy tables in use, if any. The list is root's to read; without that there is nothing to tell.
pub fn warn_if_used() {
    for (path, tool) in TABLES {
        let listed = std::fs::read_to_string(path).unwrap_or_default();
        let tables: Vec<_> = listed.split_whitespace().collect();
        if !tables.is_empty() {
            tracing::warn!(
                "iptables-legacy is in use on this node (tables {}): its rules and ours are both in force; {tool} shows them",
                tables.join(", ")
            );
        }
    }
}
