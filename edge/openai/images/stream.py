"""POST /v1/images/generations: output as server-sent events."""

from __future__ import annotations

from edge.openai.images.request import ParsedImage
from edge.openai.images.response import NO_USAGE, FinishedImage, FinishedImages, usage_json
from edge.openai.images.schema import COMPLETED, PARTIAL_IMAGE
from edge.openai.pieces import Base64, LargeEvent, Output, Piece, join
from edge.openai.sse import TAIL, named_head
from edge.openai.translator import StreamTranslator
from isthmus.v1.image_pb2 import GenerateImageResponse
from isthmus.v1.usage_pb2 import Admitted, Usage


class ImageStream(StreamTranslator[GenerateImageResponse]):
    """Turns what the service says into named events, one a preview and one a picture.

    Args:
        call: What was asked for.
        created: Seconds since the Unix epoch.
    """

    def __init__(self, call: ParsedImage, created: int) -> None:
        self._pictures = FinishedImages(call.pictures)
        self._missing = call.pictures
        self._last: FinishedImage | None = None
        self._usage = NO_USAGE
        self._members = b'","created_at":%d,"quality":"%b","background":"opaque",' % (
            created,
            call.quality.encode(),
        ) + b'"output_format":"%b",' % (call.output_format.encode())

    def source(self, _number: int) -> ImageStream:
        """An images request has one source: this."""
        return self

    def opening(self) -> bytes:
        """Nothing comes before the first image."""
        return b""

    def admit(self, part: GenerateImageResponse | None) -> Admitted | None:
        """Takes the admission."""
        return part.admitted if part is not None and part.HasField("admitted") else None

    def text(self, text: str) -> bytes:
        """Never called: an image model makes no text."""
        raise NotImplementedError

    def part(self, part: GenerateImageResponse) -> Output:
        """The events of a message; nothing for progress."""
        events: list[LargeEvent] = []
        if part.HasField("partial_image"):
            preview = FinishedImage.of(part.partial_image)
            if preview.data and self._pictures.misses(preview.index):
                tail = b'"partial_image_index":%d}' % part.partial_image.partial_index
                pieces = self._event(PARTIAL_IMAGE, preview, tail)
                events.append(LargeEvent(pieces, preview_of=preview.index))
        if part.HasField("image") and self._pictures.add(image := FinishedImage.of(part.image)):
            self._missing -= 1
            if self._missing:
                events.append(self._completed(image, NO_USAGE))
            else:
                # The last image carries the usage of the request, which arrives after it.
                self._last = image
        if part.HasField("usage"):
            self._usage = part.usage
        return join(events)

    def closing(self) -> Output:
        """The event of the last image."""
        self._pictures.all()
        return b"" if self._last is None else self._completed(self._last, self._usage)

    def _completed(self, picture: FinishedImage, usage: Usage) -> LargeEvent:
        tail = b'"seed":%d,"usage":%b}' % (picture.seed, usage_json(usage))
        return LargeEvent(self._event(COMPLETED, picture, tail))

    def _event(self, name: str, picture: FinishedImage, tail: bytes) -> list[Piece]:
        head = b'%b{"type":"%b","b64_json":"' % (named_head(name), name.encode())
        place = b'"size":"%dx%d","index":%d,' % (picture.width, picture.height, picture.index)
        return [head, Base64(picture.data), self._members + place + tail + TAIL]
