"""Templates, content security policy and writer of all pages. A page is one HTML file and needs no network.

Texts in a page cannot do harm: Jinja escapes them, and control characters are made visible. The content security policy
in the template allows only the page's own style and script, by their hash, and no connections.
"""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sgsd import runfolder
from sgsd.display import visible
from sgsd.errors import ConfigError

MOST_BYTES = 6_000_000


def environment() -> Environment:
    """The Jinja environment of the package's templates. It escapes all texts; a missing value is an error."""
    return Environment(
        loader=PackageLoader("sgsd.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )


def _shown(value: object) -> object:
    return visible(value) if type(value) is str else value  # not Markup, which is the package's own


def own_text(environment: Environment, *names: str) -> Markup:
    """The package's style sheets or scripts of these names, joined, without escaping."""
    return Markup("".join(environment.get_template(name).render() for name in names))


def digest(text: str) -> str:
    """The hash of a style or script in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def write(output: Path, page: str, what: str, remedy: str | None = None) -> Path:
    """Write the page atomically.

    Args:
        output: file to write; missing folders are made.
        page: text of the page.
        what: name of the page in errors.
        remedy: of the error for a page that is too large.

    Returns:
        ``output``.

    Raises:
        ConfigError: the page is larger than ``MOST_BYTES`` or cannot be written.
    """
    if (size := len(page.encode())) > MOST_BYTES:
        raise ConfigError(f"{what} is too large", got=f"{size} bytes", expected=f"{MOST_BYTES}", remedy=remedy)
    try:
        runfolder.write_text(output, page)
    except OSError as error:
        raise ConfigError(f"{what} cannot be written", got=f"{output} ({error.strerror})") from error
    return output


def is_own(file: Path) -> bool:
    """Whether a file is a page of this package, by the generator in its head."""
    if not os.path.isfile(file):
        return False
    with file.open("rb") as opened:
        return b'<meta name="generator" content="sgsd' in opened.read(1 << 12)
