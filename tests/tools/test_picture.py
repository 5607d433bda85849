"""The picture of a certificate is its top, as a PNG."""

from __future__ import annotations

import runpy
import shutil
import struct
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from sgsd.report.certificate import Certificate, write_page
from sgsd.validation import validated

from ..report.certificates import make_certificate

pytest.importorskip("playwright.sync_api")
TOOL = Path(__file__).parents[2] / "tools" / "picture.py"


@pytest.mark.skipif(
    shutil.which("chromium") is None and shutil.which("google-chrome") is None,
    reason="no Chromium; as root, `make browser` installs Debian's",
)
def test_a_certificate_becomes_a_picture_of_its_top_and_another_page_none(tmp_path):
    picture = runpy.run_path(str(TOOL))["picture"]
    page, output = tmp_path / "certificate.html", tmp_path / "certificate.png"
    write_page(validated(TypeAdapter(Certificate), make_certificate(), "certificate"), page)
    picture(page, output)
    kind, width, height = struct.unpack(">8s8xII", output.read_bytes()[:24])
    assert kind == b"\x89PNG\r\n\x1a\n"
    assert width == 1350
    assert 800 < height < 2000
    page.write_text("<p>Nothing here.")
    with pytest.raises(SystemExit, match="not a certificate"):
        picture(page, output)
