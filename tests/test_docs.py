"""What the site says of the package, what pages outside it link to, and whom the citation names."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest
import yaml

import sgsd
from sgsd import SGSDTrainer, errors, verifiers
from sgsd.trainers import config, methods

ROOT = Path(__file__).parents[1]
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
DOCUMENTED = re.findall(r"^\.\. (?:auto\w+|data):: ([\w.]+)", API, re.MULTILINE)


def named(path: str) -> object:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("path", DOCUMENTED)
def test_what_the_api_page_lists_is_there_and_has_a_docstring_of_its_own(path):
    value = named(path)
    if isinstance(value, str):  # the version
        return
    doc = vars(value)["__doc__"] if inspect.isclass(value) else value.__doc__
    assert doc, path
    assert not doc.startswith(f"{path.rpartition('.')[2]}("), f"{path} has the docstring that dataclasses make"


def test_every_public_name_is_on_the_api_page():
    assert {f"sgsd.{name}" for name in sgsd.__all__} <= set(DOCUMENTED)
    listed = [named(path) for path in DOCUMENTED]
    classes = [one for one in vars(config).values() if inspect.isclass(one) and one.__module__ == config.__name__]
    refusals = [one for name in errors.__all__ if inspect.isclass(one := getattr(errors, name))]
    judging = [getattr(verifiers, name) for name in verifiers.__all__]
    public = [*classes, *methods.TRAINERS.values(), *refusals, *judging]
    assert [one.__name__ for one in public if one not in listed] == []


@pytest.mark.parametrize("page", sorted(path.name for path in ROOT.glob("*.md")))
def test_pages_outside_the_site_link_to_files_that_are_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_test_that_a_page_names_is_there():
    named = []
    for page in sorted((ROOT / "docs").glob("*.md")):
        file = ""
        for path, name in re.findall(r"`(tests/[\w/]+\.py)?(?:::(test_\w+))?`", page.read_text(encoding="utf-8")):
            file = path or file
            named += [(page.name, file, name)] if path or name else []
    assert sum(page == "security.md" for page, _, _ in named) > 60
    sources = {file: (ROOT / file).read_text(encoding="utf-8") for _, file, _ in named}
    assert [one for one in named if one[2] and f"def {one[2]}(" not in sources[one[1]]] == []


def test_the_citation_names_the_papers_authors_and_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    paper = citation["preferred-citation"]
    authors = " and ".join(f"{one['family-names']}, {one['given-names']}" for one in paper["authors"])
    assert f"{{{authors}}}" in SGSDTrainer._paper["citation"]
    assert paper["title"] == SGSDTrainer._paper["title"]
    assert citation["version"] == sgsd.__version__
