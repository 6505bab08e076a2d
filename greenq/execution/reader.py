"""The careful reader, for messages that the fast reader cannot handle and for remote commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from greenq.protocol import compress, envelope
from greenq.protocol.limits import check_json, most_raw
from greenq.protocol.message import decode

if TYPE_CHECKING:
    from greenq.config.settings import TaskConfig
    from greenq.protocol.message import TaskMessage


class MessageReader:
    """Reads messages of the formats that this worker's settings accept."""

    def __init__(self, config: TaskConfig, accept: frozenset[str]) -> None:
        """Accept the content types in `accept`."""
        self._accept = accept
        self._accept_compression = compress.accepted(
            *config.accept_compression, config.task_compression
        )
        self._max_body_bytes = config.task_max_body_bytes
        self._max_raw_bytes = most_raw(config.task_max_body_bytes)

    def read(self, raw: bytes) -> TaskMessage:
        """Read a message.

        Raises:
            DecodeError, ContentDisallowed: the message is not a task call that this worker accepts.
        """
        return self.decode(self.unwrap(raw))

    def unwrap(self, raw: bytes) -> envelope.Envelope:
        """Read the envelope of a message; raises DecodeError."""
        check_json(raw, self._max_raw_bytes, "the message")
        return envelope.unwrap(raw)

    def decode(self, unwrapped: envelope.Envelope) -> TaskMessage:
        """Read the contents of an envelope; raises DecodeError or ContentDisallowed."""
        return decode(
            unwrapped,
            accept=self._accept,
            max_body_bytes=self._max_body_bytes,
            accept_compression=self._accept_compression,
        )
