"""The one error tree. `retryable` decides, once for everybody, who may try again."""

from __future__ import annotations


def first_line(told: object) -> str:
    """The first line of what an error or a program says, at most 200 characters; an error without words by its name."""
    lines = str(told).strip().splitlines()
    return lines[0][:200] if lines else type(told).__name__


class ToyError(Exception):
    """Base of every error this project raises on purpose.

    `retryable` is True when the same call may succeed later without anyone changing anything.
    Messages never carry a secret, a child's name or words, or a MAC.
    """

    retryable = False


class SettingsError(ToyError):
    """The configuration is wrong; the message names each variable, its problem and an example."""


class IdentityError(ToyError):
    """No device can be recognised in a room name or a participant."""


class InvalidCall(ToyError):
    """A device function or its arguments are not what the device contract allows."""


class RemoteError(ToyError):
    """A service beside us answered badly, or did not answer."""


class Unavailable(RemoteError):
    """Refused, reset, timed out or 5xx: the service may be back later."""

    retryable = True


class RateLimited(Unavailable):
    """The service asks for patience; `retry_after` is in seconds, None where it did not say."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unauthorised(RemoteError):
    """The secret is missing or wrong."""


class NotFound(RemoteError):
    """The service knows no such thing."""


class MustBindFirst(RemoteError):
    """The device is not bound to an account; `bind_code` is what the child should hear read out."""

    def __init__(self, message: str, bind_code: str) -> None:
        super().__init__(message)
        self.bind_code = bind_code


class Malformed(RemoteError):
    """The answer is not what the contract promises."""


class Rejected(RemoteError):
    """The service understood the request and refused it (validation, generic failure); `code` is its own number."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


class AllProvidersFailed(Unavailable):
    """No provider of one kind answered; `kind` is `speech-to-text`, `language model` or `voice`."""

    def __init__(self, kind: str, message: str = "") -> None:
        super().__init__(message or f"no provider of the kind {kind} answered")
        self.kind = kind


class MediaError(ToyError):
    """A sound file or stream cannot be used; the message says which and why.

    `reason` is for counting: `name` (leads out of its folder), `network` (leads where it must not), `size` (too large,
    too long, or a bomb), `missing`, `away` (the server failed again and again) or `broken`.
    """

    def __init__(self, message: str = "", reason: str = "broken") -> None:
        super().__init__(message)
        self.reason = reason


class LibraryError(ToyError):
    """The catalogue, its collections or its model do not fit together."""


class ModelFileError(LibraryError):
    """The embedding model's files are missing or damaged; the message says what to do."""


class OutboxError(ToyError):
    """The queue on disk cannot be read or written just now (full, read-only, locked); items wait in memory."""

    retryable = True


class Undeliverable(ToyError):
    """The receiver will never take this item as it is; the message is the reason kept with it."""


class ResumeError(ToyError):
    """The store of interrupted conversations cannot be read or written just now."""

    retryable = True
