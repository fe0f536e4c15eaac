"""Requests that schemathesis makes from an OpenAPI document.

Imported by the tests that send them when they run: schemathesis takes a second of CPU time to
import, and more to make the requests, which each test process would spend at its start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import load_all_checks
from schemathesis.generation.hypothesis.builder import (
    HypothesisTestConfig,
    HypothesisTestMode,
    create_test,
)
from schemathesis.specs.openapi.checks import positive_data_acceptance

ALL_KINDS = tuple(HypothesisTestMode)
RANDOM_ONLY = (HypothesisTestMode.FUZZING,)

_every_time_the_same = settings(
    max_examples=20,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def check_responses(
    document: Any,
    method: str,
    path: str,
    url: str,
    key: str,
    explained: Callable[[str], object],
    kinds: tuple[HypothesisTestMode, ...] = ALL_KINDS,
) -> None:
    """Sends valid and invalid requests of one operation, and checks responses by the document.

    Args:
        explained: Whether a request that fits its schema may get a 400 with this message.
    """
    load_all_checks()
    schema = schemathesis.openapi.from_dict(document)
    with requests.Session() as client:
        client.trust_env = False
        client.headers["authorization"] = f"Bearer {key}"

        @_every_time_the_same
        def check(case: Any) -> None:
            response = case.call(base_url=url, session=client)
            message = response.json()["error"]["message"] if response.status_code == 400 else ""
            case.validate_response(
                response, excluded_checks=[positive_data_acceptance] if explained(message) else None
            )

        config = HypothesisTestConfig(project=schema.config, modes=list(kinds))
        create_test(operation=schema[path][method], test_func=check, config=config)()
