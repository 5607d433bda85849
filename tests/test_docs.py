"""What the site says of the package, what pages outside it link to, and whom the citation names."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from pathlib import Path

import pytest
import yaml
from trl import GRPOConfig

import sgsd
from sgsd import SGSDTrainer, errors, verifiers
from sgsd.cli.settings import RunArguments
from sgsd.trainers import config, methods

ROOT = Path(__file__).parents[1]
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
PAGES = sorted(
    str(path.relative_to(ROOT)) for where in ("", "results/", "docs/**/") for path in ROOT.glob(f"{where}*.md")
)
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


def test_every_setting_has_a_row_and_every_row_a_setting():
    """In the tables of settings.md; those of OPSD alone in training.md."""
    rows = {}
    for page in ("training", "settings"):
        text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
        heads = re.findall(r"^\| (`.*?`) \|", text, re.MULTILINE)
        rows[page] = {name for head in heads for name in re.findall(r"`(\w+)`", head)}
    fields = {name: {one.name for one in dataclasses.fields(kind)} for name, kind in config.CONFIGS.items()}
    of_trl, of_run = ({one.name for one in dataclasses.fields(kind)} for kind in (GRPOConfig, RunArguments))
    own = set().union(*fields.values()) - of_trl
    assert own - (fields["opsd"] - fields["sgsd"]) | of_run <= rows["settings"]
    assert own <= rows["settings"] | rows["training"]
    assert rows["settings"] <= own | of_run | of_trl | {"config"}


@pytest.mark.parametrize("page", PAGES)
def test_no_line_is_longer_than_120_characters_but_tables_and_links(page):
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    told = [line for line in lines if not line.lstrip().startswith("|") and not re.search(r"\]\(|://", line)]
    assert [line for line in told if len(line) > 120] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/")])
def test_a_page_is_read_in_ten_minutes(page):
    """Of 250 words each, without code, equations and tables."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    assert sum(len(line.split()) for line in text.splitlines() if not line.lstrip().startswith("|")) <= 2500


@pytest.mark.parametrize("page", sorted(path.name for path in ROOT.glob("*.md")))
def test_pages_outside_the_site_link_to_files_that_are_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_the_tests_that_a_page_names_are_there(page):
    """A name without a file is in one of those that the page names."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    files = dict.fromkeys(re.findall(r"`(tests/[\w/]+\.py)", text))
    sources = {file: (ROOT / file).read_text(encoding="utf-8") for file in files}
    every = "".join(sources.values())
    named = re.findall(r"(tests/[\w/]+\.py)?::(?:Test\w+::)?(test_\w+)`", text)
    assert len(named) > 50 or page != "security.md"
    assert [name for file, name in named if f"def {name}(" not in (sources[file] if file else every)] == []


def test_the_citation_names_the_papers_authors_and_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    paper = citation["preferred-citation"]
    authors = " and ".join(f"{one['family-names']}, {one['given-names']}" for one in paper["authors"])
    assert f"{{{authors}}}" in SGSDTrainer._paper["citation"]
    assert paper["title"] == SGSDTrainer._paper["title"]
    assert citation["version"] == sgsd.__version__
