"""What a bot keeps: values under keys, for itself, and for each room and person."""

from typing import Any, Final

import msgspec
from twisted.internet.defer import inlineCallbacks

from domaeka.bots.link import Answer, Host, Link
from domaeka.errors import BotTypeError, BotValueError, StorageFull
from domaeka.interfaces import MAX_VALUE_BYTES

#: Keys that are read at a time.
_PAGE_KEYS: Final = 1000


class BotStore:
    """
    Values of a bot, by key: what JSON has, L{None}, true and false, numbers, texts, lists, and
    dicts whose keys are texts.  A tuple comes back as a list.  Bots of one name share their values.

    Each call is awaited, or in a thread C{result()} is called on what it gives.  All raise
    L{StoreError} where the store fails, within 10 s; L{StorageFull}: a key, a value or all of the
    bot is too much; C{ValueError}: an empty key; L{NoServer}: no server serves the bot.
    """

    __slots__ = ("_bot", "_link", "_scope")

    def __init__(self, link: Link, bot: str, scope: str = "") -> None:
        """@param scope: empty, or what keeps the values of a room or a person apart."""
        self._link = link
        self._bot = bot
        self._scope = scope

    def __eq__(self, other: object) -> bool:
        """True for the same values."""
        return isinstance(other, BotStore) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"<BotStore {self._bot!r} {self._scope!r}>"

    @property
    def _key(self) -> tuple[int, str, str]:
        return id(self._link), self._bot, self._scope

    def scoped(self, scope: str) -> "BotStore":
        """The values of the same bot in another scope."""
        return BotStore(self._link, self._bot, scope)

    def get(self, key: str, default: Any = None) -> Answer[Any]:
        """The value of a key; C{default}: it has none."""

        def begin(host: Host) -> Any:
            return host.values.get(self._bot, self._scope, key).addCallback(decoded)

        def decoded(value: bytes | None) -> Any:
            return default if value is None else msgspec.json.decode(value)

        return self._link.ask("store.get()", begin, self._scope)

    def set(self, key: str, value: Any) -> Answer[None]:
        """
        Store a value, as it is now.

        @raise TypeError: it is no JSON.
        """
        text = encoded(value)
        return self._link.ask(
            "store.set()",
            lambda host: host.values.set(self._bot, self._scope, key, text),
            self._scope,
        )

    def delete(self, key: str) -> Answer[bool]:
        """Remove a key and its value.  @return: True if there was one."""
        return self._link.ask(
            "store.delete()",
            lambda host: host.values.delete(self._bot, self._scope, key),
            self._scope,
        )

    def incr(self, key: str, by: int | float = 1) -> Answer[int | float]:
        """
        Add to a number, with nobody between; a key without a value counts as 0.

        @return: the new number.
        @raise TypeError: the value, or C{by}, is no number.
        """
        return self._link.ask(
            "store.incr()",
            lambda host: host.values.incr(self._bot, self._scope, key, by),
            self._scope,
        )

    def keys(self, prefix: str = "") -> Answer[list[str]]:
        """All keys that begin with C{prefix}, in the order of their code points."""
        if not isinstance(prefix, str):
            raise BotTypeError(f"prefix: a text, not {type(prefix).__name__}")
        return self._link.ask("store.keys()", lambda host: self._keys(host, prefix), self._scope)

    @inlineCallbacks
    def _keys(self, host: Host, prefix: str) -> Any:
        found: list[str] = []
        while True:
            after = found[-1] if found else None
            page = yield host.values.keys(self._bot, self._scope, prefix, after, _PAGE_KEYS)
            found += page
            if len(page) < _PAGE_KEYS:
                return found


def encoded(value: object) -> bytes:
    """
    JSON of a value.

    @raise TypeError: it is no JSON, or has something in it that is none.
    @raise ValueError: it is too deep, or a text in it cannot be stored.
    @raise StorageFull: it is too long.
    """
    try:
        text = msgspec.json.encode(value)
        if len(text) > MAX_VALUE_BYTES:
            raise StorageFull(f"a value has {MAX_VALUE_BYTES} bytes of JSON at most")
        # More than JSON can be written as JSON, and would come back as something else.
        if msgspec.json.decode(text) != value:
            _check(value)
    except RecursionError:
        raise BotValueError("a value is too deep") from None
    except (OverflowError, UnicodeEncodeError):
        raise BotValueError("a value has a number or a character that JSON cannot have") from None
    except TypeError as error:
        if isinstance(error, BotTypeError):
            raise
        raise BotTypeError(f"a value is no JSON: {type(value).__name__}") from None
    return text


def _check(value: object) -> None:
    """@raise TypeError: something in C{value} is no JSON."""
    if isinstance(value, dict):
        for name, each in value.items():
            if not isinstance(name, str):
                raise BotTypeError(f"a value is no JSON: a key is a text, not {_kind(name)}")
            _check(each)
    elif isinstance(value, list | tuple):
        for each in value:
            _check(each)
    elif isinstance(value, float):
        if value - value != 0.0:
            raise BotTypeError("a value is no JSON: a number is not finite")
    elif value is not None and not isinstance(value, str | int):
        raise BotTypeError(f"a value is no JSON: {_kind(value)}")


def _kind(value: object) -> str:
    return type(value).__name__
