"""deploy/monitoring beside live scrapes: each selector of an alert or a panel finds a series."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from aiohttp import ClientSession
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from promql_parser import AggregateExpr, BinaryExpr, Call, MatchOp, VectorSelector

from edge.app import serving
from edge.config import EdgeConfig
from inference.config import ModelConfig
from keys import create_key
from tests.conftest import EMBEDDING, IMAGE, eventually, running_server

KIT = Path(__file__).parents[2] / "deploy" / "monitoring"
DOCUMENT = Path(__file__).parents[2] / "docs" / "operate.md"
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((KIT / "alerts.yaml").read_text())["spec"]["groups"]
    for rule in group["rules"]
]
DASHBOARD: dict[str, Any] = json.loads((KIT / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS = [target for panel in PANELS for target in panel["targets"]]
# What Prometheus itself adds to a scrape; `process` is there if several edges have one port.
ADDED = {"job", "instance", "process"}
EDGE, SERVICE = "isthmus-edge", "isthmus-inference"
Sample = tuple[str, dict[str, str]]
NARROW = ModelConfig(id="scripted", engine="scripted", max_running=1, max_queued=0)


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Metric]]:
    """The families by job, of an edge and a service to which all that is counted happened."""
    return asyncio.run(_scraped(tmp_path_factory.mktemp("keys") / "keys.json"))


@pytest.fixture(scope="module")
def samples(families: dict[str, list[Metric]]) -> list[Sample]:
    return [
        (sample.name, {**sample.labels, "job": job, "instance": job})
        for job, each in families.items()
        for family in each
        for sample in family.samples
    ]


async def _scraped(path: Path) -> dict[str, list[Metric]]:
    _, key = create_key(path, "somebody")
    headers = {"authorization": f"Bearer {key}"}
    async with running_server(
        NARROW, EMBEDDING, IMAGE, metrics_listen="127.0.0.1:0", keys=path
    ) as server:
        _, token = create_key(path, "edge", scope="edge")
        assert server._keys
        assert server._keys.reload()
        config = EdgeConfig(
            port=0,
            upstreams=(f"127.0.0.1:{server.port}",),
            keys_file=path,
            upstream_token=token,
            settle_seconds=0.0,
            header_hold_seconds=0.0,
        )
        async with serving(config) as (edge, port), ClientSession(headers=headers) as http:
            await eventually(edge.router.ready)
            url = f"http://127.0.0.1:{port}"

            async def post(route: str, status: int, **body: Any) -> None:
                async with http.post(f"{url}/v1/{route}", json=body) as response:
                    assert response.status == status
                    await response.read()

            text = {"model": "scripted", "prompt": "x", "max_tokens": 3}
            await post("completions", 200, **text)
            await post("completions", 200, **text, stream=True)
            await post("completions", 500, **text | {"prompt": '{"fail": "start"}'})
            await post("embeddings", 200, model="scripted-embedding", input="x")
            await post("images/generations", 200, model="scripted-image", prompt="x", size="64x64")
            hangs = text | {"prompt": '{"fail": "hang"}', "stream": True}
            with suppress(TimeoutError):
                async with asyncio.timeout(1), http.post(f"{url}/v1/completions", json=hangs) as r:
                    await eventually(lambda: server.registry.running_calls == 1)
                    await post("completions", 429, **text)
                    await r.read()
            await eventually(lambda: server.registry.running_calls == 0)
            path.write_text("broken")
            assert edge.keys
            assert not edge.keys.reload()
            assert not server._keys.reload()
            path.unlink()
            found = {}
            for job, where in ((EDGE, url), (SERVICE, f"http://127.0.0.1:{server.metrics_port}")):
                async with http.get(f"{where}/metrics") as response:
                    assert response.status == 200
                    text_of = await response.text()
                    found[job] = list(text_string_to_metric_families(text_of))
            return found


def parsed(text: str) -> promql_parser.Expr:
    return promql_parser.parse(text.replace("$__rate_interval", "5m").replace("$model", ".*"))


def selectors(text: str) -> list[VectorSelector]:
    found = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, VectorSelector):
            found.append(node)

    promql_parser.walk(parsed(text), visit)
    assert found
    return found


def fits(selector: VectorSelector, sample: Sample) -> bool:
    name, labels = sample
    if name != selector.name:
        return False
    for each in selector.matchers.matchers:
        if each.name not in labels:
            return False
        value = labels[each.name]
        is_pattern = each.op in (MatchOp.Re, MatchOp.NotRe)
        same = re.fullmatch(each.value, value) is not None if is_pattern else each.value == value
        if same != (each.op in (MatchOp.Re, MatchOp.Equal)):
            return False
    return True


def output_labels(node: Any, samples: list[Sample]) -> set[str]:
    """The labels that the series of an expression may have; checks those that it names."""
    if isinstance(node, VectorSelector):
        if node.name == "up":
            return {"job", "instance"}
        found = [labels for name, labels in samples if fits(node, (name, labels))]
        assert found, f"nothing fits {node.prettify()}"
        return set().union(*found) | ADDED
    if isinstance(node, AggregateExpr):
        inside = output_labels(node.expr, samples)
        named = set(node.modifier.labels) if node.modifier else set()
        assert named <= inside, named - inside
        return named
    if isinstance(node, BinaryExpr):
        left, right = (output_labels(side, samples) for side in (node.lhs, node.rhs))
        return left | right if str(node.op) == "or" else left or right
    if isinstance(node, Call):
        inside = set().union(*(output_labels(each, samples) for each in node.args))
        if node.func.name == "histogram_quantile":
            assert "le" in inside
        return set() if node.func.name == "absent" else inside
    for name in ("vector_selector", "expr"):
        if (inner := getattr(node, name, None)) is not None:
            return output_labels(inner, samples)
    return set()


def expressions() -> Iterator[tuple[str, str, set[str]]]:
    """(where it stands, expression, labels that its texts show)."""
    for rule in RULES:
        texts = " ".join(rule["annotations"].values())
        yield rule["alert"], rule["expr"], set(re.findall(r"\$labels\.(\w+)", texts))
    for panel in PANELS:
        for target in panel["targets"]:
            named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            yield panel["title"], target["expr"], named


def test_operate_md_lists_every_family_with_its_labels(
    families: dict[str, list[Metric]],
) -> None:
    found: dict[str, tuple[str, str, str]] = {}
    for job, each in families.items():
        for family in each:
            name = family.name + "_total" * (family.type == "counter")
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            where = "both" if name in found else job.removeprefix("isthmus-")
            row = (family.type, where, " ".join(sorted(labels)))
            assert name not in found or found[name][::2] == row[::2], name
            found[name] = row
    rows = {}
    for line in DOCUMENT.read_text().splitlines():
        cells = [cell.strip().strip("`") for cell in line.split("|")[1:-1]]
        if len(cells) == 5 and cells[1] in ("counter", "gauge", "histogram"):
            name, kind, where, labels, meaning = cells
            assert meaning
            rows[name] = (kind, where, " ".join(sorted(labels.replace("`", "").split(", "))))
    assert rows == found


@pytest.mark.parametrize(("where", "text", "named"), list(expressions()))
def test_each_expression_finds_series_with_the_labels_that_it_names(
    where: str, text: str, named: set[str], samples: list[Sample]
) -> None:
    assert named <= output_labels(parsed(text), samples), where


@pytest.mark.parametrize(
    "text",
    [
        "sum(isthmus_queue_deep)",
        'isthmus_queue_depth{job="isthmus-edge"}',
        "sum by (modell) (isthmus_queue_depth)",
        'isthmus_key_reloads_total{result="bad"}',
        "histogram_quantile(0.9, sum by (job) (rate(isthmus_abort_seconds_bucket[5m])))",
    ],
)
def test_a_wrong_name_label_or_value_is_noticed(text: str, samples: list[Sample]) -> None:
    with pytest.raises(AssertionError):
        output_labels(parsed(text), samples)


def test_scaler_asks_for_series_that_the_edges_have(samples: list[Sample]) -> None:
    path = KIT.parent / "kubernetes" / "components" / "autoscaling" / "text.yaml"
    [trigger] = yaml.safe_load(path.read_text())["spec"]["triggers"]
    query = trigger["metadata"]["query"].replace("smollm2-135m-instruct", "scripted")
    output_labels(parsed(query), samples)


def test_every_family_of_ours_has_a_place_on_the_dashboard(samples: list[Sample]) -> None:
    shown = {selector.name for target in TARGETS for selector in selectors(target["expr"])}
    stem = re.compile(r"_(bucket|count|sum|total)$")
    names = {stem.sub("", name) for name, _ in samples if name.startswith(("isthmus_", "gen_ai"))}
    # How many images are kept says less than their size.
    assert names - {stem.sub("", name) for name in shown} == {"isthmus_files"}


def test_each_alert_has_its_severity_and_says_what_to_do() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "runbook"}
        for name in re.findall(r"\bIsthmus\w+", rule["annotations"]["runbook"]):
            assert name in {each["alert"] for each in RULES}


def test_operate_md_lists_every_alert() -> None:
    rows = re.findall(r"^\| `(Isthmus\w+)` \| .+ \| (.+) \|$", DOCUMENT.read_text(), re.MULTILINE)
    assert rows == [(rule["alert"], rule.get("for", "at once")) for rule in RULES]


def test_panels_have_their_own_ids_and_do_not_overlap() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert all(panel["description"] for panel in PANELS)


# Ids of Grafana's own panels and units: with an unknown one it shows an error, or a bare number.
PANEL_TYPES = {"row", "timeseries", "stat", "gauge", "bargauge", "table"}
UNITS = {"short", "s", "bytes", "percentunit", "reqps"}
GRID_COLUMNS = 24


def test_rows_and_panels_fill_the_grid_from_the_left_and_from_the_top() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert places == sorted(places, key=lambda place: (place["y"], place["x"]))
    for panel, place in zip(DASHBOARD["panels"], places, strict=True):
        assert set(place) == {"x", "y", "w", "h"}
        assert place["x"] + place["w"] <= GRID_COLUMNS, panel["title"]
        if panel["type"] == "row":
            assert place == {"x": 0, "y": place["y"], "w": GRID_COLUMNS, "h": 1}, panel["title"]
            assert (panel["collapsed"], panel["panels"]) == (False, [])


def test_panels_have_known_types_and_units_and_one_name_for_each_query() -> None:
    for panel in PANELS:
        assert panel["type"] in PANEL_TYPES, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        names = [target["refId"] for target in panel["targets"]]
        assert names == sorted(set(names)), panel["title"]


def test_every_query_goes_to_the_chosen_data_source_with_variables_that_exist() -> None:
    chooser, *others = DASHBOARD["templating"]["list"]
    assert (chooser["type"], chooser["query"]) == ("datasource", "prometheus")
    source = {"type": "prometheus", "uid": f"${{{chooser['name']}}}"}
    assert [each["datasource"] for each in (*others, *PANELS)] == [source] * (
        len(others) + len(PANELS)
    )
    several = {each["name"] for each in others if each["multi"] or each["includeAll"]}
    assert several == {each["name"] for each in others}
    for target in TARGETS:
        used = set(re.findall(r"\$\{?(\w+)", target["expr"]))
        assert used <= several | {"__rate_interval"}, target["expr"]
        # Several values become a regular expression.
        for name in used & several:
            assert re.search(rf'=~"\${name}"', target["expr"]), target["expr"]


def test_grafana_can_import_the_file_again_and_again() -> None:
    # A number under `id` is one of the database from which it was exported, and `__inputs` asks.
    assert not {"id", "__inputs"} & set(DASHBOARD)
    assert re.fullmatch(r"[\w-]{1,40}", DASHBOARD["uid"])
    assert DASHBOARD["schemaVersion"] >= 36, "since then a data source is an object"


def plain_rules(folder: Path) -> Path:
    """The rules for a Prometheus without the operator, as the README makes them."""
    path = folder / "isthmus-alerts.yaml"
    command = ["sed", "1,/^spec:/d", KIT / "alerts.yaml"]
    path.write_bytes(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return path


def test_rules_without_the_operator_are_the_same(tmp_path: Path) -> None:
    [group] = yaml.safe_load(plain_rules(tmp_path).read_text())["groups"]
    assert group["rules"] == RULES


# Alert: series of 40 minutes that fire it once, and some that do not; its labels and its summary.
FIRST = "gen_ai_server_time_to_first_token_seconds_bucket"
DURATION = "gen_ai_server_request_duration_seconds_count"
LAG = "isthmus_event_loop_lag_seconds_bucket"
FIRES: dict[str, tuple[dict[str, str], dict[str, str], str]] = {
    "IsthmusDown": (
        {
            f'up{{job="{EDGE}", instance="a"}}': "0x40",
            f'up{{job="{EDGE}", instance="b"}}': "1x40",
            'up{job="other", instance="c"}': "0x40",
        },
        {"job": EDGE, "instance": "a"},
        "isthmus-edge at a gives no metrics.",
    ),
    "IsthmusNoReplica": (
        {
            'isthmus_replica_serving{upstream="text:1", replica="r1"}': "0x40",
            'isthmus_replica_serving{upstream="text:1", replica="r2"}': "0x40",
            'isthmus_replica_serving{upstream="image:1", replica="r3"}': "0x40",
            'isthmus_replica_serving{upstream="image:1", replica="r4"}': "1x40",
        },
        {"upstream": "text:1"},
        "No replica of text:1 serves: its requests are 503.",
    ),
    "IsthmusReplicaDown": (
        {
            'isthmus_replica_serving{upstream="text:1", replica="r1", instance="a"}': "1x40",
            'isthmus_replica_serving{upstream="text:1", replica="r1", instance="b"}': "0x40",
            'isthmus_replica_serving{upstream="text:1", replica="r2", instance="b"}': "1x40",
        },
        {"upstream": "text:1", "replica": "r1"},
        "r1 of text:1 takes no requests from at least one edge.",
    ),
    "IsthmusModelNotReady": (
        {
            'isthmus_model_ready{model="text", instance="a"}': "0x40",
            'isthmus_model_ready{model="text", instance="b"}': "0x5 1x35",
        },
        {"model": "text", "instance": "a"},
        "text at a is not ready.",
    ),
    "IsthmusErrorRate": (
        {
            f'{DURATION}{{job="{EDGE}", error_type=""}}': "0+85x40",
            f'{DURATION}{{job="{EDGE}", error_type="engine_died"}}': "0+10x40",
            f'{DURATION}{{job="{EDGE}", error_type="cancelled"}}': "0+5x40",
            f'{DURATION}{{job="{SERVICE}", error_type="server_error"}}': "0+99x40",
        },
        {},
        "10% of the requests fail on our side.",
    ),
    "IsthmusSlowFirstToken": (
        {
            f'{FIRST}{{job="{EDGE}", gen_ai_response_model="slow", le="5"}}': "0x40",
            f'{FIRST}{{job="{EDGE}", gen_ai_response_model="slow", le="7.5"}}': "0+60x40",
            f'{FIRST}{{job="{EDGE}", gen_ai_response_model="slow", le="+Inf"}}': "0+60x40",
            f'{FIRST}{{job="{EDGE}", gen_ai_response_model="fast", le="5"}}': "0+60x40",
            f'{FIRST}{{job="{EDGE}", gen_ai_response_model="fast", le="+Inf"}}': "0+60x40",
        },
        {"gen_ai_response_model": "slow"},
        "slow: one request in 20 waits 7.375s or more for its first token.",
    ),
    "IsthmusQueueGrowing": (
        {
            'isthmus_queue_depth{model="grows"}': "1+1x40",
            'isthmus_queue_depth{model="stays"}': "5x40",
            'isthmus_queue_depth{model="empties"}': "0 8 0 8 0 8 0 8x33",
        },
        {"model": "grows"},
        "21 calls or more have waited for grows all the time, and the queue grows.",
    ),
    "IsthmusQueueFull": (
        {
            f'isthmus_refusals_total{{job="{SERVICE}", instance="a", reason="queue_timeout"}}': (
                "0+1x40"
            ),
            f'isthmus_refusals_total{{job="{SERVICE}", instance="b", reason="queue_timeout"}}': (
                "9x40"
            ),
            f'isthmus_refusals_total{{job="{SERVICE}", instance="b", reason="invalid_value"}}': (
                "0+1x40"
            ),
        },
        {"job": SERVICE, "instance": "a", "reason": "queue_timeout"},
        "a refuses calls: queue_timeout.",
    ),
    "IsthmusRefusals": (
        {
            'isthmus_refusals_total{instance="a", reason="invalid_value"}': "0+30x40",
            'isthmus_refusals_total{instance="a", reason="model_not_found"}': "0+5x40",
            f'{DURATION}{{job="{SERVICE}", error_type=""}}': "0+60x40",
            f'{DURATION}{{job="{SERVICE}", error_type="invalid_value"}}': "0+40x40",
            f'{DURATION}{{job="{EDGE}", error_type=""}}': "0+900x40",
        },
        {"reason": "invalid_value"},
        "30% of the calls are refused: invalid_value.",
    ),
    "IsthmusEventLoopLag": (
        {
            f'{LAG}{{job="{EDGE}", instance="a", le="0.5"}}': "0x40",
            f'{LAG}{{job="{EDGE}", instance="a", le="1"}}': "0+60x40",
            f'{LAG}{{job="{EDGE}", instance="a", le="+Inf"}}': "0+60x40",
            f'{LAG}{{job="{EDGE}", instance="b", le="0.5"}}': "0+60x40",
            f'{LAG}{{job="{EDGE}", instance="b", le="+Inf"}}': "0+60x40",
        },
        {"job": EDGE, "instance": "a"},
        "isthmus-edge at a is 995ms late: every stream waits.",
    ),
    "IsthmusMemoryBudget": (
        {
            f'isthmus_memory_used_bytes{{job="{EDGE}", instance="a"}}': "95x40",
            f'isthmus_memory_limit_bytes{{job="{EDGE}", instance="a"}}': "100x40",
            f'isthmus_memory_used_bytes{{job="{EDGE}", instance="b"}}': "85x40",
            f'isthmus_memory_limit_bytes{{job="{EDGE}", instance="b"}}': "100x40",
        },
        {"job": EDGE, "instance": "a"},
        "isthmus-edge at a: requests hold 95% of the memory budget.",
    ),
    "IsthmusKeysFileBroken": (
        {
            f'isthmus_key_reloads_total{{job="{EDGE}", instance="a", result="broken"}}': (
                "0x20 1x20"
            ),
            f'isthmus_key_reloads_total{{job="{EDGE}", instance="a", result="ok"}}': "0x20 1x20",
            f'isthmus_key_reloads_total{{job="{EDGE}", instance="b", result="broken"}}': "1x40",
        },
        {"job": EDGE, "instance": "a", "result": "broken"},
        "isthmus-edge at a cannot read its keys file; revoked keys stay valid.",
    ),
}


def rule_tests() -> dict[str, Any]:
    """FIRES as promtool reads it."""
    rules = {rule["alert"]: rule for rule in RULES}
    assert set(FIRES) == set(rules)
    tests = []
    for name, (series, labels, summary) in FIRES.items():
        fired = {
            "exp_labels": {**labels, **rules[name]["labels"]},
            "exp_annotations": {**rules[name]["annotations"], "summary": summary},
        }
        tests.append(
            {
                "interval": "1m",
                "input_series": [{"series": each, "values": v} for each, v in series.items()],
                "alert_rule_test": [{"eval_time": "30m", "alertname": name, "exp_alerts": [fired]}],
            }
        )
    return {"rule_files": ["isthmus-alerts.yaml"], "tests": tests}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool")
def test_prometheus_takes_the_rules_and_they_fire(tmp_path: Path) -> None:
    plain_rules(tmp_path)
    shutil.copy(KIT / "prometheus.yml", tmp_path)
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(rule_tests(), sort_keys=False))
    for command in (
        ["check", "rules", "isthmus-alerts.yaml"],
        ["check", "config", "prometheus.yml"],
        ["test", "rules", "tests.yaml"],
    ):
        done = subprocess.run(
            ["promtool", *command], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
