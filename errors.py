"""The errors of Fireside, each with an HTTP status and an error code.

Messages are for people. They contain no secret, no stack trace and no text of a library.
"""


class FiresideError(Exception):
    status = 500
    code = "INTERNAL_ERROR"
    message = "Internal error. See fireside.log in the data directory."
    headers: dict[str, str] = {}  # noqa: RUF012 (replaced, never changed)

    def __init__(self, message: str | None = None) -> None:
        if message is not None:
            self.message = message
        super().__init__(self.message)


class Invalid(FiresideError):
    status = 400
    code = "VALIDATION_ERROR"
    message = "The request is not valid."


class InvalidInvite(Invalid):
    code = "INVALID_INVITE"
    message = "This invite is not valid. It was used, was revoked, has expired or never existed."


class ImportUnreadable(Invalid):
    code = "IMPORT_UNREADABLE"

    def __init__(self, reasons: list[str]) -> None:
        shown = [reason.removesuffix(".") for reason in reasons[:3]]
        more = [f"and {len(reasons) - 3:,} more"] if len(reasons) > 3 else []
        head = "Nothing in the file can be imported. " if len(reasons) > 1 else ""
        super().__init__(f"{head}{'; '.join(shown + more)}.")


class NoUserMessage(Invalid):
    code = "NO_USER_MESSAGE"
    message = "The conversation has no user message to answer."


class AuthRequired(FiresideError):
    status = 401
    code = "AUTH_REQUIRED"
    message = "Sign in first."


class InvalidCredentials(AuthRequired):
    code = "INVALID_CREDENTIALS"
    message = "The name or the password is wrong."


class InvalidToken(AuthRequired):
    code = "INVALID_TOKEN"
    message = "The token is missing. Send it as: Authorization: Bearer fs_..."


class Forbidden(FiresideError):
    status = 403
    code = "FORBIDDEN"
    message = "Only an administrator may do this."


class CsrfInvalid(Forbidden):
    code = "CSRF_INVALID"
    message = "The X-CSRF-Token header is missing or wrong. GET /auth/me returns the right one."


class HostNotAllowed(Forbidden):
    code = "HOST_NOT_ALLOWED"
    message = "This host name is not allowed. To allow it, add it to allowed_hosts in config.toml."


class OriginNotAllowed(Forbidden):
    code = "ORIGIN_NOT_ALLOWED"
    message = "Requests from this origin are not allowed. To allow it, add it to allowed_origins in config.toml."


class BootstrapDisabled(Forbidden):
    code = "BOOTSTRAP_DISABLED"
    message = "The first account already exists. Sign in instead."


class InvalidBootstrapToken(Forbidden):
    code = "INVALID_BOOTSTRAP_TOKEN"
    message = "The bootstrap token is missing or wrong. Open the link that Fireside printed in its terminal."


class NotFound(FiresideError):
    """NotFound("conversation") is 404 CONVERSATION_NOT_FOUND."""

    status = 404

    def __init__(self, thing: str) -> None:
        self.code = f"{thing.upper()}_NOT_FOUND"
        super().__init__(f"There is no such {thing}.")


class MethodNotAllowed(FiresideError):
    status = 405
    code = "METHOD_NOT_ALLOWED"
    message = "This path does not allow this HTTP method."


class Conflict(FiresideError):
    status = 409
    code = "CONFLICT"


class UsernameExists(Conflict):
    code = "USERNAME_EXISTS"
    message = "This name is taken, or looks like one that is taken. Choose another."


class NameExists(Conflict):
    code = "NAME_EXISTS"

    def __init__(self, thing: str) -> None:
        super().__init__(f"You have a {thing} with this name. Choose another name.")


class AttachmentNotReady(Conflict):
    code = "ATTACHMENT_NOT_READY"

    def __init__(self, name: str, status: str) -> None:
        reasons = {
            "reading": "is still being read. Wait a moment, then send it again.",
            "encrypted": "is encrypted. Enter its password, or remove it from the message.",
        }
        super().__init__(f"{name} {reasons.get(status, 'could not be read. Remove it from the message.')}")


class GenerationActive(Conflict):
    code = "GENERATION_ACTIVE"
    message = "An answer is being generated in this conversation. Wait for it or cancel it."


class AlreadyAnswered(Conflict):
    code = "ALREADY_ANSWERED"
    message = "Another model has answered this message. Use POST /chat/retry for another version."


class Canceled(Invalid):
    code = "CANCELED"
    message = "The answer was stopped in Fireside."


class LastAdmin(Conflict):
    code = "LAST_ADMIN"
    message = (
        "The last active administrator cannot be demoted, disabled or deleted."
        " Make another user an administrator first."
    )


class OwnAccount(Conflict):
    code = "OWN_ACCOUNT"
    message = "This is your own account. Change its password or delete it under Settings, Account."


class UserDisabled(Conflict):
    code = "USER_DISABLED"
    message = "This user is disabled. Enable the user first."


class ProviderExists(Conflict):
    code = "PROVIDER_EXISTS"

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} has this address already.")


class ProviderFixed(Conflict):
    code = "PROVIDER_FIXED"

    def __init__(self, source: str) -> None:
        place = "config.toml" if source == "config.toml" else "environment variables"
        super().__init__(f"This model server is set by {place}. Change it there, and restart Fireside.")


class RequestTimeout(FiresideError):
    status = 408
    code = "REQUEST_TIMEOUT"
    message = "Timed out while reading the request body."


class BodyTooLarge(FiresideError):
    status = 413
    code = "BODY_TOO_LARGE"

    def __init__(self, limit: int) -> None:
        super().__init__(f"The request body must be at most {limit:,} bytes.")


class QuotaExceeded(FiresideError):
    status = 413
    code = "QUOTA_EXCEEDED"

    def __init__(self, used: int, limit: int) -> None:
        super().__init__(
            f"Your conversations would use {used:,} bytes; each user may use {limit:,}."
            " Delete some for good, or ask the administrator to raise user_max_bytes."
        )


class UnsupportedMediaType(FiresideError):
    status = 415
    code = "UNSUPPORTED_MEDIA_TYPE"
    message = "The request body must be application/json."


class RateLimited(FiresideError):
    status = 429
    code = "RATE_LIMITED"

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds
        self.headers = {"Retry-After": str(seconds)}
        super().__init__(f"Too many attempts. Try again in {seconds} s.")


class TooManyReaders(FiresideError):
    status = 429
    code = "TOO_MANY_READERS"
    message = "This answer is being read by too many clients. Close some of them."


class HeadersTooLarge(FiresideError):
    status = 431
    code = "HEADERS_TOO_LARGE"
    message = (
        "The request headers are larger than 16 KiB. Delete the cookies that other programs on this host have set,"
        " then try again."
    )


class ProviderFailed(FiresideError):
    """A model server failed or refused a request, with one of these codes:

    PROVIDER_UNREACHABLE, PROVIDER_TIMEOUT, PROVIDER_AUTH, PROVIDER_BUSY, PROVIDER_ERROR, MODEL_NOT_FOUND,
    MODEL_NOT_LOADED, MODEL_LOAD_FAILED, CONTEXT_OVERFLOW, EMPTY_ANSWER, ANSWER_CUT_SHORT, ANSWER_TOO_LARGE,
    VISION_UNSUPPORTED.
    """

    status = 502

    def __init__(self, code: str, message: str, detail: str = "", refused_with: int | None = None) -> None:
        """`detail` may contain addresses, so only administrators see it. `refused_with`: the server's own status 400 to 422."""
        self.code = code
        self.detail = detail
        self.refused_with = refused_with
        super().__init__(message)


class StorageUnavailable(FiresideError):
    status = 503
    code = "STORAGE_UNAVAILABLE"
    message = "The database cannot be written at the moment. Nothing was changed."


class Stopping(StorageUnavailable):
    message = "Fireside is stopping. Try again when it is running."


class QueryTimeout(FiresideError):
    status = 503
    code = "QUERY_TIMEOUT"
    message = "The search took too long. Use fewer or longer words."


class ConfigError(Exception):
    """A setting is wrong. The message names it; the command line prints the message and exits with status 2."""
