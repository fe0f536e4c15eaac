"""When a failed call may be sent to another replica: one rule for every kind of request.

A replay must not repeat work. A request may have stuck the engine that began it, and would stick
a second engine too. So a call moves only if it certainly has not begun, or if the service reports
every start at once and has reported none.

  sent?          received?   how it ended                                   moved?
  -------------  ----------  ---------------------------------------------  ------
  certainly not  -           anything                                       yes
  yes            nothing     a reason in NOT_BEGUN                          yes
  yes            nothing     UNAVAILABLE made by the transport; a stream    yes
  yes            nothing     UNAVAILABLE made by the transport; another     no
  yes            nothing     silence                                        no
  yes            anything    anything                                       no
  any other combination                                                     no

"Certainly not sent" is a call that was still queued in the edge, or whose connection was refused or
got no hello. "A stream" is a streamed text request, whose start the service reports at once with
`admitted`. "Another" is any other request, which may have begun without a report. A request moves
at most once, and the second try gets the remaining time of the deadline (router.py).
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
