"""`isthmus config`, `version`, `completion`, and what all commands have in common."""

from __future__ import annotations

import argparse
import json
import subprocess
import tomllib
from pathlib import Path

import pytest

from keys import create_key
from launch.__main__ import command_parser, main
from launch.config_command import reference

ROOT = Path(__file__).parents[2]
MODEL = '[[models]]\nid = "a"\nengine = "scripted"\n'


def said(capfd: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = main(argv)
    out, err = capfd.readouterr()
    return status, out, err


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (MODEL + 'engin = "x"', 4, "models.engin: there is no such setting; the nearest is 'eng"),
        (MODEL + "zzzz = 1", 4, "models.zzzz: there is no such setting"),
        (MODEL + "max_queued = -1", 4, "models.a.max_queued: -1 is not a whole number of at lea"),
        (MODEL + 'max_queued = "1"', 4, "models.max_queued: Expected `int`, got `str`"),
        (
            MODEL + MODEL + 'aliases = [\n  { name = "x" },\n  { nam = "y" },\n]',
            9,
            "models.aliases[1].nam: there is no such setting; the nearest is 'name'",
        ),
        (MODEL + "[edge]\nport = 8000\nprot = 1", 6, "edge.prot: there is no such setting; the ne"),
        (MODEL + "[edge]\nport = 70000", 5, "edge.port: 70000 is not a whole number from 0 to 65"),
        ('[[models]]\nengine = "scripted"', 1, "models: Object missing required field `id`"),
        (MODEL.replace("scripted", "vlm"), 3, "models.a.engine: 'vlm' is not one of"),
        (MODEL + "[edgee]\nport = 1", 0, "edgee: there is no such table; the nearest is 'edge'"),
        (MODEL + MODEL, 0, "the model name 'a' is used twice"),
        ("models = 1", 0, "models: write [[models]] before"),
        (MODEL + "[[edge]]\nport = 1", 0, "edge: write [edge] before"),
        ("[edge", 0, "Expected ']'"),
        ("# caf\udce9", 0, "'utf-8' codec can't decode byte 0xe9"),
        ("", 0, "no [[models]]"),
    ],
)
def test_config_check_names_file_line_and_setting(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str, line: int, message: str
) -> None:
    path = tmp_path / "isthmus.toml"
    path.write_text(text, errors="surrogateescape")
    status, out, err = said(capfd, "config", "check", str(path))
    assert (status, out) == (2, "")
    assert err.startswith(f"isthmus config: {path}:{line}: " if line else f"isthmus config: {path}")
    assert message in err


@pytest.mark.parametrize("source", ["/models/nope", "./nope", "../nope", "~/nope"])
def test_path_that_does_not_exist_is_named_where_the_model_would_load(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], source: str
) -> None:
    path = tmp_path / "isthmus.toml"
    path.write_text(f'[[models]]\nid = "a"\nengine = "vllm"\nsource = "{source}"\n')
    for command in ("up", "inference"):
        status, _, err = said(capfd, command, "--config", str(path))
        assert status == 2
        fault = f"models.a.source: '{source}' does not exist here"
        assert err == f"isthmus {command}: {fault}\n"
    # The model may be on another machine than the one that checks.
    assert said(capfd, "config", "check", str(path))[0] == 0


def test_config_init_writes_a_valid_file_and_overwrites_none(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.toml"
    assert said(capfd, "config", "init", str(path))[0] == 0
    written = path.read_text()
    assert said(capfd, "config", "check", str(path))[0] == 0
    status, _, err = said(capfd, "config", "init", str(path))
    assert status == 2
    assert "exists" in err
    assert path.read_text() == written


def test_config_show_prints_defaults_and_hides_the_credential(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "isthmus.toml"
    path.write_text(MODEL + '[edge]\nupstream_token = "canary"\n')
    status, out, _ = said(capfd, "config", "show", str(path))
    assert status == 0
    shown = tomllib.loads(out)
    assert shown["models"][0]["max_queued"] == 1024
    assert shown["edge"]["upstream_token"] == "(hidden)"
    as_json = said(capfd, "config", "show", str(path), "--json")[1]
    assert json.loads(as_json)["edge"]["port"] == shown["edge"]["port"] == 8000
    assert "canary" not in out + as_json


def test_config_names_the_command_that_writes_a_missing_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status, _, err = said(capfd, "config", "check", str(tmp_path / "none.toml"))
    assert status == 2
    assert "isthmus config init" in err


def test_page_of_settings_is_that_of_this_version() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert page == reference(), "isthmus config reference > docs/configuration.md"
    # Every setting has a meaning.
    assert not [row for row in page.splitlines() if row.endswith("|  |")]


def test_version_lists_packages(capfd: pytest.CaptureFixture[str]) -> None:
    shown = json.loads(said(capfd, "version", "--json")[1])
    assert {"isthmus", "python", "grpcio", "aiohttp"} <= set(shown)
    assert said(capfd, "version")[1].startswith("isthmus")


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_a_script_that_knows_the_commands(
    capfd: pytest.CaptureFixture[str], shell: str, tmp_path: Path
) -> None:
    status, script, _ = said(capfd, "completion", shell)
    assert status == 0
    assert "batch" in script
    assert "--max-tokens" in script
    if shell == "bash":
        path = tmp_path / "completion"
        path.write_text(script)
        complete = (
            f"source {path}; COMP_WORDS=(isthmus ba); COMP_CWORD=1; "
            "_shtab_isthmus isthmus ba isthmus 2>/dev/null; echo ${COMPREPLY[@]}"
        )
        done = subprocess.run(["bash", "-c", complete], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["batch"]


def test_every_command_has_help_without_names_of_the_code() -> None:
    names = []

    def check(parser: argparse.ArgumentParser, name: str) -> None:
        names.append(name)
        assert parser.format_help().startswith(f"usage: {name}")
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for each, inner in action.choices.items():
                    check(inner, f"{name} {each}")
                continue
            # Otherwise argparse shows the name of the attribute in capitals.
            takes_value = action.nargs != 0 and action.option_strings and not action.choices
            assert not takes_value or action.metavar, f"{name} {action.option_strings}"

    check(command_parser(), "isthmus")
    assert {"isthmus edge", "isthmus keys create", "isthmus config check"} <= set(names)


def test_keys_models_and_doctor_have_json(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "keys.json"
    entry, key = create_key(keys, "someone")
    _, out, _ = said(capfd, "keys", "list", "--keys", str(keys), "--json")
    assert [each["id"] for each in json.loads(out)] == [entry.id]
    assert key not in out
    models = json.loads(said(capfd, "models", "--json")[1])
    assert "emoji" in [each["id"] for each in models]
    found = json.loads(said(capfd, "doctor", "--json")[1])
    assert {each["grade"] for each in found} <= {"ok", "note", "bad"}
