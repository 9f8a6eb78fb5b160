//! A configuration file: what is read can be written, and is then read as the same.
#![no_main]

use sluice::config::KubeProxyConfiguration;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let Ok(decoded) = KubeProxyConfiguration::decode(text) else { return };
    let written = decoded.configuration.to_yaml();
    let again = KubeProxyConfiguration::decode(&written).expect("what was written can be read");
    assert_eq!(decoded.configuration, again.configuration, "{written}");
});
