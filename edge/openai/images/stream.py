"""POST /v1/images/generations: output as server-sent events."""

from __future__ import annotations

from edge.openai.images.request import ParsedImage
from edge.openai.images.response import NO_USAGE, FinishedImage, FinishedImages, usage_json
from edge.openai.images.schema import COMPLETED, PARTIAL_IMAGE
from edge.openai.pieces import Base64, Piece
from edge.openai.sse import TAIL, named_head
from isthmus.v1.image_pb2 import GenerateImageResponse
from isthmus.v1.usage_pb2 import Usage


class ImageStream:
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

    def part(self, part: GenerateImageResponse) -> list[Piece]:
        """Events to send now; nothing for progress."""
        events: list[Piece] = []
        if part.HasField("partial_image"):
            preview = FinishedImage.of(part.partial_image)
            if preview.data and self._pictures.misses(preview.index):
                tail = b'"partial_image_index":%d}' % part.partial_image.partial_index
                events += self._event(PARTIAL_IMAGE, preview, tail)
        if part.HasField("image") and self._pictures.add(picture := FinishedImage.of(part.image)):
            self._missing -= 1
            if self._missing:
                events += self._completed(picture, NO_USAGE)
            else:
                # The last one tells what all of them used, which is said last.
                self._last = picture
        if part.HasField("usage"):
            self._usage = part.usage
        return events

    def end(self) -> list[Piece]:
        """The last event, once the service has ended well; nothing when asked again.

        Raises:
            OpenAIError: 500, a picture never came.
        """
        self._pictures.all()
        last, self._last = self._last, None
        return [] if last is None else self._completed(last, self._usage)

    def _completed(self, picture: FinishedImage, usage: Usage) -> list[Piece]:
        tail = b'"seed":%d,"usage":%b}' % (picture.seed, usage_json(usage))
        return self._event(COMPLETED, picture, tail)

    def _event(self, name: str, picture: FinishedImage, tail: bytes) -> list[Piece]:
        head = b'%b{"type":"%b","b64_json":"' % (named_head(name), name.encode())
        place = b'"size":"%dx%d","index":%d,' % (picture.width, picture.height, picture.index)
        return [head, Base64(picture.data), self._members + place + tail + TAIL]
