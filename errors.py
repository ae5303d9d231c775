"""Everything that Fireside says no with.

    FiresideError                 500 INTERNAL_ERROR
      Invalid                     400 VALIDATION_ERROR
        InvalidInvite             400 INVALID_INVITE
        NoUserMessage             400 NO_USER_MESSAGE
      AuthRequired                401 AUTH_REQUIRED
        InvalidCredentials        401 INVALID_CREDENTIALS
      Forbidden                   403 FORBIDDEN
        CsrfInvalid               403 CSRF_INVALID
        HostNotAllowed            403 HOST_NOT_ALLOWED
        OriginNotAllowed          403 ORIGIN_NOT_ALLOWED
        BootstrapDisabled         403 BOOTSTRAP_DISABLED
        InvalidBootstrapToken     403 INVALID_BOOTSTRAP_TOKEN
      NotFound(thing)             404 <THING>_NOT_FOUND
      MethodNotAllowed            405 METHOD_NOT_ALLOWED
      Conflict                    409 CONFLICT
        UsernameExists            409 USERNAME_EXISTS
        GenerationActive          409 GENERATION_ACTIVE
        AlreadyAnswered           409 ALREADY_ANSWERED
        LastAdmin                 409 LAST_ADMIN
      RequestTimeout              408 REQUEST_TIMEOUT
      BodyTooLarge                413 BODY_TOO_LARGE
      QuotaExceeded               413 QUOTA_EXCEEDED
      UnsupportedMediaType        415 UNSUPPORTED_MEDIA_TYPE
      RateLimited(seconds)        429 RATE_LIMITED
      HeadersTooLarge             431 HEADERS_TOO_LARGE
      ProviderFailed(code)        502 code: what a model server did wrong, also as an `error` event
      StorageUnavailable          503 STORAGE_UNAVAILABLE
        Stopping                  503 STORAGE_UNAVAILABLE
      QueryTimeout                503 QUERY_TIMEOUT

A message is written for the person who reads it. It never carries a secret or a stack trace.
"""


class FiresideError(Exception):
    status = 500
    code = "INTERNAL_ERROR"
    message = "Something went wrong inside Fireside. The server's log says what."

    def __init__(self, message: str | None = None) -> None:
        if message is not None:
            self.message = message
        super().__init__(self.message)

    @property
    def headers(self) -> dict[str, str]:
        return {}


class Invalid(FiresideError):
    status = 400
    code = "VALIDATION_ERROR"
    message = "The request is not valid."


class InvalidInvite(Invalid):
    code = "INVALID_INVITE"
    message = "This invite is not valid: it was used, revoked, has expired, or never existed."


class NoUserMessage(Invalid):
    code = "NO_USER_MESSAGE"
    message = "The conversation has no user message to answer."


class AuthRequired(FiresideError):
    status = 401
    code = "AUTH_REQUIRED"
    message = "Sign in first."


class InvalidCredentials(AuthRequired):
    code = "INVALID_CREDENTIALS"
    message = "The user name or the password is wrong."


class Forbidden(FiresideError):
    status = 403
    code = "FORBIDDEN"
    message = "Only an administrator may do this."


class CsrfInvalid(Forbidden):
    code = "CSRF_INVALID"
    message = "The X-CSRF-Token header is missing or wrong. GET /auth/me gives the right one."


class HostNotAllowed(Forbidden):
    code = "HOST_NOT_ALLOWED"
    message = "Fireside does not answer to this host name. Add it to allowed_hosts in config.toml if it should."


class OriginNotAllowed(Forbidden):
    code = "ORIGIN_NOT_ALLOWED"
    message = "Requests from other sites are not accepted."


class BootstrapDisabled(Forbidden):
    code = "BOOTSTRAP_DISABLED"
    message = "The first account exists already."


class InvalidBootstrapToken(Forbidden):
    code = "INVALID_BOOTSTRAP_TOKEN"
    message = "The bootstrap token is missing or wrong. The link that the server printed carries the right one."


class NotFound(FiresideError):
    """NotFound("conversation") is 404 CONVERSATION_NOT_FOUND."""

    status = 404

    def __init__(self, thing: str) -> None:
        self.code = f"{thing.upper()}_NOT_FOUND"
        super().__init__(f"There is no such {thing}.")


class MethodNotAllowed(FiresideError):
    status = 405
    code = "METHOD_NOT_ALLOWED"
    message = "This path does not take this method."


class Conflict(FiresideError):
    status = 409
    code = "CONFLICT"


class UsernameExists(Conflict):
    code = "USERNAME_EXISTS"
    message = "This user name is taken, or looks like one that is. Choose another."


class GenerationActive(Conflict):
    code = "GENERATION_ACTIVE"
    message = "An answer is being written in this conversation. Wait for it, or cancel it."


class AlreadyAnswered(Conflict):
    code = "ALREADY_ANSWERED"
    message = "Another model has answered this message. POST /chat/retry asks for another version."


class LastAdmin(Conflict):
    code = "LAST_ADMIN"
    message = "The last active administrator can be neither demoted nor disabled."


class RequestTimeout(FiresideError):
    status = 408
    code = "REQUEST_TIMEOUT"
    message = "Timed out while reading the request body."


class BodyTooLarge(FiresideError):
    status = 413
    code = "BODY_TOO_LARGE"
    message = "The request's body is too large."


class QuotaExceeded(FiresideError):
    status = 413
    code = "QUOTA_EXCEEDED"

    def __init__(self, used: int, limit: int) -> None:
        super().__init__(
            f"Your conversations would take {used:,} bytes of the {limit:,} that each user may have."
            " Delete some for good, or ask the administrator to raise user_max_bytes."
        )


class UnsupportedMediaType(FiresideError):
    status = 415
    code = "UNSUPPORTED_MEDIA_TYPE"
    message = "A request's body must be application/json."


class RateLimited(FiresideError):
    status = 429
    code = "RATE_LIMITED"

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds
        super().__init__(f"Too many attempts. Try again in {seconds} s.")

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.seconds)}


class HeadersTooLarge(FiresideError):
    status = 431
    code = "HEADERS_TOO_LARGE"
    message = (
        "The request's headers have more than 16 KiB. Delete the cookies that other programs on this host have set,"
        " then try again."
    )


class ProviderFailed(FiresideError):
    """A model server failed, or said no. `code` says how, `message` says it to the person who asked.

    PROVIDER_UNREACHABLE, PROVIDER_TIMEOUT, PROVIDER_AUTH, PROVIDER_BUSY, PROVIDER_ERROR, MODEL_NOT_FOUND,
    MODEL_NOT_LOADED, MODEL_LOAD_FAILED, CONTEXT_OVERFLOW, EMPTY_ANSWER, ANSWER_CUT_SHORT, ANSWER_TOO_LARGE,
    VISION_UNSUPPORTED.
    """

    status = 502

    def __init__(self, code: str, message: str, detail: str = "") -> None:
        """`detail` may contain addresses, so only administrators see it."""
        self.code = code
        self.detail = detail
        super().__init__(message)


class StorageUnavailable(FiresideError):
    status = 503
    code = "STORAGE_UNAVAILABLE"
    message = "The database cannot be written just now. Nothing was changed."


class Stopping(StorageUnavailable):
    code = StorageUnavailable.code
    message = "Fireside is stopping. Try again when it runs."


class QueryTimeout(FiresideError):
    status = 503
    code = "QUERY_TIMEOUT"
    message = "The search took too long. Use fewer or longer words."


class ConfigError(Exception):
    """A setting is wrong. The message names it; the command line prints it and exits with 2."""
