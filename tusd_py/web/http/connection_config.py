"""What all connections of one server have in common: limits, counters, and the fields of refusals."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field

from tusd_py.protocol.headers import RawHeaders
from tusd_py.telemetry.counters import Counters
from tusd_py.web.http.direct_body import Collector
from tusd_py.web.http.heads import LongHeads

RefusalHeaders = Callable[["bytes | None", bool], RawHeaders]
"""Fields of a response that does not come from the application: by the value of `Origin` (None without one), and whether the
head came in whole, so that None says that there was none."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What connections may cost: their number, bytes of a request's head, seconds for it to come in, and without progress.

    concat_size: bytes of `Upload-Concat`, which are not counted in head_size; 0 counts them like any other field.
    """

    connections: int = 10_000
    head_size: int = 64 * 1024
    concat_size: int = 0
    idle_timeout: float = 60.0

    @property
    def most_accepted(self) -> int:
        """Connections that are open at the same time at most, those among them that are being refused."""
        return self.connections + 16 + self.connections // 16


@dataclass(slots=True)
class ConnectionConfig:
    """See the module. collector: collects what slow bodies left in their sockets. tls: where there is a certificate.

    is_shared: whether many clients come from an address, as it is a proxy's.
    """

    limits: Limits = field(default_factory=Limits)
    counters: Counters = field(default_factory=Counters)
    refusal_headers: RefusalHeaders = lambda _origin, _whole: []
    collector: Collector = field(default_factory=Collector)
    tls: ssl.SSLContext | None = None
    is_shared: Callable[[str], bool] = lambda _address: False
    long_heads: LongHeads = field(init=False)

    def __post_init__(self) -> None:
        self.long_heads = LongHeads(self.limits.concat_size, self.is_shared)
