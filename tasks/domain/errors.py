"""Every error that tokensweep raises on purpose.

TokensweepError
 ├─ ConfigError            a preset, model or argument is wrong; nothing was changed
 ├─ ProviderError          a vendor said no, or nothing
 │   ├─ AuthError          credentials; halts all creates at the vendor
 │   ├─ QuotaError         the account's limit in a region
 │   ├─ CapacityError      the vendor has none left in the zone; try elsewhere
 │   ├─ UnsupportedError   never works for this server type
 │   ├─ RateLimitedError   wait, do not fail over
 │   └─ AmbiguousError     it may or may not exist: resolve before anything else
 ├─ RemoteError            SSH
 │   ├─ UnreachableError
 │   ├─ HostKeyMismatchError
 │   └─ CommandFailedError
 ├─ AgentError             the agent on the server broke its contract
 ├─ LandingError           rows could not be written
 └─ CleanupError           something may be left behind; never swallowed
"""

from __future__ import annotations

from enum import Enum


class Retry(str, Enum):
    """What the caller may do next."""

    NEVER = "never"
    SAME = "same"
    ELSEWHERE = "elsewhere"


class TokensweepError(Exception):
    """Base class. `str(error)` says what happened, to which resource, and what to do next."""

    retry = Retry.NEVER
    exit_code = 1

    def __init__(self, message: str, *, reason: str = "", next_step: str = "") -> None:
        self.message = message
        self.reason = reason or type(self).__name__
        self.next_step = next_step
        super().__init__(message, reason, next_step)

    def __str__(self) -> str:
        return f"{self.message} {self.next_step}".strip()

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.reason, self.next_step))


def _rebuild(cls: type[TokensweepError], message: str, reason: str, next_step: str) -> TokensweepError:
    return cls(message, reason=reason, next_step=next_step)


class ConfigError(TokensweepError):
    exit_code = 2


class ProviderError(TokensweepError):
    exit_code = 4


class AuthError(ProviderError):
    pass


class QuotaError(ProviderError):
    retry = Retry.ELSEWHERE


class CapacityError(ProviderError):
    retry = Retry.ELSEWHERE


class UnsupportedError(ProviderError):
    pass


class RateLimitedError(ProviderError):
    retry = Retry.SAME


class AmbiguousError(ProviderError):
    retry = Retry.SAME


class RemoteError(TokensweepError):
    exit_code = 4


class UnreachableError(RemoteError):
    retry = Retry.SAME


class ServerGoneError(RemoteError):
    """The vendor says that the server has ended: preempted, deleted by somebody, or broken."""


class HostKeyMismatchError(RemoteError):
    pass


class CommandFailedError(RemoteError):
    pass


class AgentError(TokensweepError):
    exit_code = 4


class LandingError(TokensweepError):
    exit_code = 4
    retry = Retry.SAME


class CleanupError(TokensweepError):
    exit_code = 6
    retry = Retry.SAME
