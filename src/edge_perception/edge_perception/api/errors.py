"""Errors that end a request, and those that keep the gateway from starting."""

from __future__ import annotations

from edge_perception.types import EdgePerceptionError


class GatewayError(EdgePerceptionError):
    """The gateway cannot start."""


class RequestError(EdgePerceptionError):
    """A request cannot be answered.

    Args:
        status: of the HTTP response.
        detail: one line for the client.
        retry_after_s: when to try again, for 503.
    """

    def __init__(self, status: int, detail: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.retry_after_s = retry_after_s
