"""When a failed call may be sent to another replica: one rule for every kind of request.

A replay must not repeat work. An engine that began a request may be stuck because of it, and a
second engine would get stuck as well. So a call moves only if it certainly has not begun, or if
the service reports every start at once and has reported none.

  sent?          received?   how it ended                                   moved?
  -------------  ----------  ---------------------------------------------  ------
  certainly not  -           anything                                       yes
  yes            nothing     a reason of ours that says "not begun"         yes
  yes            nothing     UNAVAILABLE made by the transport; a stream    yes
  yes            nothing     UNAVAILABLE made by the transport; another     no
  yes            nothing     silence                                        no
  yes            anything    anything                                       no
  any other combination                                                     no

"Certainly not sent" is a call that was still queued here, or whose connection was refused or gave
no hello. The service reports the start of a stream with `admitted`; a plain answer, an image or
an embedding is first received when it is complete or on its way, so a lost one may have begun.
A request moves once at most, and the second try gets what is left of the deadline (router.py).
"""

from __future__ import annotations

from typing import Final

from google.rpc.code_pb2 import Code

from edge.openai.errors.rpc_status import reason_of
from edge.upstream.transport import Ended

# Reasons with which a service refuses a request that it has not begun.
NOT_BEGUN: Final = frozenset(
    {"draining", "engine_unavailable", "queue_timeout", "server_overloaded"}
)


def may_replay(ended: Ended, *, reports_start: bool) -> bool:
    """Whether another replica may get the request.

    Args:
        ended: How the call ended.
        reports_start: Whether the service reports the start of this request at once.
    """
    if ended.received:
        return False
    if not ended.sent:
        return True
    reason = reason_of(ended.status)
    if reason is not None:
        return reason in NOT_BEGUN
    return reports_start and not ended.silent and ended.status.code == Code.UNAVAILABLE
