"""Why a replica does not serve, in words for the log and for /ready.

gRPC retries for ever and says why only in the text of the status, which names no setting. The
texts here do. They hold no address: /ready needs no key.

  what gRPC's text has                      what is wrong
  ----------------------------------------  ------------------------------------------------------
  certificate has expired, or is not valid  the service's certificate, or this machine's clock
  yet
  Hostname Verification Check failed        it is made out to another name than the upstream's
  CERTIFICATE_VERIFY_FAILED                 its authority is not that of `upstream_ca`
  WRONG_VERSION_NUMBER                      the service speaks no TLS
  closed or reset, although the address     with TLS: the service refuses the edge's certificate,
  could be reached                          of which TLS 1.3 tells the client nothing more; without
                                            TLS: the service speaks TLS
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

import grpc

_KEY_REFUSED: Final = (
    grpc.StatusCode.UNAUTHENTICATED.value[0],
    grpc.StatusCode.PERMISSION_DENIED.value[0],
)
_CLOSED: Final = (
    "Socket closed",
    "Connection reset",
    "Broken pipe",
    "connection attempt timed out",
)


@dataclass(frozen=True, slots=True)
class Problem:
    """A reason why a replica is not used, or is used with a restriction.

    Attributes:
        text: A sentence about the service, "it ...".
        level: Of the line in the log. A service that is not up yet is no reason for a warning.
    """

    text: str
    level: int = logging.WARNING


NO_KEYS: Final = Problem(
    "it has no keys file: who reaches it needs no key, and limits of a key's own would not hold; "
    "start it with --keys"
)
# The edge does not begin to use such a service.
UNENFORCED: Final = Problem(
    "it has no keys file, so limits of a key's own do not hold; start it with --keys", logging.ERROR
)
# UNREACHABLE: the service has served before. NOT_UP: it has never served.
UNREACHABLE: Final = Problem("it cannot be reached", logging.INFO)
NOT_UP: Final = Problem(
    "it is not up yet: its process is starting, or the address is wrong", logging.INFO
)
SILENT: Final = Problem("it does not answer", logging.INFO)
_KEY: Final = Problem(
    "it refuses the edge's key; ISTHMUS_EDGE_TOKEN must be a key of scope `edge` in its keys file"
)
# Searched in this order: an error with the text of an earlier row may have a later row's as well.
_OF_TEXT: Final = {
    "certificate has expired": Problem("its certificate has expired"),
    "certificate is not yet valid": Problem("its certificate is not valid yet"),
    "Hostname Verification": Problem("its certificate is for another name"),
    "CERTIFICATE_VERIFY_FAILED": Problem(
        "its certificate is not signed by an authority of upstream_ca"
    ),
    "WRONG_VERSION_NUMBER": Problem("it speaks no TLS, which upstream_ca turns on"),
    "handshake failed": Problem("the TLS handshake with it failed"),
}
_CLIENT: Final = Problem(
    "it closes the connection after the TLS handshake; it may need another upstream_certificate, "
    "signed by its tls_client_ca and not expired"
)
_TLS: Final = Problem("it closes the connection; it may speak TLS, which upstream_ca turns on")


class ContactError(Exception):
    """A service answers, and cannot be used all the same.

    Args:
        problem: Why; None if the reason is not known.
    """

    def __init__(self, problem: Problem | None) -> None:
        super().__init__(problem.text if problem else "")
        self.problem = problem


def problem_of(code: int, text: str, *, secure: bool) -> Problem | None:
    """The reason of a failed call; None if the service refuses only because of the load.

    Args:
        code, text: The call's status.
        secure: Whether the connection uses TLS.
    """
    if code in _KEY_REFUSED:
        return _KEY
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]:
        return None
    for part, problem in _OF_TEXT.items():
        if part in text:
            return problem
    if any(part in text for part in _CLOSED):
        return _CLIENT if secure else _TLS
    return UNREACHABLE
