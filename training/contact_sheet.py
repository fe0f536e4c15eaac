"""Makes docs/images/emoji.png: images of the embedded model, with its default settings.

    isthmus up &
    python -m training.contact_sheet

Every image comes from POST /v1/images/generations, with the seed _SEED.
"""

from __future__ import annotations

import argparse
import base64
import io
from pathlib import Path
from typing import Final

from openai import OpenAI
from PIL import Image, ImageDraw, ImageFont

from training.unet import PROMPTS

_COLUMNS: Final = 6
# Width and height of an image, and the height of its label, in pixels.
_SIDE: Final = 256
_LABEL: Final = 32
_SEED: Final = 1


def sheet(client: OpenAI, model: str) -> Image.Image:
    """Requests an image for each prompt and arranges them, each above its prompt."""
    rows = -(-len(PROMPTS) // _COLUMNS)
    page = Image.new("RGB", (_COLUMNS * _SIDE, rows * (_SIDE + _LABEL)), "white")
    write = ImageDraw.Draw(page)
    font = ImageFont.load_default(20)
    for index, prompt in enumerate(PROMPTS):
        response = client.images.generate(
            model=model,
            prompt=prompt,
            size=f"{_SIDE}x{_SIDE}",
            extra_body={"seed": _SEED},
        )
        [entry] = response.data or []
        image = Image.open(io.BytesIO(base64.b64decode(entry.b64_json or "")))
        left, top = index % _COLUMNS * _SIDE, index // _COLUMNS * (_SIDE + _LABEL)
        page.paste(image, (left, top))
        place = (left + _SIDE // 2, top + _SIDE + _LABEL // 2)
        write.text(place, prompt, fill="black", font=font, anchor="mm")
        print(f"{index + 1} of {len(PROMPTS)}: {prompt}", flush=True)
    return page


def main() -> None:
    """Reads the command line and writes the sheet."""
    parser = argparse.ArgumentParser(prog="python -m training.contact_sheet", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--to", type=Path, default=Path("docs/images/emoji.png"))
    arguments = parser.parse_args()
    page = sheet(OpenAI(base_url=arguments.url, api_key="none"), arguments.model)
    arguments.to.parent.mkdir(parents=True, exist_ok=True)
    page.save(arguments.to, optimize=True)


if __name__ == "__main__":
    main()
