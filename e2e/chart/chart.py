"""The chart, rendered by Helm's own engine, and the files that are made from it.

Run by itself (`make manifests`) it writes them: the manifests and alerts of deploy/, and the table in the chart's README.
test_chart.py fails when one is stale.
"""

import pathlib
import re

import helm_python
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "sluice"
NAMESPACE = "kube-system"
# What people have to put their API server's address in the place of.
PLACEHOLDER = "API_SERVER_HOST"
MODES = ("iptables", "ipvs")

TABLE_BEGIN, TABLE_END = "<!-- values -->\n", "<!-- /values -->\n"


def texts(values=None, name="sluice", namespace=NAMESPACE):
    """The rendered templates by their names, those that are empty left out."""
    with helm_python.Chart.load(CHART) as chart:
        rendered = chart.render(values or {}, name=name, namespace=namespace)
    return {pathlib.PurePath(path).name: text for path, text in rendered.items() if text.strip()}


def objects(values=None, **release):
    """The rendered objects."""
    manifests = [text for name, text in texts(values, **release).items() if name != "NOTES.txt"]
    documents = [document for text in manifests for document in yaml.load_all(text, StrictLoader)]
    return [document for document in documents if document is not None]


class StrictLoader(yaml.SafeLoader):
    """As the API server with strict validation: the same key twice is a mistake."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"twice: {sorted(twice)}", node.start_mark)
        return super().construct_mapping(node, deep)


def manifest(mode):
    """deploy/sluice-MODE.yaml."""
    head = (
        f"# sluice in {mode} mode, made from charts/sluice (make manifests). The image and the API server's address are yours to\n"
        "# put in; the address is one that works without the Service `kubernetes` (kubectl cluster-info):\n"
        f"#   sed 's/{PLACEHOLDER}/192.0.2.10/; s|image: sluice:|image: registry.example/sluice:|' sluice-{mode}.yaml | kubectl apply -f -\n"
    )
    parts = texts({"mode": mode, "k8sServiceHost": PLACEHOLDER})
    # It goes before those who use it.
    order = ("rbac.yaml", "configmap.yaml", "daemonset.yaml")
    assert set(parts) == {*order, "NOTES.txt"}, parts.keys()
    # Nobody manages these, and there is no release.
    managed = re.compile(r"^ +(app\.kubernetes\.io/managed-by|helm\.sh/chart): .*\n", re.MULTILINE)
    return head + "".join("---\n" + managed.sub("", parts[name]).strip("\n") + "\n" for name in order)


def described():
    """Each value with its default and the comment that begins with two dashes."""
    path, comment, rows = [], [], []
    for line in (CHART / "values.yaml").read_text().splitlines():
        text = line.strip()
        if text.startswith("# -- "):
            comment = [text.removeprefix("# -- ")]
        elif text.startswith("#") and comment:
            comment.append(text.removeprefix("# "))
        elif found := re.match(r"( *)([A-Za-z0-9]+):(.*)$", line):
            depth = len(found[1]) // 2
            path[depth:] = [found[2]]
            if comment:
                rows.append((tuple(path), " ".join(comment)))
            comment = []
    return rows


def value_at(path):
    value = yaml.safe_load((CHART / "values.yaml").read_text())
    for key in path:
        value = value[key]
    return value


def table():
    rows = ["| value | default | what it is |", "|---|---|---|"]
    for path, comment in described():
        value = value_at(path)
        default = yaml.dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")
        default = "" if value == "" else f"`{default}`"
        rows.append(f"| `{'.'.join(path)}` | {default} | {comment} |")
    return "\n".join(rows) + "\n"


def readme():
    """The chart's README with its table made anew."""
    text = (CHART / "README.md").read_text()
    before, rest = text.split(TABLE_BEGIN)
    after = rest.split(TABLE_END)[1]
    return before + TABLE_BEGIN + table() + TABLE_END + after


def generated():
    """All that is made from the chart: paths and contents."""
    alerts = "# Made from charts/sluice/alerts.yaml (make manifests).\n" + (CHART / "alerts.yaml").read_text()
    return {
        **{ROOT / "deploy" / f"sluice-{mode}.yaml": manifest(mode) for mode in MODES},
        ROOT / "deploy" / "alerts.yaml": alerts,
        CHART / "README.md": readme(),
    }


if __name__ == "__main__":
    for file, content in generated().items():
        file.write_text(content)
        print(file.relative_to(ROOT))
