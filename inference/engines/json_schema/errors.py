"""Why a schema is refused."""

from __future__ import annotations

from typing import Final

Path = tuple[str | int, ...]
CANNOT: Final = "cannot be enforced"
UNSUPPORTED: Final = "refers to a place that is not supported"
OUTSIDE: Final = "must refer to a place in the same schema"
# A step to a schema that is made of the client's part at a path, and has no place of its own.
OPPOSITE: Final = -1


class SchemaError(Exception):
    """A schema that no grammar enforces.

    `path` leads to the keyword at fault; `why` completes "'a.b' ".
    """

    def __init__(self, path: Path, why: str = CANNOT) -> None:
        super().__init__(why)
        self.path = path
        self.why = why

    @property
    def place(self) -> str:
        """The path as text that follows a parameter's name: ".properties.a[0].not"."""
        return "".join(
            f"[{step}]" if isinstance(step, int) else f".{step}"
            for step in self.path
            if step != OPPOSITE
        )
