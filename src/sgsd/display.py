"""Shows untrusted text: harmless to a terminal, with secrets masked.

Ids, names, completions, columns, file names and servers' replies are untrusted. Errors, logs, lines, tables, bars and
pages show them through ``visible``, JSON through ``json_text``. Only this module calls ``print`` and
``logging.getLogger``.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast
from urllib.parse import urlsplit, urlunsplit

# Zero-width joiners are part of the spelling of Persian words and emoji.
_KEPT = "\t\n\u200c\u200d"
_MARKUP = re.compile(r"[\\`*\[\]<>|&]")
_STYLE = re.compile(r"\x1b\[[\d;]*m")  # colours, which libraries put into their logs
_URL = re.compile(r"\b[a-zA-Z]{1,10}://[^\s'\"]+")
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
_LONGEST = 2_000
_LEAST_SECRET = 6  # characters; shorter keys are placeholders, such as EMPTY or none
SECRETS = frozenset(("hub_token", "push_to_hub_token", "token", "use_auth_token", "api_key"))
"""Names of settings that are never written to a file."""
_secrets: set[str] = set()


def visible(text: str) -> str:
    """The text with secrets masked, and with characters that could steer a terminal, hide text or reorder it shown as
    their code points (``⟨U+202E⟩``).

    These are control characters except tab and line feed, format characters (direction marks, zero-width spaces, tags),
    line and paragraph separators, and lone surrogates, which UTF-8 cannot encode.
    """
    text = masked(text)
    if text.isprintable():
        return text
    return "".join(f"⟨U+{ord(one):04X}⟩" if _is_hidden(one) else one for one in text.replace("\r\n", "\n"))


def one_line(text: str, longest: int = _LONGEST) -> str:
    """The text made visible in one line, with line breaks as ``\\n``; cut after ``longest`` characters."""
    text = masked(text)  # before it is cut, since the beginning of a secret is secret
    shown = "\\n".join(visible(text[:longest]).splitlines())
    return shown if len(text) <= longest else f"{shown}…"


def as_markdown(text: str) -> str:
    """The text in one line of Markdown, such as a cell of a table, with all markup escaped."""
    return _MARKUP.sub(r"\\\g<0>", one_line(text))


def json_text(value: Any) -> str:
    """A JSON document. The characters that ``visible`` replaces are escaped, so that reading gives the same value."""
    written = masked(json.dumps(value, indent=2, ensure_ascii=False))
    return "".join(json.dumps(one)[1:-1] if _is_hidden(one) else one for one in written)


def say(text: str, *, error: bool = False) -> None:
    """Print a text of one or more lines, on standard output or standard error."""
    print(visible(text), file=sys.stderr if error else sys.stdout, flush=True)


def logger(name: str) -> logging.Logger:
    """``logging.getLogger``, with every message made ``visible``."""
    found = logging.getLogger(name)
    found.addFilter(_made_visible)
    return found


class _VisibleRecord(logging.LogRecord):
    def getMessage(self) -> str:  # noqa: N802 - logging's name
        return visible(_STYLE.sub("", super().getMessage()))


def make_libraries_visible() -> None:
    """Make the logs and warnings of all libraries ``visible``: they name tensors, keys and metrics of files."""
    logging.setLogRecordFactory(_VisibleRecord)
    format_warning = warnings.formatwarning
    if not isinstance(format_warning, _VisibleWarning):
        warnings.formatwarning = _VisibleWarning(format_warning)


class _VisibleWarning:
    def __init__(self, original: Callable[..., str]) -> None:
        self._original = original

    def __call__(self, *parts: Any, **named: Any) -> str:
        return visible(self._original(*parts, **named))


def _made_visible(record: logging.LogRecord) -> bool:
    record.msg, record.args = visible(record.getMessage()), None
    return True


def _is_hidden(one: str) -> bool:
    return one not in _KEPT and unicodedata.category(one) in _HIDDEN


# ---- secrets


def keep_secret(text: str) -> None:
    """Mask this text in everything that is shown from now on."""
    if len(text) >= _LEAST_SECRET:
        _secrets.add(text)


def masked(text: str) -> str:
    """The text with ``(key)`` for every secret."""
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, "(key)")
    return text


def without_secrets(value: Any) -> Any:
    """Plain data without the settings of ``SECRETS``, and with URLs as ``public_url`` returns them."""
    if isinstance(value, dict):
        fields = cast(dict[str, Any], value)
        return {
            name: public_url(item) if name.endswith("_url") and isinstance(item, str) else without_secrets(item)
            for name, item in fields.items()
            if name not in SECRETS
        }
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in cast(Sequence[Any], value)]
    if isinstance(value, str) and _URL.match(value):
        return public_url(value)
    return value


def without_credentials(text: str) -> str:
    """The text with every URL in it as ``public_url`` returns it."""
    return _URL.sub(lambda found: public_url(found[0]) if "@" in found[0] or "?" in found[0] else found[0], text)


def public_url(url: str) -> str:
    """The URL without user, password, query and fragment, which may be secrets."""
    try:
        parts = urlsplit(url)
    except ValueError:  # no URL: its user raises the error
        scheme, slashes, rest = url.partition("//")
        return scheme + slashes + rest.rpartition("@")[2].partition("?")[0]
    path = parts.path if parts.netloc else parts.path.rpartition("@")[2]  # without //, as user:password@host
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], path, "", ""))
