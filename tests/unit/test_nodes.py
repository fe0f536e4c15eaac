"""The nodes of a configuration, and the followers that it allows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from inference.__main__ import main
from inference.config import ModelConfig, ServerConfig
from inference.engines.nodes import Nodes, nodes_of
from inference.server import InferenceServer
from keys import ConfigError

GOOD = {"tensor_parallel_size": 4, "nnodes": 2, "master_addr": "10.0.0.1", "master_port": 1234}


def model(**arguments: Any) -> ModelConfig:
    return ModelConfig(id="m", engine="vllm", source="/m", engine_args=arguments)


def test_the_followers_port_is_the_one_after_master_port() -> None:
    assert nodes_of(model(**GOOD)) == Nodes(count=2, address="10.0.0.1", port=1235)
    assert nodes_of(model(nnodes=2, tensor_parallel_size=2, master_addr="a", node_rank=0)) == Nodes(
        count=2, address="a", port=29502
    )


@pytest.mark.parametrize("arguments", [{}, {"nnodes": 1}, {"tensor_parallel_size": 2}])
def test_model_on_one_machine_has_no_nodes(arguments: dict[str, Any]) -> None:
    assert nodes_of(model(**arguments)) is None


def test_members_of_other_engines_are_theirs() -> None:
    other = ModelConfig(id="m", engine="scripted", engine_args={"nnodes": 2})
    assert nodes_of(other) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"nnodes": 0}, "engine_args: Expected `int` >= 1 - at `$.nnodes`"),
        ({"nnodes": "2"}, "engine_args: Expected `int`, got `str` - at `$.nnodes`"),
        ({"node_rank": 1}, "node_rank: .* --follow RANK"),
        ({"master_addr": ""}, "master_addr: nnodes needs the address of the head"),
        ({"master_port": 65535}, "engine_args: .* - at `$.master_port`"),
        ({"nnodes": 3}, "nnodes: 3 machines cannot share the 4 parts"),
        ({"data_parallel_size": 2}, "data_parallel_size: cannot be used with nnodes"),
        ({"distributed_executor_backend": "ray"}, "distributed_executor_backend: must be mp"),
    ],
)
def test_head_with_arguments_that_do_not_fit_does_not_start(
    change: dict[str, Any], said: str
) -> None:
    config = ServerConfig(listen="127.0.0.1:0", models=(model(**(GOOD | change)),))
    with pytest.raises(ConfigError, match=said.replace("$", r"\$")):
        InferenceServer(config)


@pytest.fixture(autouse=True)
def _this_process_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program ends its process, seconds after `main`."""
    monkeypatch.setattr("contract.process.end_soon", lambda _status: None)


def follow(folder: Path, rank: str, *tables: str, options: tuple[str, ...] = ()) -> int:
    """The exit status of a follower with these models."""
    path = folder / "isthmus.toml"
    path.write_text("\n".join(f"[[models]]\n{table}" for table in tables))
    return main(["--config", str(path), "--follow", rank, *options])


def vllm(**arguments: Any) -> str:
    members = "".join(f"{name} = {json.dumps(value)}\n" for name, value in arguments.items())
    return f'id = "m"\nengine = "vllm"\nsource = "/m"\n[models.engine_args]\n{members}'


SCRIPTED = 'id = "other"\nengine = "scripted"\n'


@pytest.mark.parametrize(
    ("tables", "rank", "said"),
    [
        ((vllm(**GOOD), SCRIPTED), "1", "--follow: the configuration has several models"),
        ((SCRIPTED,), "1", "models.other.engine: is scripted; only models of the engine vllm"),
        ((vllm(),), "1", "models.m.engine_args.nnodes: --follow needs it"),
        ((vllm(**GOOD),), "2", "--follow: 2 is not a follower of m. With nnodes = 2 the only one"),
        ((vllm(**GOOD),), "0", "The head, rank 0, runs without --follow."),
        ((vllm(**GOOD | {"nnodes": 4}),), "-1", "--follow: -1 is not .* they are 1 to 3."),
        ((vllm(**GOOD | {"node_rank": 1}),), "1", "models.m.engine_args.node_rank: "),
        ((), "1", "models: at least one is needed"),
    ],
)
def test_follower_that_does_not_fit_says_why(
    tables: tuple[str, ...],
    rank: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert follow(tmp_path, rank, *tables) == 2
    assert re.search(f"^isthmus inference: .*{said}", capsys.readouterr().err)


def test_model_chooses_which_to_follow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = (vllm(**GOOD), SCRIPTED)
    assert follow(tmp_path, "1", *tables, options=("--model", "other")) == 2
    assert "models.other.engine" in capsys.readouterr().err
