"""Counts outcomes, and finds for each failure the faults that explain it."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bench.soak.faults import KEY_SECONDS, Window
from bench.soak.judge import CLASSES, Answer, Verdict
from bench.soak.plan import GRPC, Plan
from bench.soak.stack import SERVICES

# Faults that may fail a direct call to their service. A request to an edge may fail by the first
# two, with an error but never with a cut connection; by a clean stop of one service it must not.
_SERVICE_FAULTS: Final = ("kill", "pause", "clean stop")
# Faults that must not fail a request that had arrived before them.
_DRAINING: Final = ("clean stop", "edge restart")
# How the details of errors begin that a lost service causes.
_SERVER_ERRORS: Final = (
    "status 5", "event server_error", "event api_error", "event overloaded_error"
)  # fmt: skip
# Seconds that a request may take to arrive.
_ARRIVAL_SECONDS: Final = 0.1
# Seconds before a clean stop without another fault.
_QUIET_SECONDS: Final = 10.0
# Problems and failures that the report shows in full.
_KEPT: Final = 200


@dataclass(frozen=True)
class Failure:
    """A request that failed without its own cue or cancel.

    Attributes:
        kind: The kind of request.
        target: The edge, or the service of a direct call.
        outcome: "error", "cut" or "no answer".
        detail: The error.
        causes: The faults that explain it; empty for none.
        began, ended: Seconds of time.monotonic().
    """

    kind: str
    target: str
    outcome: str
    detail: str
    causes: tuple[str, ...]
    began: float
    ended: float


def causes(
    plan: Plan,
    answer: Answer,
    verdict: Verdict,
    target: str,
    faults: Sequence[Window],
    *,
    second: bool,
) -> tuple[str, ...]:
    """Returns the faults that explain a failure; none means that it must not have happened.

    Args:
        plan, answer, verdict: The request.
        target: The edge, or the service of a direct call.
        faults: All faults so far.
        second: Whether the request had the key that is revoked now and then.
    """
    during = [
        w
        for w in faults
        if w.begin <= answer.ended
        and w.end >= answer.began
        and (w.kind not in _DRAINING or w.begin <= answer.began + _ARRIVAL_SECONDS)
    ]
    refused = verdict.detail.startswith(("status 401", "UNAUTHENTICATED"))
    if refused:
        return tuple({w.kind for w in during if w.kind == "revoke"}) if second else ()
    here = {w.kind for w in during if w.target == target}
    if plan.path == GRPC:
        return tuple(sorted(here & set(_SERVICE_FAULTS))) if verdict.outcome == "error" else ()
    if verdict.outcome == "cut":
        return ("slow reader",) if plan.kind == "slow reader" else ()
    if verdict.outcome == "no answer":
        # An edge that stops closes idle connections, and a request may be on its way on one.
        return tuple(here & {"edge restart"}) if "no end within" not in answer.cut else ()
    if verdict.detail.startswith(("status 400", "status 404")):
        # The response that it refers to was in the memory of an edge that has ended.
        gone = [w for w in faults if w.kind == "edge restart" and w.target == target]
        return tuple({w.kind for w in gone if plan.since < w.end and w.begin <= answer.ended})
    if verdict.detail.startswith(_SERVER_ERRORS):
        kinds = {w.kind for w in during if w.kind in ("kill", "pause")}
        # An edge may send a server error while every service has a fault.
        gone = {w.target: w.kind for w in during if w.kind in _SERVICE_FAULTS}
        kinds |= {*gone.values()} if gone.keys() >= {*SERVICES} else set()
        return tuple(sorted(kinds | (here & {"edge restart"})))
    return ()


class Record:
    """Counts of all requests by kind and outcome, and their failures.

    Attributes:
        outcomes: Number of requests by kind and outcome.
        errors: Number of failures by cause and detail.
        classes: Number of problems by class.
        problems: Their texts, up to a bound.
        failures: Every failure.
        seconds, firsts: Of each kind, the times to the end and to the first byte of successes.
    """

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.errors: Counter[tuple[str, str]] = Counter()
        self.classes: Counter[str] = Counter(dict.fromkeys(CLASSES, 0))
        self.problems: list[str] = []
        self.failures: list[Failure] = []
        self.seconds: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))
        self.firsts: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))

    def problem(self, kind: str, text: str) -> None:
        """Counts a problem of a class."""
        self.classes[kind] += 1
        if len(self.problems) < _KEPT:
            self.problems.append(f"{kind}: {text}")

    def add(
        self,
        plan: Plan,
        answer: Answer,
        verdict: Verdict,
        target: str,
        faults: Sequence[Window],
        *,
        second: bool,
    ) -> None:
        """Counts a request; the arguments are those of `causes`."""
        outcome = verdict.outcome
        for kind, text in verdict.problems:
            self.problem(kind, f"{plan.request_id} {plan.kind} at {target}: {text}")
        if outcome == "ok":
            self.seconds[plan.kind].append(answer.ended - answer.began)
            if answer.first:
                self.firsts[plan.kind].append(answer.first - answer.began)
            if second and _accepted_revoked(answer, faults):
                outcome, verdict.detail = "error", "a revoked key was accepted"
                self._fail(plan, answer, verdict, target, ())
        elif outcome not in ("as cued", "cancelled"):
            found = causes(plan, answer, verdict, target, faults, second=second)
            self._fail(plan, answer, verdict, target, found)
            if outcome in ("cut", "no answer") and not found:
                text = f"{plan.request_id} {plan.kind} at {target}: {outcome}: {answer.cut}"
                self.problem("lost", text)
            outcome += "" if found else ", unexplained"
        self.outcomes[plan.kind, outcome] += 1

    def _fail(
        self, plan: Plan, answer: Answer, verdict: Verdict, target: str, found: tuple[str, ...]
    ) -> None:
        failure = Failure(
            plan.kind, target, verdict.outcome, verdict.detail, found, answer.began, answer.ended
        )
        self.failures.append(failure)
        shown = (
            verdict.detail
            if verdict.outcome == "error"
            else (f"{verdict.outcome}: {verdict.detail.split(':')[0]}")
        )
        self.errors[" + ".join(found) or "none", shown] += 1

    @property
    def unexplained(self) -> list[Failure]:
        """Failures that no fault explains."""
        return [failure for failure in self.failures if not failure.causes]


def _accepted_revoked(answer: Answer, faults: Sequence[Window]) -> bool:
    """Whether a request was sent and answered while every process must have known of it."""
    return any(
        w.kind == "revoke"
        and answer.began > w.begin + KEY_SECONDS
        and answer.ended < w.end - KEY_SECONDS
        for w in faults
    )


def clean_stops(faults: Sequence[Window]) -> list[Window]:
    """Returns the clean stops of a service without another fault in the last 10 s or meanwhile."""
    return [
        stop
        for stop in faults
        if stop.kind == "clean stop"
        and not any(
            other is not stop
            and other.begin <= stop.end
            and other.end >= stop.begin - _QUIET_SECONDS
            for other in faults
        )
    ]


def failed_during(stops: Sequence[Window], failures: Sequence[Failure]) -> list[Failure]:
    """Returns the failures of REST requests during clean stops."""
    return [
        failure
        for failure in failures
        if failure.target.startswith("edge")
        and any(s.begin <= failure.ended and s.end >= failure.began for s in stops)
    ]
