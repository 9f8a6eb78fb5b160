//! What is said where the kernel lacks IPVS or a scheduler, or the process the privilege.

use sluice::net::Scheduler;
use sluice::netlink::Error;
use sluice::netlink::ipvs::VirtualServers;

use super::netns::in_namespace;

#[test]
#[ignore = "run in the virtual machine of on_linux_6_1, without CAP_NET_ADMIN"]
fn without_privilege_it_is_named() {
    in_namespace(|| {
        let error = VirtualServers::open().unwrap_err();
        assert!(matches!(error, Error::NoPrivilege { .. }), "{error}");
        assert_eq!(error.to_string(), "cannot look for IPVS: the capability CAP_NET_ADMIN is missing (EPERM)");
    });
}

#[test]
#[ignore = "run in the virtual machine of on_linux_6_1, when it has no ip_vs_nq any more"]
fn without_scheduler_its_module_is_named() {
    in_namespace(|| {
        let mut ipvs = VirtualServers::open().unwrap();
        let error = ipvs.probe_scheduler(Scheduler::Nq).unwrap_err();
        let words = "the kernel has no IPVS scheduler nq (module ip_vs_nq): ENOENT (No such file or directory)";
        assert_eq!(error.to_string(), words);
        ipvs.probe_scheduler(Scheduler::Sed).unwrap();
    });
}

#[test]
#[ignore = "run in the virtual machine of on_linux_6_1, when it has no ip_vs any more"]
fn without_ipvs_its_module_is_named() {
    in_namespace(|| {
        let error = VirtualServers::open().unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        assert_eq!(error.to_string(), "the kernel has no IPVS (module ip_vs): ENOENT (No such file or directory)");
    });
}
