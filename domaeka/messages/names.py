"""What both directions and both sides share: the dialects, what may be a name, what can be said."""

import re
from datetime import timedelta, timezone
from enum import Enum
from typing import Final

#: Longest bot, version or device name, and longest id, in characters.  Source:
#: docs/protocol.md, "Handshake".
MAX_NAME_CHARS: Final = 128
#: Longest room or sender name, in characters.  Source: docs/protocol.md, "Handshake".
MAX_TITLE_CHARS: Final = 1000

#: Where phones are that do not say where they are.
SEOUL: Final = timezone(timedelta(hours=9), "Asia/Seoul")
#: What begins a 3.2 text that is an order to send files.  Source: docs/protocol.md, "Replies".
IMAGE_ORDER: Final = "IMAGE_BASE64:"
ADDRESS_ORDER: Final = "MEDIA_URL:"
#: Finds a control character (Unicode category Cc).
CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]")


class Dialect(Enum):
    """Which form of chat a connection understands."""

    V32 = "3.2"
    V33 = "3.3"


def is_name(text: object, max_chars: int = MAX_NAME_CHARS) -> bool:
    """Whether C{text} can name a bot, a version or a device; or, of another length, a room."""
    return (
        isinstance(text, str)
        and 0 < len(text) <= max_chars
        and not text.isspace()
        and (text.isprintable() or not CONTROL.search(text))
    )


def sayable(text: str) -> str:
    """C{text} with what UTF-8 cannot say (lone surrogates) replaced."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
