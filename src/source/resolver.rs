//! Addresses of the API server's name, without the C library: a static binary has no NSS to ask.
//!
//! What `/etc/hosts` says counts; else DNS is asked as `/etc/resolv.conf` says. Both are read for each look-up and
//! nothing is kept, so that a change is seen with the next connection; there are few.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts, ServerOrderingStrategy};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::system_conf::parse_resolv_conf;
use hyper_util::client::legacy::connect::dns::Name;
use tower::Service;
use tracing::subscriber::{NoSubscriber, with_default};

const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// For all servers, tries and search domains together; less than a request may take, or its end would tell nothing of
/// names.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
#[error("{name} is not in {HOSTS}; DNS (asked {servers}, of {RESOLV_CONF}): {cause}")]
pub(super) struct NoAddress {
    name: String,
    servers: String,
    cause: String,
}

/// Resolves names for hyper's connector.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resolver;

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = NoAddress;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, NoAddress>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), NoAddress>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(async move {
            let addresses = resolve(name.as_str(), Path::new(HOSTS), Path::new(RESOLV_CONF)).await?;
            // The port is the connector's to set.
            Ok(addresses.into_iter().map(|address| SocketAddr::new(address, 0)).collect::<Vec<_>>().into_iter())
        })
    }
}

async fn resolve(name: &str, hosts: &Path, resolv_conf: &Path) -> Result<Vec<IpAddr>, NoAddress> {
    // As with the C library, a file that is not there or not text says nothing.
    let known = in_hosts(&std::fs::read_to_string(hosts).unwrap_or_default(), name);
    if !known.is_empty() {
        return Ok(known);
    }
    let (config, options) = dns_config(&std::fs::read(resolv_conf).unwrap_or_default());
    let servers: Vec<_> = config.name_servers().iter().map(|server| server.ip.to_string()).collect();
    let none = |cause| NoAddress { name: name.into(), servers: servers.join(", "), cause };
    match tokio::time::timeout(PATIENCE, ask(name, config, options)).await {
        Ok(Ok(addresses)) if addresses.is_empty() => Err(none("no address".into())),
        Ok(answer) => answer.map_err(|error| none(meaning(&error))),
        Err(_) => Err(none(format!("no answer within {} s", PATIENCE.as_secs()))),
    }
}

/// The addresses that a hosts file gives a name, in its order.
fn in_hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let name = name.trim_end_matches('.');
    let address = |line: &str| {
        let mut words = line.split('#').next()?.split_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|word| word.trim_end_matches('.').eq_ignore_ascii_case(name)).then_some(address)
    };
    text.lines().filter_map(address).collect()
}

/// What resolv.conf says. Where it names no server, the one on this machine is asked, as resolv.conf(5) has it.
fn dns_config(text: &[u8]) -> (ResolverConfig, ResolverOpts) {
    // It logs each line that it does not know. Others know more, and the C library skips those in silence.
    let parsed = with_default(NoSubscriber::new(), || parse_resolv_conf(text));
    let (config, mut options) = parsed.unwrap_or_else(|_| {
        let local = NameServerConfig::udp_and_tcp(Ipv4Addr::LOCALHOST.into());
        (ResolverConfig::from_parts(None, Vec::new(), vec![local]), ResolverOpts::default())
    });
    options.use_hosts_file = ResolveHosts::Never;
    options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
    options.cache_size = 0;
    (config, options)
}

async fn ask(name: &str, config: ResolverConfig, options: ResolverOpts) -> Result<Vec<IpAddr>, NetError> {
    let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    let found = builder.with_options(options).build()?.lookup_ip(name).await?;
    Ok(found.iter().collect())
}

/// The library's words for this are its types' names.
fn meaning(error: &NetError) -> String {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) if error.is_nx_domain() => {
            format!("no such name ({} does not exist)", none.query.name())
        }
        NetError::Dns(DnsError::NoRecordsFound(_)) => "no address".into(),
        NetError::Dns(DnsError::ResponseCode(code)) => format!("refused: {code}"),
        NetError::Timeout => "no answer".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_file_is_read_as_the_c_library_reads_it() {
        let text = "# a comment\n127.0.0.1 localhost\n\n  10.0.0.1\tapi.example.org api # first\n10.0.0.2 Api.Example.Org.\n\
                    fd00::1 api.example.org\n10.0.0.3 # api\nfe80::1%lo0 api\nnonsense api\n";
        let found = |name: &str| in_hosts(text, name).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(found("API.example.org"), ["10.0.0.1", "10.0.0.2", "fd00::1"]);
        assert_eq!(found("api.example.org."), ["10.0.0.1", "10.0.0.2", "fd00::1"]);
        assert_eq!(found("api"), ["10.0.0.1"]);
        assert!(found("example.org").is_empty() && found("10.0.0.1").is_empty());
    }

    fn servers_and_search(text: &[u8]) -> (Vec<String>, Vec<String>) {
        let (config, _) = dns_config(text);
        let servers = config.name_servers().iter().map(|server| server.ip.to_string()).collect();
        (servers, config.search().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn what_resolv_conf_does_not_say_is_done_without() {
        let text = b"lookup file bind\nnameserver 10.96.0.10\nnonsense\nnameserver fd00::a\nsearch a.test b.test\n";
        let (servers, search) = servers_and_search(text);
        assert_eq!((servers, search), (vec!["10.96.0.10".into(), "fd00::a".into()], vec!["a.test".into(), "b.test".into()]));
        for text in [&b""[..], b"search a.test\n", b"\xff\xfe"] {
            assert_eq!(servers_and_search(text).0, ["127.0.0.1"], "the server on this machine");
        }
    }
}
