"""Take a picture of the top of a certificate, for README, with headless Chromium.

python tools/picture.py runs/demo/certificate.html docs/_static/certificate.png
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

WIDTH, MARGIN, SCALE = 1080, 12, 1.25
"""Width of the page and margin below the picture in CSS pixels; pixels of the picture per CSS pixel."""


def picture(page: Path, output: Path) -> None:
    """Write the part of ``page`` above its section of rules as PNG."""
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=_chromium(), args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(
            viewport={"width": WIDTH, "height": 1000}, color_scheme="light", device_scale_factor=SCALE
        )
        tab.goto(page.resolve().as_uri())
        rules = tab.locator("section:has(#rules)")
        top = rules.bounding_box() if rules.count() else None
        if top is None:
            raise SystemExit(f"{page} is not a certificate: it has no section of rules")
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": top["y"] - MARGIN}
        tab.screenshot(path=output, full_page=True, clip=clip)
        browser.close()


def _chromium() -> str:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        raise SystemExit("no Chromium: as root, `make browser` installs Debian's")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="certificate.html")
    parser.add_argument("output", type=Path, help="a .png")
    options = parser.parse_args()
    picture(options.page, options.output)
