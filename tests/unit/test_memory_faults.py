"""Which faults of memory end an engine."""

from __future__ import annotations

from inference.engines.base import EngineDeadError
from inference.engines.memory_faults import MemoryFaults


def test_second_fault_of_work_that_has_fitted_before_ends_the_engine() -> None:
    faults = MemoryFaults()
    faults.fitted(10)
    assert not isinstance(faults.error("less", 10), EngineDeadError)
    assert isinstance(faults.error("less", 3), EngineDeadError)


def test_request_that_is_too_large_ends_no_engine_however_often_it_is_repeated() -> None:
    faults = MemoryFaults()
    faults.fitted(10)
    assert not any(isinstance(faults.error("less", 40), EngineDeadError) for _ in range(5))
    assert not isinstance(faults.error("less", 10), EngineDeadError)
