"""Google's client for its storage, and what goes wrong with it in the words of a disk."""

import errno
import threading
from typing import Any

# Seconds to connect, for an answer to begin, and until no request is repeated any more; the first request has less.
CONNECT_SECONDS, ANSWER_SECONDS, PATIENCE_SECONDS, FIRST_SECONDS = 10.0, 30.0, 60.0, 15.0
_thread = threading.local()


def client() -> Any:
    """This thread's client: its connections are not to be shared."""
    if not hasattr(_thread, "client"):
        # The storage library's metadata go through the one, its arrays through its own code.
        import gcsfs  # noqa: F401  # type: ignore[import-not-found]
        from google.cloud import storage  # type: ignore[import-not-found]

        _thread.client = storage.Client()
    return _thread.client


def patience(first: bool = False) -> dict[str, Any]:
    """How long a request may take and is repeated, as arguments of the client's methods.

    Args:
        first: whether somebody waits to hear that the bucket is there at all.
    """
    from google.cloud.storage.retry import DEFAULT_RETRY  # type: ignore[import-not-found]

    seconds = FIRST_SECONDS if first else PATIENCE_SECONDS
    answer = min(ANSWER_SECONDS, seconds)
    return {"timeout": (min(CONNECT_SECONDS, answer), answer), "retry": DEFAULT_RETRY.with_timeout(seconds)}


def as_errno(error: Exception, missing: str) -> tuple[int, str] | None:
    """Number and reason of what a client raises; None for what is none of its errors."""
    import requests
    from google.api_core import exceptions as api  # type: ignore[import-not-found]
    from google.auth import exceptions as auth  # type: ignore[import-not-found]

    if isinstance(error, api.RetryError) and isinstance(error.cause, Exception):
        error = error.cause
    if isinstance(error, api.NotFound):
        return errno.ENOENT, missing
    if isinstance(error, api.PreconditionFailed):
        return errno.EEXIST, "somebody else has written it meanwhile"
    if isinstance(error, api.Forbidden | api.Unauthorized):
        return errno.EACCES, f"permission denied ({_words(error.message)})"
    if isinstance(error, auth.GoogleAuthError):
        return errno.EACCES, (
            f"no credentials that Google accepts ({_words(error)}): gcloud auth application-default login, or name a "
            "key file in GOOGLE_APPLICATION_CREDENTIALS"
        )
    if isinstance(error, requests.exceptions.ReadTimeout | requests.exceptions.ConnectTimeout):
        return errno.ETIMEDOUT, "the storage service does not answer"
    if isinstance(error, requests.exceptions.ConnectionError):
        return errno.ECONNREFUSED, f"the storage service cannot be reached ({_words(error)})"
    if isinstance(error, api.GoogleAPIError | requests.exceptions.RequestException):
        return errno.EIO, f"the storage service has failed ({_words(error)})"
    return None


def _words(error: object) -> str:
    """What an error says, on one line that can be read."""
    return " ".join(str(error).split())[:300]
