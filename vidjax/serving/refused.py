"""Refused, the one exception that a client is told: a status, a code for programs and a sentence for people."""


class Refused(Exception):
    """An answer that is no video: HTTP `status`, a `code` that programs compare, a `message` of one line, and after how
    many seconds to try again, if that helps."""

    def __init__(self, status: int, code: str, message: str, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after

    @property
    def body(self) -> dict[str, dict[str, str]]:
        """What is sent."""
        return {"error": {"code": self.code, "message": self.message}}
