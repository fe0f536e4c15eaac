"""The input of a response as the messages of a chat.

  items                                     messages
  ----------------------------------------  ------------------------------------------------------
  instructions                              a system message, the first
  message of a user, system or developer    a message
  reasoning, message of the assistant,      one assistant message, up to the next output or message;
  calls                                     a second message of the assistant begins another one
  outputs                                   a tool message each, right after the message with the
                                            call; its images follow in a message of the user, since
                                            tool messages have text only

So a conversation is a valid chat wherever its outputs stand. The messages have other places than
the items, so `places` translates those in errors.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence

import msgspec

from contract import refusals
from contract.limits import MAX_TOOLS
from contract.refusals import shown
from edge.openai import errors
from edge.openai.chat import message_schema as chat
from edge.openai.errors import OpenAIError
from edge.openai.responses import item_schema as schema
from edge.openai.responses.tools import Tools


class _Assistant:
    """One message of the assistant, made of several items; `place` is that of the first."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.places: list[tuple[str, str]] = []
        self.reasoning: list[str] = []
        self.parts: list[chat.TextPart | chat.RefusalPart] = []
        self.calls: list[tuple[int, chat.FunctionToolCall]] = []

    def message(self) -> chat.AssistantMessage:
        return chat.AssistantMessage(
            content=self.parts or None,
            reasoning_content="\n".join(self.reasoning) or None,
            tool_calls=[call for _, call in self.calls] or None,
        )


class Conversation:
    """Converts the items of one request.

    Args:
        instructions: The first message; None for none.
        items: The input.
        tools: The request's tools, which know the names of the functions in the chat.
        earlier: How many of the items are of earlier responses.

    Attributes:
        messages: The messages of the chat.
        places: Places in `messages`, each with its place in `input`.

    Raises:
        OpenAIError: 400.
    """

    def __init__(
        self,
        instructions: str | None,
        items: Sequence[schema.InputItem],
        tools: Tools,
        earlier: int = 0,
    ) -> None:
        self.messages: list[chat.Message] = []
        self.places: list[tuple[str, str]] = []
        self._tools = tools
        self._earlier = earlier
        self._assistant: _Assistant | None = None
        self._outputs = _outputs_of(items)
        if instructions is not None:
            self.messages.append(chat.SystemMessage(content=instructions))
            self.places.append(("messages[0]", "instructions"))
        for i, item in enumerate(items):
            self._add(i, item)
        self._end_assistant()
        for call_id, outputs in self._outputs.items():
            if outputs:
                raise errors.invalid_request(
                    f"No tool call found for function call output with call_id {shown(call_id)}.",
                    f"{self._place(outputs[0][0])}.call_id",
                )
        if not self.messages:
            raise errors.invalid_request(
                "Invalid 'input': none of its items has anything that the model can see.",
                "input",
                "invalid_value",
            )

    def _place(self, i: int) -> str:
        """The place of an item in the request."""
        return "previous_response_id" if i < self._earlier else f"input[{i - self._earlier}]"

    def _add(self, i: int, item: schema.InputItem) -> None:
        match item:
            case schema.InputMessage(role="assistant"):
                self._add_assistant_message(i, item)
            case schema.InputMessage():
                self._end_assistant()
                self._add_message(i, item)
            case schema.InputReasoning():
                texts = item.content or item.summary or ()
                if texts:
                    assistant = self._assistant_message(i, begin=not self._calling)
                    assistant.reasoning += [each.text for each in texts]
            case schema.InputFunctionCall() | schema.InputCustomCall():
                self._add_call(i, item)
            case schema.InputFunctionOutput() | schema.InputCustomOutput():
                # `_add_call` adds the output of a call.
                self._end_assistant()
            case schema.ItemReference():
                raise OpenAIError.of(
                    refusals.unsupported_value(
                        f"{self._place(i)}.type", "items are not stored; send the item itself."
                    )
                )

    @property
    def _calling(self) -> bool:
        """Whether the last item but reasoning and messages is a call without its output."""
        return self._assistant is not None and bool(self._assistant.calls)

    def _assistant_message(self, i: int, *, begin: bool) -> _Assistant:
        """The open message of the assistant; `begin` opens another one if it has text."""
        if begin and self._assistant is not None and self._assistant.parts:
            self._end_assistant()
        if self._assistant is None:
            self._assistant = _Assistant(self._place(i))
        return self._assistant

    def _add_assistant_message(self, i: int, item: schema.InputMessage) -> None:
        assistant = self._assistant_message(i, begin=not self._calling)
        if isinstance(item.content, str):
            assistant.places.append(
                (f".content[{len(assistant.parts)}]", f"{self._place(i)}.content")
            )
            assistant.parts.append(chat.TextPart(text=item.content))
            return
        for k, part in enumerate(item.content):
            place = f"{self._place(i)}.content[{k}]"
            assistant.places.append((f".content[{len(assistant.parts)}]", place))
            if isinstance(part, schema.OutputRefusalPart):
                assistant.parts.append(chat.RefusalPart(refusal=part.refusal))
            else:
                assistant.parts.append(chat.TextPart(text=_text_of(part, place)))

    def _add_call(self, i: int, item: schema.InputCall) -> None:
        assistant = self._assistant_message(i, begin=False)
        if len(assistant.calls) == MAX_TOOLS:
            raise errors.too_many_calls(self._place(i))
        at = f".tool_calls[{len(assistant.calls)}]"
        assistant.places += [
            (f"{at}.function.name", f"{self._place(i)}.name"),
            (at, self._place(i)),
        ]
        called = chat.PastFunctionCall(
            name=self._tools.name_in_chat(item.name, item.namespace),
            arguments=(
                item.arguments
                if isinstance(item, schema.InputFunctionCall)
                else msgspec.json.encode({"input": item.input}).decode()
            ),
        )
        assistant.calls.append((i, chat.FunctionToolCall(id=item.call_id, function=called)))

    def _end_assistant(self) -> None:
        """Adds the open message of the assistant, if there is one, and the outputs of its calls."""
        assistant, self._assistant = self._assistant, None
        if assistant is None or not (assistant.parts or assistant.calls or assistant.reasoning):
            return
        at = f"messages[{len(self.messages)}]"
        self.places += [(at + inside, place) for inside, place in assistant.places]
        self.places += [(f"{at}.content", assistant.place), (at, assistant.place)]
        self.messages.append(assistant.message())
        images: list[tuple[str, schema.InputImage]] = []
        for i, call in assistant.calls:
            outputs = self._outputs[call.id]
            if not outputs or outputs[0][0] < i:
                raise errors.invalid_request(
                    f"No tool output found for function call {shown(call.id)}.",
                    f"{self._place(i)}.call_id",
                )
            self._add_output(*outputs.popleft(), images)
        if images:
            self._add_images(images)

    def _add_output(
        self, i: int, item: schema.InputOutput, images: list[tuple[str, schema.InputImage]]
    ) -> None:
        at, place = f"messages[{len(self.messages)}]", self._place(i)
        self.places += [(f"{at}.content", f"{place}.output"), (at, place)]
        content: str | list[chat.OnlyTextPart] = ""
        if isinstance(item.output, str):
            content = item.output
        elif item.output:
            texts = []
            for k, part in enumerate(item.output):
                if isinstance(part, schema.InputImage):
                    images.append((f"{place}.output[{k}]", part))
                else:
                    text = _text_of(part, f"{place}.output[{k}]")
                    texts.append(chat.OnlyTextPart(type="text", text=text))
            content = texts or ""
        self.messages.append(chat.ToolMessage(content=content, tool_call_id=item.call_id))

    def _add_images(self, images: Sequence[tuple[str, schema.InputImage]]) -> None:
        at = f"messages[{len(self.messages)}]"
        parts: list[chat.UserPart] = []
        for k, (place, image) in enumerate(images):
            self.places.append((f"{at}.content[{k}].image_url.url", f"{place}.image_url"))
            self.places.append((f"{at}.content[{k}]", place))
            parts.append(_image_of(image, place))
        self.messages.append(chat.UserMessage(content=parts))

    def _add_message(self, i: int, item: schema.InputMessage) -> None:
        at, place = f"messages[{len(self.messages)}]", self._place(i)
        if len(self.messages) != i or self._earlier:
            self.places.append((at, place))
        if item.content == []:
            raise OpenAIError.of(refusals.empty_array(f"{place}.content"))
        if item.role != "user":
            texts: str | list[chat.OnlyTextPart] = (
                item.content
                if isinstance(item.content, str)
                else [
                    chat.OnlyTextPart(type="text", text=_text_of(part, f"{place}.content[{k}]"))
                    for k, part in enumerate(item.content)
                ]
            )
            self.messages.append(
                chat.SystemMessage(content=texts)
                if item.role == "system"
                else chat.DeveloperMessage(content=texts)
            )
            return
        if isinstance(item.content, str):
            self.messages.append(chat.UserMessage(content=item.content))
            return
        parts: list[chat.UserPart] = []
        for k, part in enumerate(item.content):
            inside = f".content[{k}]"
            if isinstance(part, schema.InputImage):
                self.places.append((f"{at}{inside}.image_url.url", f"{place}{inside}.image_url"))
                parts.append(_image_of(part, place + inside))
            else:
                parts.append(chat.TextPart(text=_text_of(part, place + inside)))
        self.messages.append(chat.UserMessage(content=parts))


def _outputs_of(
    items: Sequence[schema.InputItem],
) -> defaultdict[str, deque[tuple[int, schema.InputOutput]]]:
    """The outputs of each call id, in order, with their places."""
    outputs: defaultdict[str, deque[tuple[int, schema.InputOutput]]] = defaultdict(deque)
    for i, item in enumerate(items):
        if isinstance(item, schema.InputOutput):
            outputs[item.call_id].append((i, item))
    return outputs


def _text_of(part: schema.MessagePart, place: str) -> str:
    """The text of a part.

    Raises:
        OpenAIError: 400, it is no text.
    """
    if isinstance(part, schema.InputText | schema.OutputTextPart):
        return part.text
    if isinstance(part, schema.OutputRefusalPart):
        return part.refusal
    explanation = (
        "file input is not supported."
        if isinstance(part, schema.InputFile)
        else "pictures are taken in messages of the user and in outputs of tools only."
    )
    raise OpenAIError.of(refusals.unsupported_value(f"{place}.type", explanation))


def _image_of(image: schema.InputImage, place: str) -> chat.ImagePart:
    if image.file_id is not None:
        raise OpenAIError.of(refusals.unsupported_parameter(f"{place}.file_id"))
    if image.image_url is None:
        raise OpenAIError.of(refusals.missing_parameter(f"{place}.image_url"))
    return chat.ImagePart(image_url=chat.ImageUrl(url=image.image_url, detail=image.detail))
