"""vLLM's worker for CPUs, with a fix for a fault by which one seeded request ends the whole engine.

vLLM may process a prompt in several steps. vLLM 0.32 samples a token after each of them, discards
the tokens of unfinished prompts, and rewinds these requests' random generators, which raises for
generators on a CPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from vllm.v1.worker.cpu_worker import CPUWorker


class SeedKeepingCpuWorker(CPUWorker):  # type: ignore[misc]
    """Hides the generators of requests whose sampled token will be discarded."""

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Samples as vLLM does, but with the common generator for unfinished prompts."""
        runner = self.model_runner
        generators = runner.input_batch.generators
        mask = runner.discard_request_mask.np[: runner.input_batch.num_reqs]
        discarded = np.nonzero(mask)[0].tolist()
        hidden = {index: generators.pop(index) for index in discarded if index in generators}
        try:
            return super().sample_tokens(grammar_output)
        finally:
            generators.update(hidden)
