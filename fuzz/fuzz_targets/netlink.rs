//! What the kernel sends: rules, sets, virtual servers, flows, links, addresses, errors, notifications.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sluice::netlink::fuzz::datagram(data));
