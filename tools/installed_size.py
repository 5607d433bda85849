"""Installed size of the package's dependencies, measured in the present environment.

    python tools/installed_size.py              # direct dependencies, each with the distributions that only it needs
    python tools/installed_size.py --extras     # each extra, in addition to the package

A size is that of the files in a distribution's RECORD. Torch and its dependencies are left out, because users choose
their build of torch.
"""

from __future__ import annotations

import argparse
import importlib.metadata
from collections.abc import Iterable

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def needs(name: str, extras: Iterable[str] = ()) -> set[str]:
    """The installed distributions that ``name`` needs, itself included."""
    found: set[str] = set()
    waiting = [(name, frozenset(extras))]
    while waiting:
        at, own = waiting.pop()
        at = canonicalize_name(at)
        try:
            requirements = importlib.metadata.requires(at) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        if at in found and not own:
            continue
        found.add(at)
        for text in requirements:
            one = Requirement(text)
            if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in (*own, "")):
                waiting.append((one.name, frozenset(one.extras)))
    return found


def size(names: Iterable[str]) -> int:
    """Bytes of these distributions' files."""
    files = (file for name in names for file in importlib.metadata.files(name) or ())
    return sum(path.stat().st_size for file in files if (path := file.locate()).is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", action="store_true", help="print the sizes of the extras")
    options = parser.parse_args()
    torch = needs("torch")
    base = needs("sgsd") - torch - {"sgsd"}
    print(f"{'sgsd without extras, beside torch':<44}{size(base) / 1e6:8.1f} MB in {len(base)} distributions")
    if options.extras:
        for extra in importlib.metadata.metadata("sgsd").get_all("Provides-Extra") or []:
            own = needs("sgsd", [extra]) - torch - base - {"sgsd"}
            print(f"{extra:<44}{size(own) / 1e6:8.1f} MB in {len(own)} distributions")
        return
    direct = [Requirement(text) for text in importlib.metadata.requires("sgsd") or []]
    for one in (one for one in direct if one.marker is None):
        others = set().union(
            *(needs(other.name, other.extras) for other in direct if other is not one and other.marker is None)
        )
        own = needs(one.name, one.extras) - torch - others
        print(f"{one.name:<44}{size(own) / 1e6:8.1f} MB of its own, in {len(own)} distributions")


if __name__ == "__main__":
    main()
