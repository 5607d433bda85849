"""The tree of docs/architecture.md is the package's, and its dependencies are those declared."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import sgsd

PACKAGE = Path(sgsd.__file__).parent
ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
SUMMARISED = {"cli"}  # "one per command"


def test_the_tree_names_every_module_and_no_other():
    tree = PAGE.read_text(encoding="utf-8").split("```\nsrc/sgsd/\n")[1].split("```")[0]
    named, folder = set(), ""
    for line in tree.splitlines():
        names = re.match(r"( *)((?:[\w/]+(?:\.py|/),? )*[\w/]+(?:\.py|/))(?: |$)", line)
        assert names, f"no module or folder: {line!r}"
        for name in names[2].split(", "):
            if name.endswith("/"):
                folder = name if len(names[1]) == 2 else folder
            else:
                named.add(name if len(names[1]) == 2 else folder + name)
    modules = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    counted = {name for name in modules if name.split("/")[0] not in SUMMARISED}
    assert {name for name in named if name.split("/")[0] not in SUMMARISED} == counted
    assert named <= modules


def test_every_direct_dependency_says_why():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    table = PAGE.read_text(encoding="utf-8").split("| dependency |")[1]
    named = {name for row in re.findall(r"^\| ([\w, -]+) \|", table, re.MULTILINE) for name in row.split(", ")}
    declared = {re.match(r"[\w-]+", text)[0].lower() for text in project["dependencies"]}
    assert {name for name in named if not name.startswith("-")} == declared
