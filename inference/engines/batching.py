"""Dynamic batching: inputs of concurrent requests share the model's forward passes.

The model runs in one thread. `submit` queues a request from the event loop and waits for a future;
the thread repeats three steps:

1. Take a window of up to 64 inputs, one input of each waiting request in turn. So a request of one
   input does not wait for another's thousand, and there are enough inputs of nearly one length.
2. Split the window into batches, the longest inputs first. All inputs of a batch are padded to its
   longest one, and its positions (inputs times longest input) are at most `max_batch_tokens`; an
   input longer than that is a batch of its own. Of all such splits, take one with the least cost:
   the positions of all batches, and `batch_cost` for each.
3. Run each batch and store its rows. The caller is woken when its last row is done.

    event                       effect
    caller is cancelled         `dropped` is set; the inputs are skipped when a window is taken and
                                again before a batch runs; a running batch is not interrupted
    a batch raises              each of its inputs is run alone, so that one bad input does not
                                fail the others
    an input alone raises       its request fails with the exception, its other inputs are skipped;
                                then an input that has worked before is run
    that one raises, too        the device is broken: the thread dies
    `close`                     the running batch ends, no other one starts, and all callers that
                                wait get EngineDeadError
    the thread dies             the same, and `health` has alive=False

`_open` and `_waiting` change under the lock of `_changed` only; the thread alone writes rows.
Both sides set `dropped` without the lock: it changes once, and a late read costs a useless row.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from inference.engines.base import SLOW_STEP_SECONDS, EngineDeadError, EngineHealth

_log = logging.getLogger(__name__)

Tokens = Sequence[int]
RunBatch = Callable[[Sequence[Tokens]], NDArray[np.float32]]
"""Embeds inputs of nearly one length, in the batcher's thread: float32, inputs x dimensions."""

# A batch counts as stuck after this many times the time that follows from the measured one.
_STEP_MARGIN: Final = 20.0
# Positions that take as long as a batch takes besides its own: about as many with a small model on
# a CPU. A GPU has time for many more.
_BATCH_COST: Final = 24
# Inputs of one window.
_WINDOW: Final = 64


@dataclass(frozen=True, slots=True)
class Measured:
    """The duration of a batch of one input."""

    tokens: int
    seconds: float


class _Request:
    """A caller's inputs and their rows.

    Attributes:
        taken: Inputs that were taken into a window, in their order.
        made: Number of rows that are done, in any order.
        dropped: Whether the rows are no longer needed: cancelled, failed or complete.
    """

    def __init__(self, inputs: Sequence[Tokens]) -> None:
        self.inputs = inputs
        # Made with the first row, whose length is that of all.
        self.rows = np.empty((len(inputs), 0), np.float32)
        self.taken = 0
        self.made = 0
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[NDArray[np.float32]] = self.loop.create_future()
        self.dropped = False

    def finish(self, error: BaseException | None) -> None:
        """Wakes the caller with the rows or the error; may be called from any thread."""

        def wake() -> None:
            if self.done.done():
                return
            if error is None:
                self.done.set_result(self.rows)
            else:
                self.done.set_exception(error)

        self.dropped = True
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(wake)


class Batcher:
    """Runs a model in batches of at most `max_batch_tokens` positions, for many callers.

    Attributes:
        measured: The duration of one batch; None is 0 s. A batch that takes longer than
            SLOW_STEP_SECONDS and much longer than this, for its work, counts as stuck.
        batch_cost: What a batch costs besides its positions, in positions.
    """

    def __init__(self, run: RunBatch, max_batch_tokens: int) -> None:
        self._run = run
        self.max_batch_tokens = max_batch_tokens
        self._waiting: deque[_Request] = deque()
        self._open: set[_Request] = set()
        self._changed = threading.Condition()
        self._closing = False
        self.measured: Measured | None = None
        self.batch_cost = _BATCH_COST
        # Inputs of the batch under way, and tokens of the longest one.
        self._under_way = (0, 0)
        self._made = 0
        # The first input that the model has embedded; None before it.
        self._known_good: Tokens | None = None
        self._last_progress = time.monotonic()
        self._thread = threading.Thread(target=self._main, name="embedding", daemon=True)
        self._thread.start()

    async def submit(self, inputs: Sequence[Tokens]) -> NDArray[np.float32]:
        """Embeds a caller's inputs, at least one: float32, inputs x dimensions, in their order.

        Raises the model's exception, or EngineDeadError once the batcher's thread has ended.
        """
        request = _Request(inputs)
        with self._changed:
            if self._closing or not self._thread.is_alive():
                raise EngineDeadError
            if not self._open:
                self._last_progress = time.monotonic()
            self._open.add(request)
            self._waiting.append(request)
            self._changed.notify()
        try:
            return await request.done
        finally:
            request.dropped = True
            with self._changed:
                self._open.discard(request)

    def health(self) -> EngineHealth:
        with self._changed:
            running = len(self._open)
            age = time.monotonic() - self._last_progress if running else 0.0
            alive = self._thread.is_alive()
            return EngineHealth(alive, running, age, self._made, self._slow_step_seconds())

    def _slow_step_seconds(self) -> float:
        """How long the batch under way may take."""
        if self.measured is None:
            return SLOW_STEP_SECONDS
        inputs, longest = self._under_way
        # Attention is quadratic in the length of an input.
        ratio = longest / self.measured.tokens
        work = inputs * ratio * max(1.0, ratio)
        return max(SLOW_STEP_SECONDS, _STEP_MARGIN * self.measured.seconds * work)

    def close(self, timeout_seconds: float) -> None:
        """Ends the thread after its current batch; callers that wait get EngineDeadError."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_seconds)

    def _main(self) -> None:
        try:
            while window := self._take():
                for batch in self._split(window):
                    self._embed(batch)
        except Exception:
            _log.exception("the model fails for inputs that it has embedded before")
        finally:
            with self._changed:
                self._closing = True
                for request in self._open:
                    request.finish(EngineDeadError())

    def _take(self) -> list[tuple[_Request, int]]:
        """Waits for inputs and takes a window of them: requests and indexes; empty when closing."""
        window: list[tuple[_Request, int]] = []
        with self._changed:
            # Again if all that waited were dropped.
            while not window and not self._closing:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                while self._waiting and len(window) < _WINDOW and not self._closing:
                    request = self._waiting.popleft()
                    if request.dropped:
                        continue
                    window.append((request, request.taken))
                    request.taken += 1
                    if request.taken < len(request.inputs):
                        self._waiting.append(request)
        return window

    def _split(self, window: list[tuple[_Request, int]]) -> list[list[tuple[_Request, int]]]:
        window.sort(key=lambda item: -len(item[0].inputs[item[1]]))
        lengths = [len(request.inputs[index]) for request, index in window]
        # costs[n] is the least cost of the first n inputs, begins[n] the start of their last batch.
        costs, begins = [0], [0]
        for end in range(1, len(window) + 1):
            begin = end - 1
            best = costs[begin] + lengths[begin], begin
            for begin in range(end - 2, -1, -1):
                positions = lengths[begin] * (end - begin)
                if positions > self.max_batch_tokens:
                    break
                best = min(best, (costs[begin] + positions, begin))
            costs.append(best[0] + self.batch_cost)
            begins.append(best[1])
        batches: list[list[tuple[_Request, int]]] = []
        end = len(window)
        while end:
            batches.append(window[begins[end] : end])
            end = begins[end]
        return batches[::-1]

    def _embed(self, batch: list[tuple[_Request, int]]) -> None:
        batch = [item for item in batch if not item[0].dropped and not self._closing]
        if not batch:
            return
        try:
            rows = self._run_batch([request.inputs[index] for request, index in batch])
        except Exception as error:
            _log.exception("a batch of %d inputs failed", len(batch))
            self._progress(0)
            if len(batch) > 1:
                for item in batch:
                    self._embed([item])
            else:
                batch[0][0].finish(error)
                self._check_device()
            return
        if self._known_good is None:
            request, index = batch[-1]
            self._known_good = request.inputs[index]
        self._progress(len(batch))
        for (request, index), row in zip(batch, rows, strict=True):
            if not request.made:
                request.rows = np.empty((len(request.inputs), len(row)), np.float32)
            request.rows[index] = row
            request.made += 1
            if request.made == len(request.inputs) and not request.dropped:
                request.finish(None)

    def _run_batch(self, batch: Sequence[Tokens]) -> NDArray[np.float32]:
        self._under_way = len(batch), max(map(len, batch))
        return self._run(batch)

    def _check_device(self) -> None:
        """Raises what the model raises for an input that it has embedded before."""
        if self._known_good is not None:
            self._run_batch([self._known_good])
            self._progress(0)

    def _progress(self, rows: int) -> None:
        with self._changed:
            self._made += rows
            self._last_progress = time.monotonic()
