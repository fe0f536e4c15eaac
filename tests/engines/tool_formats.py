"""The formats in which models write tool calls, by the name of vLLM's parser.

Each format writes given calls as a model of that family would, so that a test knows what the
parser must find. FAULTS has what the parsers do wrong, and docs/tool-parsers.md has the `table`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# Stands in the marks of DeepSeek and Step.
_BAR = "\N{FULLWIDTH VERTICAL LINE}"

Arguments = Mapping[str, Any]
Call = tuple[str, Arguments]


@dataclass(frozen=True)
class Format:
    """How a model family writes.

    Attributes:
        calls: Writes calls.
        text: Writes text before calls, or alone.
        tokens: Marks that are single tokens.
        close: A mark that ends a call or an argument, or a part of it.
        between: What stands between text and calls.
        most: The most calls of one answer.
        tokenizer: More attributes of the tokenizer.
        architecture: vLLM's name of the model, if the parser needs it.
    """

    calls: Callable[[list[Call]], str]
    text: Callable[[str], str] = str
    tokens: tuple[str, ...] = ()
    close: str = ""
    between: str = ""
    most: int = 2
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    architecture: str = ""

    def answer(self, text: str, calls: list[Call]) -> str:
        written = self.text(text) if text else ""
        if not calls:
            return written
        return written + (self.between if text else "") + self.calls(calls)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _raw(value: Any) -> str:
    """A string as it is, anything else as JSON."""
    return value if isinstance(value, str) else _json(value)


def _object(call: Call, name: str = "name", arguments: str = "arguments") -> str:
    return _json({name: call[0], arguments: dict(call[1])})


def _each(before: str, body: Callable[[Call], str], after: str, between: str = "\n") -> Any:
    """Writes each call between two marks."""
    return lambda calls: between.join(f"{before}{body(call)}{after}" for call in calls)


def _array(before: str, after: str, **names: str) -> Any:
    """Writes all calls as one JSON array between two marks."""
    return lambda calls: f"{before}[{', '.join(_object(call, **names) for call in calls)}]{after}"


def _arguments(before: str, middle: str, after: str, value: Any = _raw) -> Callable[[Call], str]:
    """Writes each argument as `before` name `middle` value `after`."""
    return lambda call: "".join(
        f"{before}{key}{middle}{value(argument)}{after}" for key, argument in call[1].items()
    )


def _named(
    before: str, after: str, arguments: Callable[[Call], str], end: str = ""
) -> Callable[[Call], str]:
    return lambda call: f"{before}{call[0]}{after}{arguments(call)}{end}"


def _python(call: Call, value: Callable[[Any], str] = repr) -> str:
    return f"{call[0]}({', '.join(f'{key}={value(item)}' for key, item in call[1].items())})"


def _pythonic(before: str = "", after: str = "") -> Any:
    return lambda calls: f"{before}[{', '.join(map(_python, calls))}]{after}"


def _gemma(value: Any) -> str:
    if isinstance(value, str):
        return f'<|"|>{value}<|"|>'
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_gemma(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_gemma, value)) + "]"
    return _json(value)


def _minimax_m3(name: str, value: Any) -> str:
    mark = "]<]minimax[>["
    if isinstance(value, dict):
        inner = "".join(_minimax_m3(key, item) for key, item in value.items())
    elif isinstance(value, list):
        inner = "".join(_minimax_m3("item", item) for item in value)
    else:
        inner = _raw(value)
    return f"{mark}<{name}>{inner}{mark}</{name}>"


def _kimi_k3(calls: list[Call]) -> str:
    types = {str: "string", bool: "boolean", int: "number", dict: "object", list: "array"}
    written = ""
    for index, (name, arguments) in enumerate(calls, 1):
        written += f'<|open|>call tool="{name}" index="{index}"<|sep|>'
        for key, value in arguments.items():
            kind = types.get(type(value), "null")
            written += f'<|open|>argument key="{key}" type="{kind}"<|sep|>{_raw(value)}'
            written += "<|close|>argument<|sep|>"
        written += "<|close|>call<|sep|>"
    return f"<|open|>tools<|sep|>{written}<|close|>tools<|sep|>"


def _kimi_k2(calls: list[Call]) -> str:
    written = "".join(
        f"<|tool_call_begin|>functions.{name}:{index}"
        f"<|tool_call_argument_begin|>{_json(arguments)}<|tool_call_end|>"
        for index, (name, arguments) in enumerate(calls)
    )
    return f"<|tool_calls_section_begin|>{written}<|tool_calls_section_end|>"


def _dsml(outer: str, space: str = "") -> Format:
    mark = f"{_BAR}DSML{_BAR}"

    def argument(item: tuple[str, Any]) -> str:
        key, value = item
        is_text = "true" if isinstance(value, str) else "false"
        return (
            f'<{mark}{space}parameter name="{key}" string="{is_text}">{_raw(value)}'
            f"</{mark}{space}parameter>\n"
        )

    def invoke(call: Call) -> str:
        return (
            f'<{mark}{space}invoke name="{call[0]}">\n'
            f"{''.join(map(argument, call[1].items()))}</{mark}{space}invoke>\n"
        )

    return Format(
        lambda calls: f"\n\n<{mark}{outer}>\n{''.join(map(invoke, calls))}</{mark}{outer}>",
        tokens=(mark,),
        close=f"</{mark}{space}parameter>",
    )


def _hy(separator: str) -> Format:
    arguments = _arguments("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n")
    if not separator:
        arguments = _arguments("<arg_key>", "</arg_key><arg_value>", "</arg_value>")
    write = _each("<tool_call>", _named("", separator, arguments), "</tool_call>")
    tags = ("tool_calls", "tool_call", "arg_key", "arg_value")
    return Format(
        lambda calls: f"<tool_calls>{write(calls)}</tool_calls>",
        tokens=(
            *(mark for tag in tags for mark in (f"<{tag}>", f"</{tag}>")),
            *(("<tool_sep>",) if separator else ()),
        ),
        close="</arg_value>",
    )


def _xml(start: str, end: str) -> Format:
    """The format of Qwen3-Coder: one tag per function and per parameter."""
    body = _named(
        "\n<function=",
        ">\n",
        _arguments("<parameter=", ">\n", "\n</parameter>\n"),
        "</function>\n",
    )
    return Format(_each(start, body, end), tokens=(start, end), close="</parameter>")


def _tagged(start: str, end: str) -> Format:
    """The format of Hermes: a JSON object between tags."""
    return Format(_each(f"{start}\n", _object, f"\n{end}"), tokens=(start, end), close=end)


_GLM = Format(
    _each(
        "<tool_call>",
        _named("", "\n", _arguments("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n")),
        "</tool_call>",
    ),
    tokens=(
        "<tool_call>",
        "</tool_call>",
        "<arg_key>",
        "</arg_key>",
        "<arg_value>",
        "</arg_value>",
        "<think>",
        "</think>",
    ),
    close="</arg_value>",
)
_DEEPSEEK = tuple(
    f"<{_BAR}tool▁{name}{_BAR}>"
    for name in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep")
)
_STEP3 = tuple(
    f"<{_BAR}tool_{name}{_BAR}>"
    for name in ("calls_begin", "calls_end", "call_begin", "call_end", "sep")
)
_LLAMA = Format(
    _each("", lambda call: _object(call, arguments="parameters"), "", "; "),
    tokens=("<|python_tag|>",),
)
_PLAMO = {
    name: f"<|plamo:{name}:plamo|>"
    for side in ("begin", "end")
    for name in (f"{side}_tool_{part}" for part in ("requests", "request", "name", "arguments"))
}
_INKLING = tuple(
    f"<|{name}|>"
    for name in (
        "message_model",
        "content_text",
        "content_thinking",
        "content_invoke_tool_json",
        "content_invoke_tool_text",
        "content_tool_error",
        "content_model_end_sampling",
        "end_message",
    )
)
_GEMMA4 = Format(
    lambda calls: "".join(
        f"<|tool_call>call:{name}{_gemma(dict(arguments))}<tool_call|>" for name, arguments in calls
    ),
    tokens=("<|tool_call>", "<tool_call|>", '<|"|>', "<|channel>", "<channel|>", "<turn|>"),
    close="<tool_call|>",
)
# The template of Gemma 4, in the form that a model's tokenizer_config.json carries it.
_RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": ["<|im_start|>assistant\n"],
    "fields": {
        "content": {"close": ["<turn|>", "<|im_end|>"], "content": "text"},
        "tool_calls": {
            "open_pattern": r"<\|tool_call>call:(?P<name>\w+)",
            "close": "<tool_call|>",
            "content": "json",
            "content_args": {"string_delims": [['<|"|>', '<|"|>']], "unquoted_keys": True},
            "repeats": True,
            "transform": {
                "type": "function",
                "function": {"name": "{name}", "arguments": "{content}"},
            },
        },
    },
}


def _plamo3(calls: list[Call]) -> str:
    mark = _PLAMO
    written = "".join(
        f"{mark['begin_tool_request']}{mark['begin_tool_name']}{name}{mark['end_tool_name']}"
        f"{mark['begin_tool_arguments']}<|plamo:constrain|>json<|plamo:msg|>{_json(arguments)}"
        f"{mark['end_tool_arguments']}{mark['end_tool_request']}"
        for name, arguments in calls
    )
    return f"{mark['begin_tool_requests']}{written}{mark['end_tool_requests']}"


def _muse(calls: list[Call]) -> str:
    return "<|eom|>".join(
        f"<|start|>assistant to={name}<|message|>"
        f'<atem:function_calls>\n<atem:invoke name="{name}">\n'
        + _arguments('<atem:parameter name="', '">', "</atem:parameter>\n")((name, arguments))
        + "</atem:invoke>\n</atem:function_calls>"
        for name, arguments in calls
    )


def _cohere(tag: str) -> Format:
    def write(calls: list[Call]) -> str:
        items = [
            {"tool_call_id": str(index), "tool_name": name, "parameters": arguments}
            for index, (name, arguments) in enumerate(calls)
        ]
        return f"<|START_ACTION|>{_json(items)}<|END_ACTION|>"

    names = ("THINKING", "ACTION", tag)
    return Format(
        write,
        lambda text: f"<|START_{tag}|>{text}<|END_{tag}|>",
        tuple(f"<|{side}_{name}|>" for name in names for side in ("START", "END")),
        "<|END_ACTION|>",
        architecture="Cohere2ForCausalLM" if tag == "RESPONSE" else "Cohere2MoeForCausalLM",
    )


_HERMES = _tagged("<tool_call>", "</tool_call>")
_QWEN = _xml("<tool_call>", "</tool_call>")

FORMATS: dict[str, Format] = {
    "apertus": Format(
        lambda calls: (
            "<|tools_prefix|>"
            f"[{', '.join(_json({name: arguments}) for name, arguments in calls)}]"
            "<|tools_suffix|>"
        ),
        tokens=("<|tools_prefix|>", "<|tools_suffix|>"),
        close="<|tools_suffix|>",
    ),
    "cohere_command3": _cohere("RESPONSE"),
    "cohere_command4": _cohere("TEXT"),
    "deepseek_v3": Format(
        lambda calls: (
            _DEEPSEEK[0]
            + _each(
                f"{_DEEPSEEK[2]}function{_DEEPSEEK[4]}",
                lambda call: f"{call[0]}\n```json\n{_json(call[1])}\n```",
                _DEEPSEEK[3],
            )(calls)
            + _DEEPSEEK[1]
        ),
        tokens=_DEEPSEEK,
        close=_DEEPSEEK[3],
    ),
    "deepseek_v31": Format(
        lambda calls: (
            _DEEPSEEK[0]
            + _each(
                _DEEPSEEK[2],
                lambda call: f"{call[0]}{_DEEPSEEK[4]}{_json(call[1])}",
                _DEEPSEEK[3],
                "",
            )(calls)
            + _DEEPSEEK[1]
        ),
        tokens=_DEEPSEEK,
        close=_DEEPSEEK[3],
    ),
    "deepseek_v32": _dsml("function_calls"),
    "deepseek_v4": _dsml("tool_calls"),
    "deepseek_v41": _dsml(" calls", " "),
    "dots": Format(
        lambda calls: (
            "<dots_function_call>\n"
            + _each(
                "",
                _named(
                    '<invoke name="',
                    '">\n',
                    _arguments('<parameter name="', '">', "</parameter>\n"),
                    "</invoke>",
                ),
                "\n",
                "",
            )(calls)
            + "</dots_function_call>"
        ),
        tokens=("<dots_function_call>", "</dots_function_call>"),
        close="</parameter>",
    ),
    "ernie45": Format(
        _each("\n\n<tool_call>\n", _object, "\n</tool_call>\n", ""),
        tokens=("<tool_call>", "</tool_call>", "<response>", "</response>", "<think>", "</think>"),
        text=lambda text: f"<response>\n{text}\n</response>",
        close="</tool_call>",
    ),
    "functiongemma": Format(
        _each(
            "<start_function_call>call:",
            lambda call: (
                f"{call[0]}{{"
                + ",".join(f"{key}:<escape>{_raw(value)}<escape>" for key, value in call[1].items())
                + "}"
            ),
            "<end_function_call>",
            "",
        ),
        tokens=("<start_function_call>", "<end_function_call>", "<escape>"),
        close="<end_function_call>",
    ),
    "gemma4": _GEMMA4,
    "gigachat3": Format(
        lambda calls: f"<|message_sep|>\n\nfunction call<|role_sep|>\n{_object(calls[0])}",
        tokens=("<|message_sep|>", "<|role_sep|>"),
        close="<|message_sep|>",
        most=1,
    ),
    "glm45": _GLM,
    "glm47": _GLM,
    "granite": Format(
        _array("<|tool_call|>", ""), tokens=("<|tool_call|>",), close="<|tool_call|>"
    ),
    "granite-20b-fc": Format(_each("<function_call> ", _object, "", "\n"), close="<function_call>"),
    "granite4": _HERMES,
    "hermes": _HERMES,
    "hf": Format(
        _GEMMA4.calls,
        tokens=_GEMMA4.tokens,
        close=_GEMMA4.close,
        tokenizer={"response_template": _RESPONSE_TEMPLATE},
    ),
    "hunyuan_a13b": Format(_array("<tool_calls>", "</tool_calls>"), close="</tool_calls>"),
    "hy_v3": _hy("<tool_sep>\n"),
    "hy_v4": _hy(""),
    "inkling": Format(
        _each(
            "<|message_model|><|content_invoke_tool_json|>",
            lambda call: _object(call, arguments="args"),
            "<|end_message|>",
            "",
        ),
        lambda text: f"<|message_model|><|content_text|>{text}<|end_message|>",
        tokens=_INKLING,
        close="<|end_message|>",
    ),
    "internlm": Format(
        _each(
            "<|action_start|><|plugin|>\n",
            lambda call: _object(call, arguments="parameters"),
            "<|action_end|>",
        ),
        tokens=("<|action_start|>", "<|plugin|>", "<|action_end|>"),
        close="<|action_end|>",
        most=1,
    ),
    "jamba": Format(
        lambda calls: (
            "<tool_calls>[\n    " + ",\n    ".join(map(_object, calls)) + "\n]</tool_calls>"
        ),
        tokens=("<tool_calls>", "</tool_calls>"),
        close="</tool_calls>",
    ),
    "k2_horizon": Format(
        lambda calls: (
            "<ifm|tool_calls>\n"
            + _each(
                "<ifm|tool_call>",
                _named(
                    "",
                    "\n",
                    _arguments(
                        "<ifm|arg_key>", "</ifm|arg_key>\n<ifm|arg_value>", "</ifm|arg_value>\n"
                    ),
                ),
                "</ifm|tool_call>",
            )(calls)
            + "\n</ifm|tool_calls>"
        ),
        close="</ifm|arg_value>",
    ),
    "kimi_k2": Format(
        _kimi_k2,
        tokens=tuple(
            f"<|tool_{name}|>"
            for name in (
                "calls_section_begin",
                "calls_section_end",
                "call_begin",
                "call_argument_begin",
                "call_end",
            )
        ),
        close="<|tool_call_end|>",
    ),
    "kimi_k3": Format(
        _kimi_k3,
        lambda text: f"<|open|>response<|sep|>{text}<|close|>response<|sep|>",
        tokens=("<|open|>", "<|close|>", "<|sep|>"),
        close="<|close|>",
    ),
    "lfm2": Format(
        _pythonic("<|tool_call_start|>", "<|tool_call_end|>"),
        tokens=("<|tool_call_start|>", "<|tool_call_end|>"),
        close="<|tool_call_end|>",
    ),
    "ling3": _GLM,
    "llama3_json": _LLAMA,
    "llama4_json": _LLAMA,
    "llama4_pythonic": Format(_pythonic(), close="]"),
    "longcat": _tagged("<longcat_tool_call>", "</longcat_tool_call>"),
    "mimo": Format(
        _each(
            "<tool_call>\n",
            _named(
                "<function=",
                ">\n",
                _arguments("<parameter=", ">", "</parameter>\n"),
                "</function>\n",
            ),
            "</tool_call>",
        ),
        tokens=_QWEN.tokens,
        close=_QWEN.close,
    ),
    "minicpm5": Format(
        _each(
            '<function name="',
            _named("", '">', _arguments('<param name="', '">', "</param>")),
            "</function>",
        ),
        close="</param>",
    ),
    "minimax_m2": Format(
        lambda calls: (
            "<minimax:tool_call>\n"
            + _each(
                "",
                _named(
                    '<invoke name="',
                    '">\n',
                    _arguments('<parameter name="', '">', "</parameter>\n"),
                    "</invoke>",
                ),
                "\n",
                "",
            )(calls)
            + "</minimax:tool_call>"
        ),
        tokens=("<minimax:tool_call>", "</minimax:tool_call>", "<think>", "</think>"),
        close="</parameter>",
    ),
    "minimax_m3": Format(
        lambda calls: (
            "]<]minimax[>[<tool_call>\n"
            + "".join(
                f']<]minimax[>[<invoke name="{name}">'
                + "".join(_minimax_m3(key, value) for key, value in arguments.items())
                + "]<]minimax[>[</invoke>\n"
                for name, arguments in calls
            )
            + "]<]minimax[>[</tool_call>"
        ),
        tokens=("]<]minimax[>[", "<tool_call>", "</tool_call>"),
        close="]<]minimax[>[",
    ),
    "mistral": Format(
        _each("[TOOL_CALLS]", lambda call: f"{call[0]}[ARGS]{_json(call[1])}", "", ""),
        tokens=("[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]"),
        close="[TOOL_CALLS]",
    ),
    "muse_glimmer": Format(
        _muse,
        lambda text: f"<|start|>assistant to=user<|message|>{text}<|eom|>",
        tokens=("<|start|>", "<|message|>", "<|eom|>", "<|eot|>"),
        close="</atem:parameter>",
    ),
    "olmo3": Format(
        lambda calls: (
            "<function_calls>"
            + "\n".join(_python(call, _json) for call in calls)
            + "</function_calls>"
        ),
        close="</function_calls>",
    ),
    "openai": Format(
        _each(
            "<|channel|>commentary to=functions.",
            lambda call: f"{call[0]} <|constrain|>json<|message|>{_json(call[1])}",
            "<|call|>",
            "<|start|>assistant",
        ),
        lambda text: f"<|channel|>final<|message|>{text}",
        between="<|end|><|start|>assistant",
        close="<|call|>",
    ),
    "phi4_mini_json": Format(_array("functools", ""), close="]"),
    "plamo3": Format(_plamo3, close=_PLAMO["end_tool_arguments"]),
    "poolside_v1": _GLM,
    "pythonic": Format(_pythonic(), close="]"),
    "qwen3_coder": _QWEN,
    "qwen3_json": _HERMES,
    "qwen3_xml": _QWEN,
    "seed_oss": _xml("<seed:tool_call>", "</seed:tool_call>"),
    "step3": Format(
        lambda calls: (
            _STEP3[0]
            + _each(
                f"{_STEP3[2]}function{_STEP3[4]}",
                _named(
                    '<steptml:invoke name="',
                    '">',
                    _arguments('<steptml:parameter name="', '">', "</steptml:parameter>"),
                    "</steptml:invoke>",
                ),
                _STEP3[3],
                "",
            )(calls)
            + _STEP3[1]
        ),
        tokens=_STEP3,
        close="</steptml:parameter>",
    ),
    "step3p5": _QWEN,
    "xlam": Format(_array("", ""), close="]"),
}

# Stands in a case for the mark with which the format ends a call or an argument.
MARK = "MARK"


@dataclass(frozen=True)
class Case:
    """An answer: its text, and calls after it."""

    text: str
    calls: list[Call]

    def expected(self, call: Call, form: Format) -> Any:
        """The arguments of a call, with the format's mark."""
        close = json.dumps(form.close)[1:-1]
        return json.loads(json.dumps(call[1]).replace(MARK, close))


def _weather(**arguments: Any) -> Call:
    return "get_weather", arguments


_OPTIONS = {"units": "metric", "tags": ["a", "b"], "deep": {"on": True, "level": 1.5}}
CASES = {
    "text": Case("Hello 🦩, größer: 4 is fine.", []),
    "text with signs": Case("If a < b then [x] or {y} = `z` | w > (v).", []),
    "one call": Case("", [_weather(city="Paris", days=3)]),
    "two calls": Case("", [_weather(city="Paris"), _weather(city="Rome", days=3)]),
    "text, then a call": Case("Let me look.", [_weather(city="Paris")]),
    "no arguments": Case("", [("get_time", {})]),
    "no arguments, then a call": Case("", [("get_time", {}), _weather(city="Paris")]),
    "nested arguments": Case("", [_weather(city="Paris", options=_OPTIONS)]),
    "escapes": Case("", [_weather(city="Zürich 🦩 \"am See\" \\ new\nline 'q'")]),
    "signs in an argument": Case("", [_weather(city="a [1] {b} (c) <d> | e")]),
    "a mark in an argument": Case("", [_weather(city=f"a {MARK} b")]),
}
# One more case: the answer "text, then a call", cut off by the length limit at any token.
CUT_OFF = "cut off"

_MARK_ENDS = "what looks like the mark that ends an argument or a call ends it"
_TEXT_OR_CALLS = "a call after text is text to this parser"
# The faults of parsers that are not repaired, by case.
FAULTS: dict[tuple[str, str], str] = {
    **{
        (parser, "a mark in an argument"): _MARK_ENDS
        for parser in (
            *("apertus", "cohere_command3", "cohere_command4"),
            *("deepseek_v32", "deepseek_v4", "deepseek_v41", "dots", "ernie45"),
            *("glm45", "glm47", "granite4", "hermes", "hf", "hy_v3", "hy_v4"),
            *("inkling", "internlm", "k2_horizon", "lfm2", "ling3", "longcat"),
            *("mimo", "minicpm5", "minimax_m2", "minimax_m3", "muse_glimmer"),
            *("plamo3", "poolside_v1", "qwen3_coder", "qwen3_json", "qwen3_xml"),
            *("seed_oss", "step3", "step3p5"),
        )
    },
    **{
        (parser, "text, then a call"): _TEXT_OR_CALLS
        for parser in ("llama4_pythonic", "pythonic", "xlam")
    },
    ("step3", "nested arguments"): "an object is left as a string",
    ("step3", "signs in an argument"): "an argument with `<` is left out",
}
_COLUMNS = {
    "text": ("text", "text with signs"),
    "a call": ("one call", "escapes"),
    "two calls": ("two calls", "no arguments, then a call"),
    "text, then a call": ("text, then a call",),
    "no arguments": ("no arguments",),
    "nested arguments": ("nested arguments",),
    "signs in an argument": ("signs in an argument",),
    "a mark in an argument": ("a mark in an argument",),
    "cut off": (CUT_OFF,),
}


def table() -> str:
    """The table of parsers and cases, in Markdown."""
    rows = [["parser", *_COLUMNS], ["---"] * (len(_COLUMNS) + 1)]
    for parser, form in sorted(FORMATS.items()):
        cells = []
        for cases in _COLUMNS.values():
            if max(len(CASES[case].calls) if case in CASES else 0 for case in cases) > form.most:
                cells.append("\N{EN DASH}")
            else:
                cells.append("no" if any((parser, case) in FAULTS for case in cases) else "yes")
        rows.append([f"`{parser}`", *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
