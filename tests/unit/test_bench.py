"""The benchmark's counts, tables and plot. Its measurements are not tested."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from aiohttp import ClientSession
from tokenizers import Tokenizer

from bench import measure, metrics, table, tiny_model
from bench.client import Load, Spec
from bench.direct import Responses, Stepper, _Connection
from bench.engines import DETAILS, FIGURES, IsthmusWithVllm, config_text, scenarios
from bench.passes import one_pass
from bench.peers.steps import grouped
from bench.peers.vllm_serve import command_line
from bench.plot import svg
from bench.processes import started
from bench.scenarios import all_scenarios
from bench.subject import Source
from inference.config import ModelConfig, load_models
from tests.contract import programs

SVG = "{http://www.w3.org/2000/svg}"
WORDS = ["w0 ", "w1 ", "w2 ", "w3 ", "w4 ", "w5 ", "w6 "]


async def run_client(load: dict[str, Any], responses: Responses) -> dict[str, Any]:
    """Returns the load client's result for a server with these responses."""
    loop = asyncio.get_running_loop()
    stepper = Stepper(responses, 0.0)
    server = await loop.create_server(lambda: _Connection(stepper), "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        spec = Spec(**load, url=f"http://{host}:{port}", model="m")
        return await Load(spec).run()


@pytest.fixture(autouse=True)
def empty_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the client run on after the mark "begin"."""
    monkeypatch.setattr("sys.stdin", io.StringIO())


async def test_client_counts_the_words_in_joined_chunks() -> None:
    streams = {"mode": "streams", "tokens": 7, "connections": 3, "rounds": 2, "seconds": 0.0}
    result = await run_client(streams, Responses(7, tokens_per_step=5))
    assert result["errors"] == {}
    assert (result["requests"], result["tokens"], result["chunks"]) == (6, 42, 12)


async def test_client_counts_a_wrong_number_of_tokens_as_an_error() -> None:
    result = await run_client({"mode": "streams", "tokens": 8, "seconds": 0.0}, Responses(7))
    assert result["errors"] == {"7 tokens for 8": 1, "warm-up: 7 tokens for 8": 1}


async def test_client_takes_the_tokens_of_a_real_model_from_the_usage() -> None:
    responses = Responses(7)
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":11}}\n\n'
    done = responses.end.index(b"e\r\ndata: [DONE]")
    end = responses.end
    responses.end = end[:done] + b"%x\r\n%b\r\n" % (len(usage), usage) + end[done:]
    load = {"mode": "streams", "real": True, "tokens": 11, "seconds": 0.0}
    result = await run_client(load, responses)
    assert result["errors"] == {}
    assert (result["requests"], result["tokens"], result["chunks"]) == (1, 11, 7)


def test_requests_to_a_real_model_fix_the_number_of_tokens() -> None:
    spec = Spec(mode="streams", url="http://127.0.0.1:1", model="m", tokens=9, real=True)
    body = json.loads(Load(spec)._generation(stream=True).partition(b"\r\n\r\n")[2])
    assert body["max_tokens"] == 9
    assert body["ignore_eos"] is True
    assert body["stream_options"] == {"include_usage": True}


def test_groups_of_a_step_contain_all_tokens() -> None:
    assert list(map("".join, grouped(WORDS, 5))) == ["w0 w1 w2 w3 w4 ", "w5 w6 "]
    assert len(Responses(7, 5).chunks) == 2


def test_cpu_seconds_are_counted_by_group() -> None:
    before = measure.cpu_seconds({"edge": [os.getpid()], "worker": []})
    sum(range(1_000_000))
    after = measure.cpu_seconds({"edge": [os.getpid()], "worker": []})
    assert after["edge"] > before["edge"] > 0
    assert after["worker"] == 0


@pytest.mark.parametrize("name", ["VLLM::EngineCore", "VLLM::Worker_0"])
def test_cpu_seconds_of_vllms_engine_are_a_group_of_their_own(name: str) -> None:
    script = f"open('/proc/self/comm', 'w').write({name!r}); print(flush=True); input()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe) as engine:
        assert engine.stdout is not None
        engine.stdout.readline()
        counted = measure.cpu_seconds({"worker": [engine.pid]})
        engine.communicate(b"\n")
    assert counted["worker"] == 0
    assert counted[measure.ENGINE] > 0


def test_overload_has_five_tokens_a_step_and_no_pace() -> None:
    (overload,) = (s for s in all_scenarios(quick=False) if s.name == "overload")
    assert overload.source.tokens_per_step == 5
    assert overload.source.step_seconds == 0


def test_both_servers_get_the_same_engine_arguments(tmp_path: Path) -> None:
    given = {"dtype": "bfloat16", "enforce_eager": True, "max_model_len": 512}
    model = ModelConfig(
        id="tiny", engine="vllm", source=str(tmp_path), max_running=4, engine_args=given
    )
    path = tmp_path / "isthmus.toml"
    path.write_text(config_text(model))
    assert load_models(path) == (model,)
    assert command_line(given) == [
        "--dtype",
        "bfloat16",
        "--enforce-eager",
        "--max-model-len",
        "512",
    ]
    assert IsthmusWithVllm(model).name == table.OURS


def test_a_measured_program_runs_and_its_output_is_logged() -> None:
    script = "print('it runs', flush=True); import time; time.sleep(60)"
    with started("test", [sys.executable, "-c", script]) as program:
        deadline = time.monotonic() + 20
        while b"it runs" not in program.log.read_bytes():
            assert time.monotonic() < deadline, program.log.read_text()
            time.sleep(0.02)
    with pytest.raises(ProcessLookupError):
        os.kill(program.pid, 0)


@pytest.fixture
def tokenizer_of(tmp_path: Path) -> Path:
    """A small tokenizer like SmolLM2's, with non-ASCII pieces, merges and extra special tokens."""
    directory = tmp_path / "whole"
    directory.mkdir()
    pieces = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]
    added = [
        {
            "id": number,
            "content": piece,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for number, piece in enumerate(pieces)
    ]
    pieces += ["h", "\u00ff", "i", "\u0120", "hi", "\u0120hi", "h\u00ff"]
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
        "model": {
            "type": "BPE",
            "vocab": {piece: number for number, piece in enumerate(pieces)},
            "merges": [["h", "i"], ["\u0120", "hi"], ["h", "\u00ff"]],
        },
    }
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    (directory / "tokenizer_config.json").write_text('{"additional_special_tokens": ["x"]}')
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    (directory / "generation_config.json").write_text("{}")
    return directory


def test_the_tiny_model_has_an_ascii_vocabulary_and_the_same_weights_each_time(
    tokenizer_of: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "tiny"
    tiny_model.make(directory, tokenizer_of)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    size = json.loads((directory / "config.json").read_text())["vocab_size"]
    assert tokenizer.get_vocab_size() == size == 8
    assert tokenizer.encode("<|im_start|>hi hi").ids == [1, 6, 7]
    assert tokenizer.decode([6, 7]) == "hi hi"
    weights = (directory / "model.safetensors").read_bytes()
    tiny_model.make(directory, tokenizer_of)
    assert (directory / "model.safetensors").read_bytes() == weights


def run(scenario: str, subject: str, **figures: float) -> dict[str, Any]:
    return {
        "repeat": 0,
        "scenario": scenario,
        "subject": subject,
        "void": not figures,
        "figures": figures,
        "result": {"errors": {} if figures else {"cut": 1}},
    }


def test_headline_shows_the_ratios_of_both_servers() -> None:
    results = table.Results(
        [
            run("smollm2-8", table.OURS, tokens_per_s=90.0, edge_and_worker_us_per_token=100.0),
            run("smollm2-8", "vllm serve", tokens_per_s=60.0, edge_and_worker_us_per_token=400.0),
        ]
    )
    rows = table.headline(results, FIGURES)
    assert [row[4] for row in rows[1:]] == ["1.5", "0.25"]
    assert [row[-1] for row in rows[1:]] == ["aim", ""]
    assert len(table.details(results, DETAILS)) == 3


def test_scenarios_of_engines_have_a_fixed_number_of_responses() -> None:
    for scenario in scenarios("smollm2", {1: 4, 8: 2}, 64, quick=False):
        assert scenario.load["seconds"] == 0
        assert scenario.load["real"]
        Spec(url="", model="", **scenario.load)


class Never:
    """A subject that must not be started."""

    name = "LiteLLM"

    def start(self, source: Source) -> Any:
        raise RuntimeError("started")


def test_litellm_is_left_out_of_scenarios_of_many_streams() -> None:
    scenarios = all_scenarios(quick=True)
    entries = list(one_pass(0, [Never()], scenarios))
    assert [entry["scenario"] for entry in entries] == ["paced", "plain", "ttft"]
    assert all(entry["void"] for entry in entries)


def measured() -> list[dict[str, Any]]:
    runs = [run("paced", table.DIRECT, worker_us_per_token=9.0)]
    for subject, edge in ((table.OURS, 30.0), (table.SMG, 45.0), (table.LITELLM, 1900.0)):
        runs.append(run("paced", subject, edge_us_per_token=edge, worker_us_per_token=40.0))
        runs += [
            run(f"growth-{count}", subject, edge_us_per_token=edge + 900 / count)
            for count in (1, 64, 1024)
        ]
    return runs


def test_the_plot_is_svg_with_a_description_of_both_charts() -> None:
    root = ElementTree.fromstring(svg(table.Results(measured())))
    assert root.tag == f"{SVG}svg"
    described = "".join(root.find(f"{SVG}desc").itertext())  # type: ignore[union-attr]
    assert "Isthmus: 930 microseconds a token at 1 stream, 31 at 1,024." in described
    texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    assert {"1,024", "no gateway", "31  Isthmus", "70", "1,940"} <= set(texts)
    assert len(list(root.iter(f"{SVG}path"))) == 3 + 2
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for bar in root.iter(f"{SVG}rect"):
        assert float(bar.attrib["x"]) + float(bar.attrib["width"]) <= width
        assert float(bar.attrib["y"]) + float(bar.attrib["height"]) <= height


def test_the_plot_has_one_chart_if_one_scenario_was_measured() -> None:
    runs = [one for one in measured() if one["scenario"] == "paced"]
    root = ElementTree.fromstring(svg(table.Results(runs)))
    assert len(list(root.iter(f"{SVG}rect"))) > 3
    with pytest.raises(ValueError, match="neither"):
        svg(table.Results([run("paced", table.OURS)]))


async def counted(*switches: signal.Signals) -> list[int]:
    """Finished requests in the metrics of a service and an edge, after one of each switch."""
    model = ModelConfig(id="scripted", engine="scripted")
    port = programs.fixed_port()
    launcher = ("-m", "bench.metrics_switch")
    options = ("--metrics-listen", f"127.0.0.1:{port}")
    pattern = re.compile(r"^gen_ai_server_request_duration_seconds_count{.*} (\d+)", re.MULTILINE)
    async with programs.service(model, options=options, start=(*launcher, "inference")) as service:
        async with (
            programs.edge(service.port, start=(*launcher, "edge")) as edge,
            ClientSession() as http,
        ):
            body = {"model": "scripted", "prompt": "x"}
            url = f"http://127.0.0.1:{edge.port}"
            for switch in switches:
                service.send(switch)
                edge.send(switch)
                async with http.post(f"{url}/v1/completions", json=body) as response:
                    assert response.status == 200
            found = []
            for where in (f"http://127.0.0.1:{port}", url):
                async with http.get(f"{where}/metrics") as response:
                    found.append(sum(map(int, pattern.findall(await response.text()))))
    return found


async def test_switched_programs_count_while_their_metrics_are_on() -> None:
    off, on = signal.SIGUSR1, signal.SIGUSR2
    assert await counted(on, off, off, on, off) == [2, 2]


def test_cost_of_metrics_is_the_median_of_neighbouring_slices() -> None:
    costs = metrics.Costs()
    costs.pairs["plain"] = [(102.0, 100.0), (408.0, 400.0), (110.0, 100.0)]
    costs.pairs["paced"] = [(20.0, 20.0)]
    costs.requests = {"/metrics": [0.012, 0.008, 0.010], "/health": [0.005]}
    _, plain, paced, scrapes, probes = (" ".join(each.split()) for each in metrics.report(costs))
    assert plain.endswith(" 110.0 100.0 2.00 % (2.00 to 6.00), at most 3 % wanted")
    assert paced.endswith(" 20.0 20.0 0.00 % (0.00 to 0.00), at most 3 % wanted")
    assert scrapes.endswith(" of a core 1.00 % (0.90 to 1.10), at most 1 % wanted")
    assert probes.endswith(" of a core 0.50 % (0.50 to 0.50)")
