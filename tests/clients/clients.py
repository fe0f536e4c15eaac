"""The clients, the environments that they run in, and the names of their tests."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.peers.virtualenv import python_of
from bench.processes import ROOT

HERE: Final = Path(__file__).parent
# Each is a virtual environment of its own: what the clients need contradicts one another.
ENVIRONMENTS: Final = ROOT / "build" / "clients"
FEATURES: Final = ("plain", "streamed", "tools", "structured", "embeddings", "images", "vision")
"""The first word of each test's name, and the columns of the table in docs/compatibility.md."""


@dataclass(frozen=True, slots=True)
class Client:
    """A client and the script with its tests.

    Attributes:
        title: Its name in the table.
        packages: The packages whose versions the table has.
        environment: A file of requirements/, and the name of the environment.
        script: A file of scripts/.
    """

    title: str
    packages: tuple[str, ...]
    environment: str
    script: str

    @property
    def source(self) -> Path:
        return HERE / "scripts" / self.script

    def tests(self) -> dict[str, bool]:
        """The names of the tests in the script, as words; true if one is expected to fail."""
        pattern = r"^((?:@.*\n)*)def test_(\w+)\("
        if self.source.suffix == ".js":
            pattern = r'^()(?:each|test)\("(.+?", .*)'
        found = re.findall(pattern, self.source.read_text(), re.MULTILINE)
        return {
            name.split('"')[0].replace("_", " "): "xfail" in marks or "NOT_YET" in name
            for marks, name in found
        }

    def row(self) -> tuple[str, ...]:
        """Its row of the table: the client, its packages, and each feature.

        A feature is "yes", "partly" if one of its tests is marked as failing, or a dash if it
        has no test.
        """
        cells = [self.title, self.versions()]
        for feature in FEATURES:
            failing = [fails for name, fails in self.tests().items() if name.split()[0] == feature]
            cells.append("\N{EN DASH}" if not failing else "partly" if any(failing) else "yes")
        return tuple(cells)

    def requirements(self) -> list[str]:
        """The pinned packages of the environment."""
        lines = (HERE / "requirements" / f"{self.environment}.txt").read_text().splitlines()
        return [line for line in lines if line and not line.startswith("#")]

    def versions(self) -> str:
        """The packages with their pinned versions."""
        if self.source.suffix == ".js":
            text = self.source.with_name("package.json").read_text()
            pins = json.loads(text)["dependencies"]
        else:
            pins = dict(line.split("==") for line in self.requirements())
        return ", ".join(f"`{package}` {pins[package]}" for package in self.packages)

    def python(self) -> Path:
        """The interpreter of the environment, which is first installed."""
        return python_of(self.environment, self.requirements(), ENVIRONMENTS)


CLIENTS: Final = (
    Client("LiteLLM", ("litellm",), "litellm", "litellm_sdk.py"),
    Client("LiteLLM's proxy", ("litellm",), "litellm", "litellm_proxy.py"),
    Client("Pydantic AI", ("pydantic-ai-slim",), "pydantic_ai", "pydantic_ai_agent.py"),
    Client("Instructor", ("instructor",), "instructor", "instructor_modes.py"),
    Client("OpenAI Agents SDK", ("openai-agents",), "openai_agents", "openai_agents_chat.py"),
    Client(
        "OpenAI Agents SDK, default",
        ("openai-agents",),
        "openai_agents",
        "openai_agents_responses.py",
    ),
    Client("Open Responses", ("openresponses-types",), "open_responses", "open_responses.py"),
    Client("Codex", ("@openai/codex",), "codex", "codex/codex.js"),
    Client("AI SDK", ("@ai-sdk/openai", "@ai-sdk/openai-compatible"), "ai_sdk", "ai_sdk.js"),
    Client("LangChain", ("langchain-openai",), "langchain", "langchain_chat.py"),
    Client("LlamaIndex", ("llama-index-llms-openai-like",), "llama_index", "llama_index_chat.py"),
    Client("Anthropic SDK", ("anthropic",), "anthropic", "anthropic_sdk.py"),
    Client("Claude Code", ("claude-agent-sdk",), "claude_code", "claude_code.py"),
    Client("LiteLLM's Messages", ("litellm",), "litellm", "litellm_messages.py"),
    Client("OpenAI 0.28", ("openai",), "openai_028", "openai_028.py"),
)
