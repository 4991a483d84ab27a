"""Signatures in bytes that are not read as frames: refused lines, halves of lines, lost streams."""

import re
from collections.abc import Iterator
from typing import Final

import msgspec

from domaeka.wire.frames import UNREADABLE, Auth

#: Longest C{auth} that is looked for, in bytes: nine names of 128 characters, some of them escaped.
MAX_AUTH_BYTES: Final = 4096
#: Least characters of a signature that was cut: of the others nobody guesses one.
MIN_SHOWN_CHARS: Final = 16
_begins: Final = re.compile(rb'"auth"\s*+:\s*+\{').finditer
#: A field of an C{auth}: a text, a number or null.
_field: Final = re.compile(
    rb'\s*+("[^"\\]{1,64}")\s*+:\s*+'
    rb'("(?:[^"\\]|\\.)*+"|-?[0-9]{1,20}(?:\.[0-9]{1,20})?(?:[eE][+-]?[0-9]{1,3})?|null|true|false)\s*+[,}]'
).match
_cut_signature: Final = re.compile(rb'\s*+"signature"\s*+:\s*+"([0-9a-f]{0,64})"?\s*+\Z').match
#: Fields that are signed, by their names as they are written, and C{deviceID}.
_SIGNED: Final = frozenset(
    b'"%b"' % name.encode() for name in Auth.__struct_encode_fields__ if name != "version"
)
_decode: Final = msgspec.json.Decoder(Auth).decode


def find_proofs(data: bytes, most: int) -> Iterator[tuple[Auth, str]]:
    """
    Find the C{auth} objects in C{data}, as phones write them: one whose signature is the last
    thing in it may be cut there.

    @param most: most objects that are looked at.
    @return: each with its signature, or the beginning of that.
    """
    for number, begin in enumerate(_begins(data)):
        if number >= most:
            return
        place, end = begin.end(), begin.end() + MAX_AUTH_BYTES
        fields: dict[bytes, bytes] = {}
        while (field := _field(data, place, end)) is not None:
            if field[1] in _SIGNED:
                fields[field[1]] = field[2]
            place = field.end()
            if data[place - 1] == 125:  # "}"
                break
        if (cut := _cut_signature(data, place)) is not None:
            fields[b'"signature"'] = b'"' + cut[1] + b'"'
        try:
            auth = _decode(b"{" + b",".join(b":".join(each) for each in fields.items()) + b"}")
        except UNREADABLE:
            continue
        if len(auth.signature) >= MIN_SHOWN_CHARS and auth.signature.isascii():
            yield auth, auth.signature
