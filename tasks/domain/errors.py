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
    """Base class. `str(error)` says what happened, to which resource, and what to do next.

    usual_reason: one word for tables and the lake, where who raises it gives none that says more.
    """

    retry = Retry.NEVER
    exit_code = 1
    usual_reason = "unforeseen"

    def __init__(self, message: str, *, reason: str = "", next_step: str = "") -> None:
        self.message = message
        self.reason = reason or self.usual_reason
        self.next_step = next_step
        super().__init__(message, reason, next_step)

    def __str__(self) -> str:
        return f"{self.message} {self.next_step}".strip()

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.reason, self.next_step))


def _rebuild(cls: type[TokensweepError], message: str, reason: str, next_step: str) -> TokensweepError:
    return cls(message, reason=reason, next_step=next_step)


class ConfigError(TokensweepError):
    usual_reason = "bad_config"
    exit_code = 2


class ProviderError(TokensweepError):
    usual_reason = "vendor_error"
    exit_code = 4


class AuthError(ProviderError):
    usual_reason = "credentials"


class QuotaError(ProviderError):
    usual_reason = "quota"
    retry = Retry.ELSEWHERE


class CapacityError(ProviderError):
    usual_reason = "capacity"
    retry = Retry.ELSEWHERE


class UnsupportedError(ProviderError):
    usual_reason = "unsupported"


class RateLimitedError(ProviderError):
    usual_reason = "rate_limited"
    retry = Retry.SAME


class AmbiguousError(ProviderError):
    usual_reason = "create_unanswered"
    retry = Retry.SAME


class RemoteError(TokensweepError):
    usual_reason = "ssh_failed"
    exit_code = 4


class UnreachableError(RemoteError):
    usual_reason = "unreachable"
    retry = Retry.SAME


class ServerGoneError(RemoteError):
    """The vendor says that the server has ended: preempted, deleted by somebody, or broken."""

    usual_reason = "server_gone"


class HostKeyMismatchError(RemoteError):
    usual_reason = "host_key_mismatch"


class CommandFailedError(RemoteError):
    usual_reason = "command_failed"


class AgentError(TokensweepError):
    usual_reason = "agent_failed"
    exit_code = 4


class LandingError(TokensweepError):
    usual_reason = "landing_failed"
    exit_code = 4
    retry = Retry.SAME


class CleanupError(TokensweepError):
    usual_reason = "delete_not_proven"
    exit_code = 6
    retry = Retry.SAME
