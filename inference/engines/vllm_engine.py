"""A text engine for any model that vLLM supports; its engine core is a separate process."""

from __future__ import annotations

import asyncio
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.envs import enable_envs_cache
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.sampling_params import SamplingParams
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM

from contract.refusals import unsupported_by_model
from inference.config import ModelConfig
from inference.engines import vllm_arguments, vllm_plugin, vllm_sampling
from inference.engines.answer_check import AnswerCheck, AnswerChecks, Promise
from inference.engines.base import (
    Emit,
    EngineDeadError,
    EngineHealth,
    Report,
    Terms,
    TextEngine,
    Tokens,
)
from inference.engines.rule_process import RuleProcesses
from inference.engines.vllm_constraints import promised_by
from inference.engines.vllm_errors import engine_errors
from inference.engines.vllm_input import Prompt, PromptRenderer
from inference.engines.vllm_logprobs import Vocabulary
from inference.engines.vllm_output import OutputPlan, OutputTranslator
from inference.engines.vllm_progress import StepClock
from inference.engines.vllm_steps import RunPrompt, bound_steps
from inference.engines.vllm_tokens import TokenCounter
from inference.errors import InferenceError, context_error
from inference.limits import answer_budget, requested_choices
from inference.truncation import kept_tokens
from isthmus.v1.chat_pb2 import ROLE_USER, ChatInput
from isthmus.v1.generate_pb2 import GenerateRequest
from isthmus.v1.models_pb2 import MODEL_KIND_TEXT, Model, TextCapabilities
from isthmus.v1.tokenize_pb2 import TokenizeRequest
from keys import ConfigError


@dataclass(frozen=True, slots=True)
class PreparedGeneration:
    """A tokenized request; `max_output_tokens` is the maximum of all choices together."""

    prompt: Prompt
    params: SamplingParams
    plan: OutputPlan
    terms: Terms
    max_output_tokens: int
    promise: Promise = field(default_factory=Promise)

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt.token_ids)

    @property
    def prompt_token_ids(self) -> list[int]:
        return self.prompt.token_ids


class VllmEngine(TextEngine):
    """A text engine on vLLM's AsyncLLM; priorities need `scheduling_policy` = "priority".

    Attributes:
        clock: What the steps of vLLM's engine core tell.
    """

    # The longest tokens of vocabularies are runs of a hundred spaces.
    characters_a_token = 512
    # Until vLLM's processes are killed with SIGKILL.
    shutdown_seconds = 16.0

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self.model = Model(kind=MODEL_KIND_TEXT)
        self.system_fingerprint = ""
        self._engine: AsyncLLM | None = None
        self._prompts: PromptRenderer | None = None
        self._vocabulary: Vocabulary | None = None
        self._rules = RuleProcesses()
        self._checks = AnswerChecks(self._rules.fits)
        self._defaults: dict[str, Any] = {}
        self._thread: ThreadPoolExecutor | None = None
        self.clock = StepClock()

    async def start(self, report: Report) -> None:
        """Loads the model and generates one token."""
        arguments = vllm_arguments.engine_arguments(self._config, self.tracing)
        if not vllm_plugin.is_installed():
            raise ConfigError("vLLM does not find Isthmus's plugins; install Isthmus again")
        # vLLM's processes end with the thread that started them (see vllm_parent_death), so this
        # thread lives as long as they do. The event loop stays free for health checks.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vllm")
        loop = asyncio.get_running_loop()
        report(
            f"starting vLLM and loading weights, {vllm_arguments.use_cpu(self._config, arguments)}"
        )
        # vLLM's defaults for the requests and tokens of a step depend on the usage context.
        context = UsageContext.OPENAI_API_SERVER
        self._engine = await loop.run_in_executor(self._thread, self._make, arguments, context)
        await self._connected(self._engine)
        report("reading the vocabulary")
        await loop.run_in_executor(self._thread, self._read_model, self._engine)
        self.model = await self._describe(self._engine)
        self.system_fingerprint = vllm_arguments.system_fingerprint(self._config)
        vocabulary = self._started()[2].serialized if self._config.allow_patterns else ""
        await self._rules.start(self._config.pattern_seconds, vocabulary)
        report("warming up")
        await self._warm_up(self._engine, report)
        enable_envs_cache()  # Otherwise vLLM reads environment variables in each step.

    def _make(self, arguments: AsyncEngineArgs, context: UsageContext) -> AsyncLLM:
        loggers = self.clock.stat_loggers(export=self.exports_metrics)
        return AsyncLLM.from_engine_args(arguments, usage_context=context, stat_loggers=loggers)

    async def _connected(self, engine: AsyncLLM) -> None:
        """Returns once the engine core takes requests: at once for one that vLLM has started."""

    async def prepare(self, request: GenerateRequest, terms: Terms) -> PreparedGeneration:
        """Validates, renders and tokenizes; grammars are checked in a worker thread."""
        engine, prompts, _ = self._started()
        promised = await promised_by(request, self._rules.schemas)
        await vllm_sampling.check_pattern(self._rules.patterns, request.constraint)
        rule = vllm_sampling.structured_outputs(request.constraint)
        output = request.output
        skip_special = output.skip_special_tokens or not output.HasField("skip_special_tokens")
        if request.HasField("chat"):
            prompt = await prompts.render_chat(request, rule, skip_special)
        else:
            kept = kept_tokens(request, terms.context_length)
            prompt = await prompts.render_text(request, rule, skip_special, kept)
        params = vllm_sampling.sampling_params(
            request,
            defaults=self._defaults,
            rule=prompt.rule,
            skip_special_tokens=prompt.skip_special_tokens,
        )
        await vllm_sampling.verify(engine, request, params)
        max_tokens = self._max_tokens(engine, request, len(prompt.token_ids), terms)
        params.max_tokens = max(max_tokens, 1)  # vLLM samples at least one token.
        params.min_tokens = min(params.min_tokens, params.max_tokens)
        plan = OutputPlan(
            request=request,
            prompt_tokens=len(prompt.token_ids),
            sampled=params.n,
            echo=prompt.echo,
            echo_pieces=prompt.echo_pieces,
            discard=max_tokens == 0,
            single_call=request.chat.HasField("parallel_tool_calls")
            and not request.chat.parallel_tool_calls,
            skip_special_tokens=prompt.skip_special_tokens,
            parsing=prompt.parsing,
        )
        return PreparedGeneration(
            prompt, params, plan, terms, max_tokens * requested_choices(request), promised
        )

    async def tokenize(self, request: TokenizeRequest) -> Tokens:
        """Renders and tokenizes as `prepare` does, and keeps nothing."""
        engine, prompts, vocabulary = self._started()
        counter = TokenCounter(prompts.inputs, engine.get_tokenizer(), vocabulary.size)
        return await counter.tokenize(request)

    async def generate(self, prepared: PreparedGeneration, emit: Emit) -> None:
        """Emits output as the model generates it; cancelling aborts the request in vLLM."""
        engine, _, vocabulary = self._started()
        plan, params = prepared.plan, prepared.params
        translator = OutputTranslator(plan, vocabulary)
        opening = translator.opening()
        answers = None
        if prepared.promise.binds and not plan.discard:
            answers = AnswerCheck(prepared.promise, plan.echo, self._checks)
        if plan.discard and params.prompt_logprobs is None:
            if opening is not None:
                emit(opening)
            emit(translator.closing())
            return
        steps = engine.generate(
            prepared.prompt.engine_input,
            params,
            uuid.uuid4().hex,
            priority=prepared.terms.priority,
            trace_headers=prepared.terms.trace_headers,
            **prepared.prompt.reasoning,
        )
        with (
            self.clock.call(engine, prepared.prompt_tokens) as call,
            engine_errors(engine, plan.request),
        ):
            async with aclosing(steps):
                async for step in steps:
                    call.output(sum(len(part.token_ids) for part in step.outputs))
                    if opening is not None:
                        # Not earlier: it would count as the first output (stall.py).
                        if answers is not None:
                            await answers.check(opening)
                        emit(opening)
                        opening = None
                    if (output := translator.feed(step)) is not None:
                        if answers is not None:
                            await answers.check(output)
                        emit(output)

    def _max_tokens(
        self, engine: AsyncLLM, request: GenerateRequest, prompt_tokens: int, terms: Terms
    ) -> int:
        """The most tokens of one choice; InferenceError if the context or priority forbids it."""
        max_tokens = answer_budget(request, prompt_tokens, terms.context_length)
        if terms.priority and engine.scheduler_config.policy != "priority":
            raise InferenceError.of(unsupported_by_model("priority"))
        limit = engine.model_config.max_model_len
        scores_prompt = request.output.HasField("prompt_logprobs")
        if not max_tokens and scores_prompt and prompt_tokens >= limit:
            # vLLM samples one token even to score a prompt, and the context has no room for it.
            raise context_error(request.HasField("chat"), limit, prompt_tokens, 1)
        return max_tokens

    def health(self) -> EngineHealth:
        engine = self._engine
        running = engine.get_num_unfinished_requests() if engine else 0
        age = time.monotonic() - self.clock.last_step if running else 0.0
        alive = engine is not None and not engine.errored
        state, made = self.clock.state(), self.clock.generated_tokens
        checks = self._checks.results
        return EngineHealth(alive, running, age, made, *state, answer_checks=checks)

    async def close(self) -> None:
        """Ends vLLM's processes, with SIGKILL if they take longer than 16 s."""
        engine, thread = self._engine, self._thread
        self._engine = self._prompts = self._vocabulary = self._thread = None
        await self._rules.close()
        if thread is None:
            return
        if engine is not None:
            if (handler := engine.output_handler) is not None:
                # Cancelled first: it would report the end of the processes as a failure.
                handler.cancel()
                await asyncio.wait({handler}, timeout=self.shutdown_seconds)
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(thread, engine.shutdown, self.shutdown_seconds)
        # Without an engine the thread may still be loading one, which cannot be interrupted.
        thread.shutdown(wait=engine is not None)

    @property
    def async_llm(self) -> AsyncLLM:
        """vLLM's engine; raises EngineDeadError before its start and after its end."""
        return self._started()[0]

    def _started(self) -> tuple[AsyncLLM, PromptRenderer, Vocabulary]:
        if self._engine is None or self._prompts is None or self._vocabulary is None:
            raise EngineDeadError("not started, or closed")
        return self._engine, self._prompts, self._vocabulary

    def _read_model(self, engine: AsyncLLM) -> None:
        config = self._config
        renderer = OnlineRenderer(
            engine.model_config,
            engine.renderer,
            request_logger=None,
            chat_template=None,
            chat_template_content_format="auto",
            enable_auto_tools=config.tool_parser is not None,
            tool_parser=config.tool_parser,
            reasoning_parser=config.reasoning_parser,
        )
        self._vocabulary = Vocabulary(engine.get_tokenizer(), engine.model_config.get_vocab_size())
        self._prompts = PromptRenderer(renderer, self._vocabulary)
        if config.generation_config == "auto":
            self._defaults = engine.model_config.get_diff_sampling_param()

    async def _describe(self, engine: AsyncLLM) -> Model:
        _, prompts, vocabulary = self._started()
        return Model(
            kind=MODEL_KIND_TEXT,
            created=vllm_arguments.model_created(self._config),
            context_length=engine.model_config.max_model_len,
            text=TextCapabilities(
                chat=await prompts.probe_chat(),
                tools=self._config.tool_parser is not None,
                reasoning=self._config.reasoning_parser is not None,
                suffix=prompts.fills_gaps,
                vocabulary_size=vocabulary.size,
                max_choices=self._config.max_choices,
                vision=engine.model_config.is_multimodal_model,
            ),
        )

    async def _warm_up(self, engine: AsyncLLM, report: Report) -> None:
        request = GenerateRequest(text="Hello")
        if self.model.text.chat:
            request = GenerateRequest(chat=ChatInput())
            request.chat.messages.add(role=ROLE_USER).parts.add(text="Hello")
        request.stopping.max_tokens = 1
        terms = Terms(engine.model_config.max_model_len)

        async def run(request: GenerateRequest) -> None:
            await self.generate(await self.prepare(request, terms), lambda _: None)

        await run(request)
        await self._bound_steps(engine, run, report)

    async def _bound_steps(self, engine: AsyncLLM, run: RunPrompt, report: Report) -> None:
        await bound_steps(engine, self._config, self.clock, run, report)
