"""The official test suite of JSON Schema, read from a package that carries it."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

# The source release of this package has the suite.
CARRIER = "jsonschema==4.26.0"


def official_suite(cache: Path) -> Path:
    """The folder with a folder of tests for each draft; downloaded if `cache` lacks it."""
    target = cache / "json-schema-test-suite" / f"{CARRIER.partition('==')[2]}-drafts"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            subprocess.run(
                [
                    *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                    *("--no-binary", "jsonschema", "--dest", scratch, CARRIER),
                ],
                check=True,
                timeout=100,
            )
            name = CARRIER.replace("==", "-")
            with tarfile.open(Path(scratch) / f"{name}.tar.gz") as archive:
                archive.extractall(scratch, filter="data")
            (Path(scratch) / name / "json" / "tests").rename(target)
    return target


def official_cases(suite: Path, draft: str = "draft2020-12") -> list[tuple[str, dict[str, Any]]]:
    """Each case of a draft with the name of its file: a schema and instances, valid or not."""
    files = [*(suite / draft).glob("*.json"), *(suite / draft).glob("optional/*.json")]
    return [(file.stem, case) for file in sorted(files) for case in json.loads(file.read_text())]
