"""Dashboard, alerts and runbook agree with what the service tells."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import yaml

from dkt_ray.serving.series import SECONDS, SERIES

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "deploy/grafana/dkt-ray.json").read_text())
ALERTS_FILE = ROOT / "deploy/prometheus/alerts.yml"
RULES = [rule for group in yaml.safe_load(ALERTS_FILE.read_text())["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]
RUNBOOK = (ROOT / "docs/runbook.md").read_text()
OURS = {f"ray_{name}": each for each in SERIES for name in each.exposed}
OF_RAY = {"application", "deployment", "replica", "le"}  # labels that Ray, or Prometheus, adds


def queries():
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    return panels + [rule["expr"] for rule in RULES] + [each["query"] for each in DASHBOARD["templating"]["list"]]


def test_every_series_that_is_looked_at_is_told():
    looked_at = {name for query in queries() for name in re.findall(r"\bray_\w+|\bdkt_\w+", query)}
    assert looked_at - set(OURS) == set()
    families = {OURS[name].name for name in looked_at}
    assert families == {each.name for each in SERIES}, "told, but looked at nowhere"


def test_labels_are_those_of_the_series():
    for query in queries():
        for name, selector in re.findall(r"(ray_dkt_\w+)\{([^}]*)\}", query):
            assert set(re.findall(r"(\w+)\s*=", selector)) <= {*OURS[name].labels, *OF_RAY}, query
        asked = {label.strip() for names in re.findall(r"\bby \(([^)]*)\)", query) for label in names.split(",")}
        there = {label for name in re.findall(r"ray_dkt_\w+", query) for label in OURS[name].labels}
        assert asked <= there | OF_RAY, query


def test_rules_use_ratios_that_are_recorded_and_buckets_that_exist():
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    used = {name for rule in ALERTS for name in re.findall(r"dkt:\w+:\w+", rule["expr"])}
    assert used - recorded == set()
    ends = {float(end) for query in queries() for end in re.findall(r'le="([\d.]+)"', query)}
    assert ends <= set(SECONDS)
    assert ends


def test_every_alert_leads_to_its_place_in_the_runbook():
    titles = re.findall(r"^## (.+)$", RUNBOOK, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
    led = [alert["annotations"]["runbook_url"].partition("#") for alert in ALERTS]
    assert {file for file, _, _ in led} == {"docs/runbook.md"}
    assert {anchor for _, _, anchor in led} <= anchors
    assert set(re.findall(r"\]\(#([a-z-]+)\)", RUNBOOK)) <= anchors
    for alert in ALERTS:
        assert alert["labels"]["severity"] in ("page", "ticket")
        assert alert["annotations"]["summary"]


def test_panels_do_not_overlap():
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_prometheus_reads_the_files():
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    assert config["rule_files"] == [ALERTS_FILE.name]
    if promtool := shutil.which("promtool"):  # Debian's prometheus
        subprocess.run([promtool, "check", "rules", str(ALERTS_FILE)], check=True, capture_output=True)
