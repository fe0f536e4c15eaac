"""vLLM's worker for CPUs, without the fault by which one seeded request ends the whole engine.

vLLM 0.32 draws a token after each part of a prompt that is read in several steps, drops it, and
winds the request's random generator back, which generators on a CPU cannot do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from vllm.v1.worker.cpu_worker import CPUWorker


class SeedKeepingCpuWorker(CPUWorker):  # type: ignore[misc]
    """Keeps the generators of requests whose draw is dropped out of that draw."""

    def sample_tokens(self, grammar_output: Any) -> Any:
        """As vLLM does; whoever still reads its prompt draws from the common generator."""
        runner = self.model_runner
        generators = runner.input_batch.generators
        dropped = np.nonzero(runner.discard_request_mask.np[: runner.input_batch.num_reqs])[0]
        kept = {index: generators.pop(index) for index in dropped.tolist() if index in generators}
        try:
            return super().sample_tokens(grammar_output)
        finally:
            generators.update(kept)
