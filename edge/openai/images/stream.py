"""POST /v1/images/generations: the response as server-sent events.

Events have names. Each field of the service's messages becomes at most one event:

  field            event
  ---------------  ---------------------------------------------------------------------------
  partial_image    image_generation.partial_image, a preview; none for an image that is finished
  image            image_generation.completed with zeros as usage; the last image is kept
  usage            none; it is kept for the last image
  admitted,        none
  progress
  (the end)        image_generation.completed of the last image, with the usage of the request

The last completed event has the usage of the request, which the service sends after all images.
So the last image is sent at the end of the call.

An event is three pieces: its head up to the image, the image, and the other properties. The image
becomes base64 only when it is sent (pieces.py), which no JSON encoder could do.
tests/contract/test_openapi.py checks the events against edge/openapi/responses.py.
"""

from __future__ import annotations

from edge.openai.images.request import ParsedImage
from edge.openai.images.response import NO_USAGE, FinishedImage, ImageTranslator, usage_json
from edge.openai.images.schema import COMPLETED, PARTIAL_IMAGE
from edge.openai.pieces import Base64, LargeEvent, Output, Piece
from edge.openai.sse import HEAD, TAIL
from edge.openai.translator import StreamTranslator
from isthmus.v1.image_pb2 import GenerateImageResponse
from isthmus.v1.usage_pb2 import Usage


class ImageStream(ImageTranslator, StreamTranslator[GenerateImageResponse]):
    """The events of one request. Takes the same arguments as ImageTranslator."""

    def __init__(self, parsed: ParsedImage, created: int) -> None:
        super().__init__(parsed, created)
        self._missing = parsed.image_count
        self._last: FinishedImage | None = None
        # The properties after the image that all events share.
        self._shared = (
            b'","created_at":%d,"quality":"%b","background":"opaque","output_format":"%b",'
            % (created, parsed.quality.encode(), parsed.output_format.encode())
        )

    def opening(self) -> bytes:
        """Returns b"": no event precedes the first image."""
        return b""

    def part(self, part: GenerateImageResponse) -> Output:
        """The events of a message; b"" for none."""
        events: Output = b""
        if part.HasField("partial_image"):
            preview = FinishedImage.of(part.partial_image)
            if preview.data and self._is_missing(preview.index):
                number = b'"partial_image_index":%d}' % part.partial_image.partial_index
                pieces = self._event(PARTIAL_IMAGE, preview, number)
                events += LargeEvent(pieces, preview_of=preview.index)
        if part.HasField("image") and self._add(image := FinishedImage.of(part.image)):
            self._missing -= 1
            if self._missing:
                events += self._completed(image, NO_USAGE)
            else:
                self._last = image
        if part.HasField("usage"):
            self._usage = part.usage
        return events

    def closing(self) -> Output:
        """The event of the last image.

        Raises:
            OpenAIError: 500, an image is missing.
        """
        self._all()
        return b"" if self._last is None else self._completed(self._last, self._usage)

    def _completed(self, image: FinishedImage, usage: Usage) -> LargeEvent:
        last_properties = b'"seed":%d,"usage":%b}' % (image.seed, usage_json(usage))
        return LargeEvent(self._event(COMPLETED, image, last_properties))

    def _event(self, name: str, image: FinishedImage, last_properties: bytes) -> list[Piece]:
        head = b'event: %b\n%b{"type":"%b","b64_json":"' % (name.encode(), HEAD, name.encode())
        size = b'"size":"%dx%d","index":%d,' % (image.width, image.height, image.index)
        return [head, Base64(image.data), self._shared + size + last_properties + TAIL]
