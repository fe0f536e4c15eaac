"""Output that is kept back: the candidates of best_of until they are ranked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from isthmus.v1.generate_pb2 import ChoiceDelta, ChoiceFinish, GenerateResponse


@dataclass(slots=True)
class Candidate:
    """The output of one candidate of best_of, withheld until all candidates have ended.

    Text is collected in lists and joined once: a protobuf message keeps the memory of each string
    that was ever assigned to one of its fields.
    """

    delta: ChoiceDelta = field(default_factory=ChoiceDelta)
    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    finish: ChoiceFinish | None = None
    tokens: int = 0
    logprob: float = 0.0

    def add(self, delta: ChoiceDelta | None, finish: ChoiceFinish | None, output: Any) -> None:
        if delta is not None:
            self.texts.append(delta.text)
            self.reasoning.append(delta.reasoning)
            delta.ClearField("text")
            delta.ClearField("reasoning")
            self.delta.MergeFrom(delta)
        self.finish = finish or self.finish
        self.tokens += len(output.token_ids)
        self.logprob = output.cumulative_logprob or 0.0

    def joined(self, index: int, echo: str) -> ChoiceDelta:
        """The whole output as choice `index`, after the echo."""
        self.delta.index = index
        self.delta.text = echo + "".join(self.texts)
        self.delta.reasoning = "".join(self.reasoning)
        return self.delta

    def score(self) -> float:
        """The mean log probability of a token."""
        return self.logprob / max(self.tokens, 1)


def merge_delta(response: GenerateResponse, delta: ChoiceDelta) -> None:
    """Adds a delta to the response, which has at most one per choice."""
    for present in response.deltas:
        if present.index == delta.index:
            text, reasoning = present.text + delta.text, present.reasoning + delta.reasoning
            present.MergeFrom(delta)
            present.text, present.reasoning = text, reasoning
            return
    response.deltas.append(delta)
