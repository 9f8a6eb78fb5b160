"""The chart: what Helm's engine makes of it, for many values, is what the API server takes, the binary starts with, and a node's
owner can live with.

tests/chart.rs runs it, with the binary's path in SLUICE.
"""

import contextlib
import itertools
import json
import os
import pathlib
import re
import subprocess
import tempfile
import unittest

import helm_python
import kubernetes_validate
import yaml

from chart import CHART, MODES, ROOT, described, generated, objects, value_at

BINARY = os.environ.get("SLUICE", str(ROOT / "target" / "debug" / "sluice"))
HOST = {"k8sServiceHost": "192.0.2.10"}
# The oldest one that Chart.yaml allows, and the one that sluice is made after.
KUBERNETES = ("1.25", "1.36")

# Values that people have, each on top of HOST.
MATRIX = {
    "nothing": {},
    "ipvs": {
        "mode": "ipvs",
        "ipvs": {"drainTimeout": "0s", "localAddresses": "routes"},
        "config": {"ipvs": {"scheduler": "mh", "strictARP": True, "excludeCIDRs": ["192.0.2.0/24"], "tcpTimeout": "15m0s"}},
    },
    "dual stack": {
        "k8sServiceHost": "fd00::10",
        "k8sServicePort": 443,
        "config": {"clusterCIDR": "10.244.0.0/16,fd00:10:244::/56", "nodePortAddresses": ["primary"],
                   "logging": {"vmodule": [{"filePattern": "rules", "verbosity": 4}]}},
    },
    "kind": {"config": {"conntrack": {"maxPerCore": 0}}, "k8sServiceHost": "kind-control-plane"},
    "large numbers": {"config": {"conntrack": {"min": 1000000, "maxPerCore": 131072000}, "clientConnection": {"qps": 0.5}}},
    "no binding anywhere": {"config": {"healthzBindAddress": "0", "metricsBindAddress": "0"}},
    "binding to one address": {"config": {"healthzBindAddress": "[::1]:20256", "metricsBindAddress": "192.0.2.1:20249"}},
    "a kubeconfig": {
        "k8sServiceHost": "",
        "config": {"clientConnection": {"kubeconfig": "/kube/config"}},
        "extraVolumes": [{"name": "kube", "hostPath": {"path": "/etc/kube-proxy"}}],
        "extraVolumeMounts": [{"name": "kube", "mountPath": "/kube", "readOnly": True}],
    },
    "prepared nodes": {"initContainer": {"enabled": False}, "config": {"logging": {"format": "json"}}, "resources": {"limits": {"memory": "256Mi"}}},
    "an account of somebody's": {
        "serviceAccount": {"create": False, "name": "kube-proxy"},
        "rbac": {"create": False},
        "imagePullSecrets": [{"name": "registry"}],
    },
    "everything else": {
        "mode": "ipvs",
        "auditPeriod": "1h30m",
        "image": {"repository": "registry.example/sluice", "digest": "sha256:" + "0123456789abcdef" * 4, "pullPolicy": "Always"},
        "fullnameOverride": "proxy",
        "serviceAccount": {"annotations": {"example/a": "b"}},
        "initContainer": {"resources": {"requests": {"cpu": "10m"}}},
        "priorityClassName": "",
        "tolerations": [{"key": "a", "operator": "Equal", "value": "b", "effect": "NoExecute", "tolerationSeconds": 5}],
        "nodeSelector": {"example/proxy": "sluice"},
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}]}}},
        "updateStrategy": {"type": "OnDelete", "rollingUpdate": None},
        "minReadySeconds": 0,
        "podLabels": {"k8s-app": "kube-proxy"},
        "podAnnotations": {"example/c": "d"},
        "commonLabels": {"team": "net"},
        "seLinuxOptions": {"type": "spc_t"},
        "extraArgs": ["--vmodule=watch=6"],
        "extraEnv": [{"name": "A", "value": "b"}],
        "livenessProbe": {"enabled": False},
        "readinessProbe": {"periodSeconds": 3},
        "podMonitor": {
            "enabled": True, "job": "kube-proxy", "labels": {"release": "prometheus"}, "interval": "30s", "scrapeTimeout": "10s",
            "relabelings": [{"targetLabel": "cluster", "replacement": "east"}],
            "metricRelabelings": [{"action": "drop", "sourceLabels": ["__name__"], "regex": "rest_client_.*"}],
        },
        "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}, "runbookUrl": "https://runbooks.example/sluice"},
        "grafanaDashboard": {"enabled": True, "annotations": {"folder": "network"}},
        "config": {
            "featureGates": {"AllowServiceExternalIPs": False},
            "logging": {"format": "text", "verbosity": 4},
            "detectLocalMode": "InterfaceNamePrefix",
            "detectLocal": {"interfaceNamePrefix": "cali"},
            "iptables": {"masqueradeBit": 13, "masqueradeAll": True},
        },
    },
}
MONITORED = {**HOST, "podMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}, "grafanaDashboard": {"enabled": True}}

# Values that are wrong, and what Helm says of them.
WRONG = [
    ({"mod": "ipvs"}, "at '': additional properties 'mod' not allowed"),
    ({"mode": "nftables"}, "at '/mode': value must be one of 'iptables', 'ipvs'"),
    ({"mode": None, "config": {"mode": "ipvs"}}, "at '/config': additional properties 'mode' not allowed"),
    ({"config": {"conntrack": {"maxPerCor": 1}}}, "at '/config/conntrack': additional properties 'maxPerCor' not allowed"),
    ({"config": {"conntrack": {"maxPerCore": "8"}}}, "at '/config/conntrack/maxPerCore': got string, want null or integer"),
    ({"config": {"ipvs": {"scheduler": "best"}}}, "at '/config/ipvs/scheduler': value must be one of"),
    ({"config": {"ipvs": {"syncPeriod": 30}}}, "at '/config/ipvs/syncPeriod': got number, want null or string"),
    ({"config": {"healthzBindAddress": "0.0.0.0"}}, "at '/config/healthzBindAddress': '0.0.0.0' does not match pattern"),
    ({"config": {"hostnameOverride": "a"}}, "at '/config/hostnameOverride': value must be ''"),
    ({"image": {"digest": "sha256:1"}}, "at '/image/digest': 'sha256:1' does not match pattern"),
    ({"k8sServiceHost": "https://192.0.2.10"}, "at '/k8sServiceHost': 'https://192.0.2.10' does not match pattern"),
    ({"k8sServicePort": "6443"}, "at '/k8sServicePort': got string, want integer"),
    ({"auditPeriod": "15"}, "at '/auditPeriod': '15' does not match pattern"),
    ({"updateStrategy": {"rollingUpdate": {"maxUnavailable": 0}}}, "at '/updateStrategy/rollingUpdate/maxUnavailable': minimum"),
    ({"tolerations": [{"operators": "Exists"}]}, "at '/tolerations/0': additional properties 'operators' not allowed"),
    ({"podLabels": {"a": 1}}, "at '/podLabels/a': got number, want string"),
    ({"k8sServiceHost": ""}, "k8sServiceHost is needed: the API server's address without the ClusterIP"),
    ({"podMonitor": {"enabled": True}, "config": {"metricsBindAddress": "127.0.0.1:10249"}}, "Prometheus cannot reach that"),
    ({"podMonitor": {"enabled": True}, "config": {"metricsBindAddress": "[::1]:10249"}}, "Prometheus cannot reach that"),
    ({"podMonitor": {"enabled": True}, "config": {"metricsBindAddress": "0"}}, "there is nothing to scrape"),
]


@contextlib.contextmanager
def quiet():
    """Helm's engine writes the failures of templates to stderr as well, from Go."""
    saved = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(null)
        os.close(saved)


def rendered(values=None, **release):
    return objects({**HOST, **(values or {})}, **release)


def of_kind(kind, manifests):
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def the(kind, manifests):
    [manifest] = of_kind(kind, manifests)
    return manifest


def pod(manifests):
    return the("DaemonSet", manifests)["spec"]["template"]["spec"]


def container(manifests):
    [one] = pod(manifests)["containers"]
    return one


def arguments(one, **variables):
    """As kubelet puts the environment into them."""
    return [re.sub(r"\$\((\w+)\)", lambda found: variables[found[1]], argument) for argument in one["args"]]


def configuration(manifests):
    maps = {manifest["metadata"]["name"]: manifest for manifest in of_kind("ConfigMap", manifests)}
    [volume] = [volume for volume in pod(manifests)["volumes"] if volume["name"] == "config"]
    return maps[volume["configMap"]["name"]]["data"]["config.yaml"]


def effective(manifests, one):
    """What the binary makes of a container's configuration and arguments: the file that it writes, and what it says."""
    with tempfile.TemporaryDirectory() as folder:
        given, written = pathlib.Path(folder, "config.yaml"), pathlib.Path(folder, "effective.yaml")
        given.write_text(configuration(manifests))
        flags = [flag.replace("/etc/sluice/config.yaml", str(given)) for flag in arguments(one, NODE_NAME="node-1")]
        command = [BINARY, *flags, f"--write-config-to={written}"]
        outcome = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if outcome.returncode != 0:
            raise AssertionError(f"{flags}: exit code {outcome.returncode}: {outcome.stderr}")
        return yaml.safe_load(written.read_text()), outcome.stderr


def shape(tree):
    """The keys of a mapping and of those in it."""
    return {key: shape(value) for key, value in tree.items()} if isinstance(tree, dict) else None


class Rendered(unittest.TestCase):
    def test_helm_lint_finds_nothing(self):
        for name, values in MATRIX.items():
            with self.subTest(name):
                found = helm_python.lint(CHART, {**HOST, **values}, strict=True)
                self.assertEqual([message["error"] for message in found["messages"]], ["icon is recommended"])

    def test_the_api_servers_schemas_take_every_object(self):
        for (name, values), version in itertools.product(MATRIX.items(), KUBERNETES):
            for manifest in rendered(values):
                if manifest["apiVersion"].startswith("monitoring.coreos.com/"):
                    continue
                with self.subTest(name, version=version, kind=manifest["kind"]):
                    kubernetes_validate.validate(manifest, version, strict=True)

    def test_objects_are_told_apart_and_say_whose_they_are(self):
        for name, values in MATRIX.items():
            with self.subTest(name):
                manifests = rendered(values, name="one", namespace="somewhere")
                keys = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests]
                self.assertEqual(len(keys), len(set(keys)), keys)
                for manifest in manifests:
                    labels = manifest["metadata"]["labels"]
                    self.assertEqual((labels["app.kubernetes.io/instance"], labels["app.kubernetes.io/managed-by"]), ("one", "Helm"))
                    if manifest["kind"] != "ClusterRoleBinding":
                        self.assertEqual(manifest["metadata"]["namespace"], "somewhere")
                daemons = the("DaemonSet", manifests)["spec"]
                selected, labels = daemons["selector"]["matchLabels"], daemons["template"]["metadata"]["labels"]
                self.assertEqual(selected, {key: labels[key] for key in selected})
                self.assertEqual(set(selected), {"app.kubernetes.io/name", "app.kubernetes.io/instance"}, "these never change")

    def test_wrong_values_are_refused_with_what_is_wrong(self):
        for values, message in WRONG:
            with self.subTest(values), self.assertRaises(helm_python.HelmError) as refused, quiet():
                rendered(values)
            self.assertIn(message, str(refused.exception))

    def test_the_fields_of_config_are_those_that_the_binary_writes(self):
        schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["config"]

        def fields(part):
            return {key: fields(value) if "properties" in value else None for key, value in part["properties"].items()}

        manifests = rendered()
        written, _ = effective(manifests, container(manifests))
        known, written = fields(schema), shape(written)
        for key in ("apiVersion", "kind", "mode"):
            del written[key]
        # Left out of what is written while nothing is said.
        del known["featureGates"], known["windowsRunAsService"], known["logging"]["vmodule"]
        for stream in known["logging"]["options"].values():
            del stream["splitStream"]
        self.assertEqual(known, written)

    def test_what_is_made_from_the_chart_is_fresh(self):
        for path, content in generated().items():
            with self.subTest(path.name):
                self.assertEqual(path.read_text(), content, "run: make manifests")

    def test_every_value_is_described(self):
        schema = json.loads((CHART / "values.schema.json").read_text())
        paths = [path for path, _ in described()]
        for key, value in yaml.safe_load((CHART / "values.yaml").read_text()).items():
            leaves = [(key, inner) for inner in value] if isinstance(value, dict) and (key,) not in paths else [(key,)]
            for leaf in leaves:
                self.assertIn(leaf, paths)
        self.assertEqual(set(schema["properties"]) - {"global"}, {path[0] for path in paths})
        for path in paths:
            value_at(path)

    def test_the_versions_are_the_binarys(self):
        version = subprocess.run([BINARY, "--version"], capture_output=True, text=True, check=True).stdout
        cargo = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]
        chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
        self.assertEqual((chart["appVersion"], chart["version"]), (cargo, cargo))
        self.assertIn(cargo, version)


class Started(unittest.TestCase):
    """The pods, to the binary and to the node."""

    def test_the_binary_takes_configuration_and_flags_of_each_container(self):
        for name, values in MATRIX.items():
            with self.subTest(name):
                manifests = rendered(values)
                wanted = {"mode": values.get("mode", "iptables"), **values.get("config", {})}
                for one in [*pod(manifests).get("initContainers", []), container(manifests)]:
                    written, said = effective(manifests, one)
                    self.assert_holds(written, wanted)
                    self.assertNotRegex(said, "WARN|ERROR", "a flag or a field has no effect")

    def test_what_kubeadm_made_can_be_put_into_config(self):
        given = yaml.safe_load((ROOT / "tests" / "config" / "kubeadm.yaml").read_text())
        for key in ("apiVersion", "kind", "mode"):
            del given[key]
        del given["clientConnection"]["kubeconfig"]
        manifests = rendered({"config": given})
        written, said = effective(manifests, container(manifests))
        self.assertEqual((written["clusterCIDR"], written["conntrack"]["maxPerCore"], said), ("10.244.0.0/16", 32768, ""))

    def assert_holds(self, written, wanted):
        for key, value in wanted.items():
            if isinstance(value, dict):
                self.assert_holds(written[key], value)
            else:
                self.assertEqual(written[key], value, key)

    def test_a_flag_that_is_unknown_would_be_noticed(self):
        manifests = rendered({"extraArgs": ["--no-such-flag"]})
        with self.assertRaisesRegex(AssertionError, "exit code 2.*no-such-flag"):
            effective(manifests, container(manifests))

    def test_one_container_alone_is_privileged_and_only_sets_things(self):
        for name, values in MATRIX.items():
            with self.subTest(name):
                manifests = rendered(values)
                for one in pod(manifests).get("initContainers", []):
                    self.assertEqual(one["securityContext"], {"privileged": True, "readOnlyRootFilesystem": True})
                    self.assertEqual(one["args"], ["--init-only", *container(manifests)["args"]], "for the same configuration")
                self.assertEqual(container(manifests)["securityContext"], {
                    "runAsUser": 0,
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
                    "seccompProfile": {"type": "RuntimeDefault"},
                })
        self.assertEqual([one["name"] for one in pod(rendered())["initContainers"]], ["init"])
        self.assertNotIn("initContainers", pod(rendered(MATRIX["prepared nodes"])))

    def test_nothing_of_the_node_is_mounted(self):
        self.assertEqual([list(volume) for volume in pod(rendered())["volumes"]], [["name", "configMap"]])
        [mount] = container(rendered())["volumeMounts"]
        self.assertEqual((mount["mountPath"], mount["readOnly"], "subPath" in mount), ("/etc/sluice", True, False))

    def test_pods_are_on_every_node_and_stay(self):
        spec = pod(rendered())
        self.assertIs(spec["hostNetwork"], True)
        self.assertEqual(spec["priorityClassName"], "system-node-critical")
        self.assertEqual(spec["tolerations"], [{"operator": "Exists"}])
        self.assertEqual(spec["nodeSelector"], {"kubernetes.io/os": "linux"})
        update = the("DaemonSet", rendered())["spec"]["updateStrategy"]
        self.assertEqual(update, {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%"}})

    def test_the_api_server_is_found_without_a_cluster_ip(self):
        def environment(manifests):
            return {variable["name"]: variable.get("value", variable.get("valueFrom")) for variable in container(manifests)["env"]}

        node_name = {"fieldRef": {"fieldPath": "spec.nodeName"}}
        for name, wanted in [
            ("nothing", {"KUBERNETES_SERVICE_HOST": "192.0.2.10", "KUBERNETES_SERVICE_PORT": "6443"}),
            ("dual stack", {"KUBERNETES_SERVICE_HOST": "fd00::10", "KUBERNETES_SERVICE_PORT": "443"}),
            ("a kubeconfig", {}),
        ]:
            self.assertEqual(environment(rendered(MATRIX[name])), {"NODE_NAME": node_name, **wanted}, name)
            self.assertIn("--hostname-override=node-1", arguments(container(rendered(MATRIX[name])), NODE_NAME="node-1"))

    def test_probes_ask_where_the_health_server_listens(self):
        def asked(name):
            one = container(rendered(MATRIX[name]))
            ports = {port["name"]: port["containerPort"] for port in one.get("ports", [])}
            probes = [one[probe]["httpGet"] for probe in ("livenessProbe", "readinessProbe") if probe in one]
            return [(probe["path"], ports[probe["port"]], probe.get("host")) for probe in probes], ports.get("metrics")

        self.assertEqual(asked("nothing"), ([("/livez", 10256, None), ("/healthz", 10256, None)], 10249))
        self.assertEqual(asked("binding to one address"), ([("/livez", 20256, "::1"), ("/healthz", 20256, "::1")], 20249))
        self.assertEqual(asked("no binding anywhere"), ([], None))
        self.assertEqual(asked("everything else"), ([("/healthz", 10256, None)], 10249))

    def test_a_change_of_configuration_rolls_the_pods(self):
        def annotations(values):
            return the("DaemonSet", rendered(values))["spec"]["template"]["metadata"]["annotations"]

        self.assertEqual(annotations({}), annotations({"auditPeriod": "1h"}))
        self.assertNotEqual(annotations({}), annotations({"config": {"clusterCIDR": "10.0.0.0/8"}}))
        self.assertNotEqual(annotations({}), annotations({"mode": "ipvs"}))

    def test_the_rights_are_those_of_kube_proxy(self):
        for name, values in MATRIX.items():
            manifests = rendered(values)
            kinds = {manifest["kind"] for manifest in manifests}
            self.assertFalse(kinds & {"Role", "RoleBinding", "ClusterRole"}, name)
            for binding in of_kind("ClusterRoleBinding", manifests):
                role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node-proxier"}
                self.assertEqual(binding["roleRef"], role)
                [subject] = binding["subjects"]
                self.assertEqual((subject["kind"], subject["namespace"]), ("ServiceAccount", "kube-system"))
                self.assertEqual(subject["name"], pod(manifests)["serviceAccountName"])
                self.assertEqual(subject["name"], the("ServiceAccount", manifests)["metadata"]["name"])
        self.assertEqual(pod(rendered(MATRIX["an account of somebody's"]))["serviceAccountName"], "kube-proxy")
        self.assertEqual(len(of_kind("ClusterRoleBinding", rendered())), 1)

    def test_an_image_has_a_tag_or_a_digest(self):
        for image, wanted in [
            ({}, "sluice:" + yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]),
            ({"repository": "r.example/s", "tag": "v2"}, "r.example/s:v2"),
            ({"tag": "v2", "digest": "sha256:" + "ab" * 32}, "sluice@sha256:" + "ab" * 32),
        ]:
            manifests = rendered({"image": image})
            images = {one["image"] for one in [*pod(manifests)["initContainers"], container(manifests)]}
            self.assertEqual(images, {wanted})


class Watched(unittest.TestCase):
    """PodMonitor, alerts and dashboard."""

    def test_nothing_is_made_for_operators_that_are_not_there(self):
        kinds = sorted(manifest["kind"] for manifest in rendered())
        self.assertEqual(kinds, ["ClusterRoleBinding", "ConfigMap", "DaemonSet", "ServiceAccount"])

    def test_metrics_can_be_scraped_where_something_scrapes_them(self):
        def address(values):
            return yaml.safe_load(configuration(rendered(values)))["metricsBindAddress"]

        self.assertEqual((address({}), address(MONITORED)), ("127.0.0.1:10249", "0.0.0.0:10249"))
        self.assertEqual(address({**MONITORED, "config": {"metricsBindAddress": "192.0.2.1:9"}}), "192.0.2.1:9")

    def test_the_pod_monitor_finds_the_pods_and_names_the_job(self):
        manifests = rendered(MONITORED)
        spec = the("PodMonitor", manifests)["spec"]
        self.assertEqual(spec["selector"], the("DaemonSet", manifests)["spec"]["selector"])
        [endpoint] = spec["podMetricsEndpoints"]
        self.assertEqual(set(spec), {"selector", "podMetricsEndpoints"})
        self.assertEqual(set(endpoint), {"port", "relabelings"})
        self.assertIn(endpoint["port"], [port["name"] for port in container(manifests)["ports"]])
        self.assertEqual(endpoint["relabelings"][0], {"targetLabel": "job", "replacement": "sluice"})
        [other] = the("PodMonitor", rendered(MATRIX["everything else"]))["spec"]["podMetricsEndpoints"]
        self.assertEqual((other["interval"], other["scrapeTimeout"], len(other["relabelings"])), ("30s", "10s", 3))
        self.assertEqual(other["relabelings"][0], {"targetLabel": "job", "replacement": "kube-proxy"})

    def test_alerts_are_about_the_job_that_is_scraped(self):
        alerts = (CHART / "alerts.yaml").read_text()
        groups = the("PrometheusRule", rendered(MONITORED))["spec"]
        self.assertEqual(groups, yaml.safe_load(alerts))
        rule = the("PrometheusRule", rendered(MATRIX["everything else"]))
        self.assertEqual(rule["metadata"]["labels"]["release"], "prometheus")
        text = alerts.replace('job="sluice"', 'job="kube-proxy"').replace("docs/alerts.md#", "https://runbooks.example/sluice#")
        self.assertEqual(rule["spec"], yaml.safe_load(text))
        for alert in self.rules():
            selectors = re.findall(r"\{([^}]*)\}", alert["expr"])
            self.assertTrue(selectors and all('job="sluice"' in selector for selector in selectors), alert["expr"])

    @staticmethod
    def rules():
        [group] = yaml.safe_load((CHART / "alerts.yaml").read_text())["groups"]
        return group["rules"]

    def test_each_alert_has_its_section_of_the_runbook(self):
        document = (ROOT / "docs" / "alerts.md").read_text()
        sections = re.split(r"^## ", document, flags=re.MULTILINE)[1:]
        written = {section.split("\n")[0]: section for section in sections}
        alerts = {rule["alert"]: rule for rule in self.rules()}
        self.assertEqual(list(alerts), [name for name in written if name.startswith("Sluice")], "the same, in this order")
        for name, rule in alerts.items():
            self.assertEqual(rule["annotations"]["runbook_url"], f"docs/alerts.md#{name.lower()}")
            self.assertIn(rule["labels"]["severity"], ("critical", "warning"))
            for part in ("**Means.**", "**Look.**", "**Do.**"):
                self.assertIn(part, written[name], name)

    def test_the_dashboard_is_in_its_config_map_as_it_is(self):
        file = (CHART / "dashboards" / "sluice.json").read_text()
        maps = [manifest for manifest in of_kind("ConfigMap", rendered(MONITORED)) if manifest["metadata"]["name"].endswith("-dashboard")]
        [manifest] = maps
        self.assertEqual(manifest["metadata"]["labels"]["grafana_dashboard"], "1")
        self.assertEqual(manifest["data"]["sluice.json"].strip(), file.strip())

    def test_panels_have_their_places_and_ask_by_the_dashboards_variables(self):
        dashboard = json.loads((CHART / "dashboards" / "sluice.json").read_text())
        panels = dashboard["panels"]
        self.assertEqual(len({panel["id"] for panel in panels}), len(panels))
        taken = set()
        for panel in panels:
            place = panel["gridPos"]
            cells = set(itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])))
            self.assertTrue(max(x for x, _ in cells) < 24 and not cells & taken, panel["title"])
            taken |= cells
            for target in panel.get("targets", []):
                self.assertEqual(target["datasource"]["uid"], "${datasource}")
                selectors = re.findall(r"\{([^}]*)\}", target["expr"])
                self.assertTrue(selectors, target["expr"])
                for selector in selectors:
                    self.assertIn('job="$job", instance=~"$instance"', selector, target["expr"])
        self.assertEqual([variable["name"] for variable in dashboard["templating"]["list"]], ["datasource", "job", "instance"])


@unittest.skipUnless(os.environ.get("CI") == "true" or subprocess.run(["which", "promtool"], capture_output=True).returncode == 0,
                     "promtool is missing (e2e/install.sh --machine)")
class Alerts(unittest.TestCase):
    def promtool(self, *words):
        outcome = subprocess.run(["promtool", *words], capture_output=True, text=True, timeout=120)
        self.assertEqual(outcome.returncode, 0, outcome.stdout + outcome.stderr)
        return outcome.stdout

    def test_promtool_finds_no_fault(self):
        rules = len(Watched.rules())
        for file in (CHART / "alerts.yaml", ROOT / "deploy" / "alerts.yaml"):
            self.assertIn(f"SUCCESS: {rules} rules found", self.promtool("check", "rules", str(file)))

    def test_the_dashboards_queries_are_well_formed(self):
        panels = json.loads((CHART / "dashboards" / "sluice.json").read_text())["panels"]
        queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
        for variable, value in {"$__rate_interval": "5m", "$job": "sluice", "$instance": ".*"}.items():
            queries = [query.replace(variable, value) for query in queries]
        rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(queries)]
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}, file)
            file.flush()
            self.assertIn(f"SUCCESS: {len(queries)} rules found", self.promtool("check", "rules", file.name))

    def test_each_alert_fires_when_it_should_and_else_does_not(self):
        file = ROOT / "e2e" / "chart" / "alerts-test.yaml"
        self.promtool("test", "rules", str(file))
        tests = [test for group in yaml.safe_load(file.read_text())["tests"] for test in group.get("alert_rule_test", [])]
        for rule in Watched.rules():
            with self.subTest(rule["alert"]):
                expected = [bool(test.get("exp_alerts")) for test in tests if test["alertname"] == rule["alert"]]
                self.assertEqual(set(expected), {True, False}, "tried both ways")


if __name__ == "__main__":
    unittest.main()
