"""The environment of an inference process."""

from __future__ import annotations

import pytest

from inference.config import ModelConfig
from launch.environment import inference_environment


@pytest.mark.parametrize("engine", ["sentence-transformers", "diffusers"])
def test_idle_threads_of_a_model_sleep_unless_the_user_says_otherwise(engine: str) -> None:
    model = ModelConfig(id="m", engine=engine, source="x")
    assert inference_environment(model, None, {})["OMP_WAIT_POLICY"] == "PASSIVE"
    chosen = {"OMP_WAIT_POLICY": "ACTIVE"}
    assert inference_environment(model, None, chosen)["OMP_WAIT_POLICY"] == "ACTIVE"
