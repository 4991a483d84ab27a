"""
Documentation of the settings, made from L{domaeka.config}: docs/settings.md, and the commented
file that C{domaeka init} writes.

C{python -m domaeka.settings_docs} writes both anew, in a checkout.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from textwrap import wrap
from types import MappingProxyType
from typing import Any, Final, get_args

import msgspec

from domaeka.config import SECRET_KEYS, Seconds, is_section, sections

#: Longest line of the commented file, in characters.
_WIDTH: Final = 98
#: The bound that only spans of time have, in seconds.
_LONGEST_SPAN: Final = get_args(Seconds)[1].le

_PAGE: Final = """\
# Settings

Every setting, its default and what it may be. Made from `domaeka/config.py` by
`python -m domaeka.settings_docs`: change it there.

A setting is looked for in four places; a later one stands before an earlier:

1. its default;
2. the file named by `--config`, else `domaeka.toml` in the directory from which the server is
   started, TOML: `[section]`, then `key = value`;
3. the environment: `DOMAEKA_SECTION_KEY`, so `DOMAEKA_SERVER_MAX_CONNECTIONS=500`;
4. the command line: `--set section.key=VALUE`, so `--set server.max_connections=500`; `--port` and
   `--http-port` are short for two of them.

In the environment and on the command line a text is given as it stands, anything else as JSON:
`--set 'limits.allow=["10.0.0.0/8"]'`, `--set socket.nodelay=false`. A key that does not exist, or a
value that it may not have, stops the start with one line that says which and why;
`domaeka check-config` says the same beforehand. `domaeka init` writes a file with all keys
in it, commented out.

A file that nobody has named must be the server's own, or root's, and others must not be able to
write to it: else the start ends with one line, as do the commands, which look for it in the same
way. One that is named by `--config` is taken as it is.

Sizes are in bytes and times in seconds where nothing else is said.

Keys marked with * are secrets. They are best left to `secrets.toml` in the state directory, which
is made at the first start; given on the command line, every user of the machine can read them. A
file with one of them that others than its owner and group may read is refused.
"""

_HEAD: Final = """\
Settings of domaeka.  Each key stands here with its default, commented out: take away the # to \
change it.  docs/settings.md says the same in tables.  `domaeka check-config FILE` says whether \
the server would start with it.
"""


def settings_page() -> str:
    """docs/settings.md."""
    return _PAGE + "\n" + settings_table()


def settings_table() -> str:
    """All settings, in Markdown: for each section a heading, its purpose, and a table."""
    parts = []
    for name, section in sections().items():
        rows = ["| key | default | may be | meaning |", "|---|---|---|---|"]
        for field in msgspec.structs.fields(section):
            if is_section(field.type):
                continue
            key = f"{name}.{field.name}"
            mark = " *" if key in SECRET_KEYS else ""
            cells = (
                f"`{key}`{mark}",
                f"`{_toml(field.default)}`" + (" s" if _is_span(field.type) else ""),
                _allowed(field.type),
                _meaning(field.type),
            )
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        doc = " ".join((section.__doc__ or "").split())
        parts.append(f"## {name}\n\n{doc}\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def commented_config(given: Mapping[str, object] = MappingProxyType({})) -> str:
    """
    A file of settings in TOML with every key, commented out if it is not given.

    @param given: values by C{section.key}.
    """
    lines = _comment(_HEAD)
    for name, section in sections().items():
        doc = " ".join((section.__doc__ or "").split())
        lines += ["", *_comment(doc), f"[{name}]"]
        for field in msgspec.structs.fields(section):
            if is_section(field.type):
                continue
            about = f"{_meaning(field.type)} ({_allowed(field.type)})".replace("`", "")
            value = given.get(f"{name}.{field.name}", field.default)
            mark = "" if value != field.default else "#"
            lines += ["", *_comment(about), f"{mark}{field.name} = {_toml(value)}"]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in wrap(text, _WIDTH, break_on_hyphens=False)]


def _toml(value: Any) -> str:
    """A default in TOML."""
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value, ensure_ascii=False)


def _meaning(kind: Any) -> str:
    text: str = next(meta.description for meta in get_args(kind)[1:] if meta.description)
    return text


def _is_span(kind: Any) -> bool:
    return any(meta.le == _LONGEST_SPAN for meta in get_args(kind)[1:])


def _allowed(kind: Any) -> str:
    """The values that a setting may have, for people."""
    info = msgspec.inspect.type_info(kind)
    while isinstance(info, msgspec.inspect.Metadata):
        info = info.type
    if isinstance(info, msgspec.inspect.LiteralType):
        return ", ".join(f"`{value}`" for value in info.values)
    if isinstance(info, msgspec.inspect.BoolType):
        return "`true`, `false`"
    if isinstance(info, msgspec.inspect.VarTupleType):
        return "texts"
    if isinstance(info, msgspec.inspect.IntType):
        return f"{info.ge} to {info.le}"
    if isinstance(info, msgspec.inspect.FloatType):
        least = f"above {info.gt:g}" if info.gt is not None else f"{info.ge:g}"
        if _is_span(kind):
            return "seconds, " + (least if info.gt is not None else f"{least} or more")
        return f"{least}, below {info.lt:g}" if info.lt is not None else f"{least} to {info.le:g}"
    return "text"


def main() -> None:
    """Write docs/settings.md and etc/domaeka.toml of the checkout that this file is in."""
    root = Path(__file__).resolve().parent.parent
    (root / "docs" / "settings.md").write_text(settings_page(), encoding="utf-8")
    (root / "etc" / "domaeka.toml").write_text(commented_config(), encoding="utf-8")


if __name__ == "__main__":
    main()
