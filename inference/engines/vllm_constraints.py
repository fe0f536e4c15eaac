"""The constraints of a request as vLLM's engine core gets them.

A schema is checked before it is rendered into the grammar: of the request's own constraint, and of
each tool whose arguments are promised to fit it, because it is strict or its call is forced.
vLLM's tool parser writes a structural tag for tool calls, or a schema of all calls; both become a
grammar of llguidance. Tags of models whose arguments are no JSON stay with xgrammar, which ignores
many keywords, so only plain schemas are accepted for them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Final

from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.structured_output.backend_guidance import GuidanceBackend

from contract.refusals import invalid_function, shown, unsupported_value
from inference.engines.answer_check import Promise
from inference.engines.json_schema.compiler import compile_schema
from inference.engines.json_schema.errors import SchemaError
from inference.engines.json_schema.grammars import embedded
from inference.engines.json_schema.plain import free_fault, plain_fault
from inference.engines.json_schema.spelling import without_nulls
from inference.engines.rule_process import RuleProcess
from inference.engines.structural_tags import (
    NoRuleError,
    bound_white_space,
    calls_grammar,
    free_texts,
    lark_grammar,
    replaced,
    special_tokens,
    unforced_grammar,
)
from inference.engines.vllm_errors import invalid
from inference.engines.vllm_sampling import pattern_rule
from inference.errors import InferenceError
from isthmus.v1 import chat_pb2
from isthmus.v1.generate_pb2 import GenerateRequest

# Modes of a tool choice with which the output is a tool call and nothing else.
_REQUIRED: Final = chat_pb2.ToolChoice.MODE_REQUIRED
FORCED: Final = (_REQUIRED, chat_pb2.ToolChoice.MODE_FUNCTION)
_SCHEMA: Final = "response_format.json_schema.schema"


async def promised_by(request: GenerateRequest, rules: RuleProcess) -> Promise:
    """Checks the request's schemas and returns the rules that its answers must obey.

    The process of `rules` compiles each schema first, because some schemas end the process that
    compiles them.

    Raises:
        InferenceError: A schema cannot be enforced, or is too costly to compile.
    """
    if not request.HasField("constraint") and not request.chat.tools:
        return Promise()
    await _check_cost(request, rules)
    return await asyncio.to_thread(promise, request)


async def _check_cost(request: GenerateRequest, rules: RuleProcess) -> None:
    constraint, chat = request.constraint, request.chat
    costly = SchemaError((), "takes too much time or memory to compile")
    if constraint.HasField("json_schema") and not await rules.ends(
        "schema", constraint.json_schema
    ):
        raise _refused_format(costly)
    for index, tool in offered(chat):
        if is_promised(tool, chat.tool_choice.mode):
            text = parameters_text(tool, index)
            if not await rules.ends("schema", text):
                raise _refused_tool(tool, index, costly)


def promise(request: GenerateRequest) -> Promise:
    """Checks the request's schemas; raises InferenceError for one that cannot be enforced."""
    constraint = request.constraint
    rule = constraint.WhichOneof("rule")
    rule = None if rule == "json_object" and not constraint.json_object else rule
    # With tools a pattern or a grammar may describe calls, which are no text.
    validator: Any = None if request.chat.tools else pattern_rule(constraint)
    if rule == "json_schema":
        try:
            validator = compile_schema(constraint.json_schema).validator
        except SchemaError as error:
            raise _refused_format(error) from error
    chat = request.chat
    _check_unique(chat)
    functions = {tool.name: _function(tool, index, chat) for index, tool in offered(chat)}
    return Promise(
        rule=rule,
        validator=validator,
        choices=frozenset(constraint.choices.values),
        functions=functions,
        forced=bool(functions) and chat.tool_choice.mode in FORCED,
    )


def _check_unique(chat: chat_pb2.ChatInput) -> None:
    """Refuses two tools of one name if the arguments of a call must fit the schema of one."""
    known: dict[str, bool] = {}
    for index, tool in offered(chat):
        promised = is_promised(tool, chat.tool_choice.mode)
        if known.get(tool.name, False) or (promised and tool.name in known):
            param = f"tools[{index}].function.name"
            raise invalid(param, f"'{tool.name}' is the name of another tool too.")
        known[tool.name] = promised


def offered(chat: chat_pb2.ChatInput) -> Iterator[tuple[int, chat_pb2.Tool]]:
    """The tools that may be called, with their indexes."""
    choice = chat.tool_choice
    if choice.mode == chat_pb2.ToolChoice.MODE_NONE:
        return
    allowed = set(choice.allowed_functions)
    if choice.mode == chat_pb2.ToolChoice.MODE_FUNCTION:
        allowed = {choice.function_name}
    for index, tool in enumerate(chat.tools):
        if not allowed or tool.name in allowed:
            yield index, tool


def is_promised(tool: chat_pb2.Tool, mode: int) -> bool:
    """Whether the arguments of a call of this tool must fit its schema."""
    return tool.strict if tool.HasField("strict") else mode in FORCED


def _function(tool: chat_pb2.Tool, index: int, chat: chat_pb2.ChatInput) -> Any:
    """The validator of a tool's arguments; None if they are free."""
    text = parameters_text(tool, index)
    try:
        return compile_schema(text).validator if is_promised(tool, chat.tool_choice.mode) else None
    except SchemaError as error:
        raise _refused_tool(tool, index, error) from error


def _refused_tool(tool: chat_pb2.Tool, index: int, error: SchemaError) -> InferenceError:
    param = f"tools[{index}].function.parameters"
    place = shown(f"{param}{error.place}", 512)
    return InferenceError.of(invalid_function(tool.name, f"'{place}' {error.why}.", param))


def parameters_text(tool: chat_pb2.Tool, index: int) -> str:
    """The schema of the arguments, as vLLM gets it and writes it into its grammar."""
    parameters: Any = {"properties": {}}
    try:
        if tool.HasField("parameters_json"):
            parameters = without_nulls(json.loads(tool.parameters_json))
        if "type" not in parameters:
            parameters["type"] = "object"
    except (ValueError, TypeError, RecursionError) as error:
        param = f"tools[{index}].function.parameters"
        fault = "it must be a JSON object."
        raise InferenceError.of(invalid_function(tool.name, fault, param)) from error
    return json.dumps(parameters)


def _refused_format(error: SchemaError) -> InferenceError:
    place = shown(f"{_SCHEMA}{error.place}", 512)
    return InferenceError(
        "invalid_value",
        f"Invalid schema for response_format: '{place}' {error.why}.",
        param="response_format",
    )


class RuleTranslator:
    """Translates vLLM's rules for the engine core; `guided` is whether llguidance takes part."""

    def __init__(self, tokenizer: Any) -> None:
        self.guided = GuidanceBackend.is_tokenizer_supported(tokenizer)
        self._special = special_tokens(tokenizer) if self.guided else {}

    def translate(
        self, rule: StructuredOutputsParams | None, request: GenerateRequest
    ) -> StructuredOutputsParams | None:
        """The rule that the engine core enforces; raises InferenceError if it cannot.

        Args:
            rule: From the request, or from the tool parser.
            request: Whose schemas have been checked.
        """
        _check_strict(rule, request)
        if rule is None:
            return None
        _check_beside(request)
        if rule.json is not None:
            return self._json(rule.json, request)
        if rule.structural_tag is not None:
            return self._tag(json.loads(rule.structural_tag), request)
        return rule

    def _json(self, schema: Any, request: GenerateRequest) -> StructuredOutputsParams:
        schema = _without_free(schema, request)
        text = schema if isinstance(schema, str) else json.dumps(schema)
        if not self.guided:
            self._check_plain(request)
            return StructuredOutputsParams(json=json.dumps(without_nulls(json.loads(text))))
        if isinstance(schema, dict) and request.chat.tool_choice.mode == _REQUIRED:
            # The parser's schema of all calls. Inside it a tool's "#" would be another schema.
            several = schema.get("maxItems") != 1
            rules = {
                tool.name: _embedded_schema(
                    is_promised(tool, _REQUIRED) and json.loads(parameters_text(tool, i))
                )
                for i, tool in offered(request.chat)
            }
            forces = not any(map(self._may_be_special, rules.values()))
            return StructuredOutputsParams(grammar=calls_grammar(rules, several, forces=forces))
        try:
            compiled = compile_schema(text).grammar_schema
        except SchemaError as error:
            # The request's own schemas have passed, so this one is the parser's.
            raise invalid("tools", "their schemas cannot be enforced together.") from error
        if self._may_be_special(compiled):
            return StructuredOutputsParams(grammar=unforced_grammar(embedded(compiled)))
        return StructuredOutputsParams(json=compiled)

    def _may_be_special(self, schema: str) -> bool:
        """Whether a rewritten schema may demand the text of a special token, in any spelling."""
        return bool(self._special) and (
            '"pattern' in schema or any(mark in schema for mark in self._special)
        )

    def _tag(self, tag: dict[str, Any], request: GenerateRequest) -> StructuredOutputsParams:
        if self.guided:
            try:
                return StructuredOutputsParams(
                    grammar=lark_grammar(tag, self._special, _embedded_schema)
                )
            except NoRuleError:
                pass
        self._check_plain(request, tag)
        bound_white_space(tag)
        return StructuredOutputsParams(structural_tag=json.dumps(tag))

    def _check_plain(self, request: GenerateRequest, tag: Any = None) -> None:
        """Refuses schemas of which xgrammar, or the form of calls `tag`, may not enforce all."""
        constraint, chat = request.constraint, request.chat
        if constraint.HasField("json_schema"):
            fault = plain_fault(without_nulls(json.loads(constraint.json_schema)))
            if fault is not None:
                raise _refused_format(fault)
        for index, tool in offered(chat):
            if is_promised(tool, chat.tool_choice.mode):
                schema = json.loads(parameters_text(tool, index))
                fault = plain_fault(schema) or free_fault(schema, free_texts(tag, tool.name))
                if fault is not None:
                    raise _refused_tool(tool, index, fault)


def _check_beside(request: GenerateRequest) -> None:
    """Refuses parameters that let text follow a grammar's end, or leave it no next token."""
    mode = request.chat.tool_choice.mode
    called = any(is_promised(tool, mode) for _, tool in offered(request.chat))
    # Grammars of some models only describe the form of calls.
    if not (request.HasField("constraint") or mode in FORCED or called):
        return
    output = request.output
    shows_end = output.HasField("skip_special_tokens") and not output.skip_special_tokens
    for param, is_sent in (
        ("ignore_eos", request.stopping.ignore_eos),
        ("allowed_token_ids", bool(request.sampling.allowed_token_ids)),
        ("bad_words", bool(request.sampling.bad_words)),
        # The end of the answer would be a part of its text.
        ("include_stop_str_in_output", request.stopping.include_stop_string and shows_end),
    ):
        if is_sent:
            raise invalid(
                param,
                "it cannot be combined with 'response_format' or another constraint of the "
                "output, nor with tools that are strict or forced.",
            )


def _check_strict(rule: StructuredOutputsParams | None, request: GenerateRequest) -> None:
    """Refuses strict tools and forced calls if the model's parser has written no rule for them."""
    mode = request.chat.tool_choice.mode
    if mode in FORCED and rule is None:
        why = "the calls of this model cannot be forced."
        raise InferenceError.of(unsupported_value("tool_choice", why))
    written = rule is not None and (
        rule.structural_tag is not None
        or (rule.grammar is not None and not request.constraint.HasField("grammar"))
    )
    if mode in FORCED or written:
        return
    for index, tool in offered(request.chat):
        if is_promised(tool, mode):
            raise InferenceError.of(
                unsupported_value(
                    f"tools[{index}].function.strict",
                    "the tool calls of this model cannot be strict unless they are forced.",
                )
            )


def _without_free(schema: Any, request: GenerateRequest) -> Any:
    """The parser's schema of forced calls, with any object for arguments that are free."""
    mode = request.chat.tool_choice.mode
    tools = offered(request.chat) if mode in FORCED else ()
    free: list[Any] = [
        json.loads(parameters_text(tool, i)) for i, tool in tools if not is_promised(tool, mode)
    ]
    # For several tools vLLM collects the definitions elsewhere.
    free += [{key: part[key] for key in part if key != "$defs"} for part in free]
    return replaced(schema, free, {"type": "object"})


def _embedded_schema(schema: Any) -> str:
    if not isinstance(schema, dict):
        schema = {"type": "object"}  # any arguments
    try:
        return embedded(compile_schema(json.dumps(schema)).grammar_schema)
    except SchemaError as error:
        raise invalid("tools", "their schemas cannot be enforced together.") from error
