"""One page, whole and harmless, whatever the runs hold."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from sgsd.errors import ConfigError
from sgsd.report import page as module
from sgsd.report import write_report

from .folders import HOSTILE, write_run


class Outline(HTMLParser):
    """Tags in order, headings, ids, and the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.levels, self.ids, self.links, self.scripts = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if re.fullmatch(r"h[1-6]", tag):
            self.levels.append(int(tag[1]))
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag == "a":
            self.links.append(attributes["href"])

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script" and data.strip():
            self.scripts.append((self.tags[-1][1], data))


@pytest.fixture(scope="module")
def text(page):
    return page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def outline(text):
    return Outline(text)


def test_the_page_has_every_section_and_each_has_a_link(outline):
    sections = [attributes["id"] for tag, attributes in outline.tags if tag == "section"]
    assert sections == [
        *("comparison", "learning", "trouble", "teachers", "bank-items", "rollouts", "banks", "configuration"),
        "provenance",
    ]
    assert [link for link in outline.links if link != "#main"] == [f"#{section}" for section in sections]


def test_headings_skip_no_level_and_ids_are_unique(outline):
    assert outline.levels[0] == 1
    assert outline.levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(outline.levels, outline.levels[1:], strict=False))
    assert len(set(outline.ids)) == len(outline.ids)


def test_every_chart_has_words_and_a_table(outline, text):
    charts = [attributes for _, attributes in outline.tags if "chart" in (attributes.get("class") or "").split()]
    assert len(charts) >= 10
    assert all(chart["role"] == "img" and len(chart["aria-label"]) > 20 for chart in charts)
    assert set(json.loads(outline.scripts[0][1])) == {chart["id"] for chart in charts}
    figures = [tag for tag, _ in outline.tags if tag == "figure"]
    assert text.count("In words and figures: ") == len(figures)


def test_nothing_on_the_page_asks_the_network(outline):
    for tag, attributes in outline.tags:
        for name in ("src", "href", "action", "poster", "data"):
            value = attributes.get(name, "")
            assert value.startswith("#") or value in ("", "data:,"), (tag, name, value)
    (policy,) = [attributes["content"] for tag, attributes in outline.tags if "http-equiv" in attributes]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]


def test_the_policy_admits_the_pages_scripts_by_hash(outline):
    (policy,) = [attributes["content"] for tag, attributes in outline.tags if "http-equiv" in attributes]
    own = [text for attributes, text in outline.scripts if "type" not in attributes]
    assert len(own) == 2
    for script in own:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy


def test_what_models_and_banks_say_stays_text(outline, text):
    assert HOSTILE not in text
    assert "img" not in {tag for tag, _ in outline.tags}
    assert not [attributes for tag, attributes in outline.tags if any(name.startswith("on") for name in attributes)]
    assert "{{ 7 * 7 }}" in text
    (traces,) = [data for attributes, data in outline.scripts if attributes.get("id") == "traces"]
    assert json.loads(traces)[0]["tokens"][1] == HOSTILE


def test_the_whole_configuration_is_there(text, runs):
    settings = json.loads((runs[0] / "run.json").read_text())["settings"]
    for name in settings:
        assert re.search(rf'<th scope="row">{name}</th>', text), name


def test_notes_of_the_comparison_are_there(text):
    assert "Training seeds of SGSD: 0, 1." in text


def test_runs_without_an_evaluation_have_a_page_that_says_so(tmp_path):
    folder = write_run(tmp_path / "run")
    for file in (folder / "evaluations" / "sums").iterdir():
        file.unlink()
    text = write_report([folder], tmp_path / "report.html").read_text()
    assert "No comparison of evaluations: no evaluation of the final checkpoint" in text
    assert 'id="methods"' not in text


def test_an_evaluation_without_a_run_is_in_the_comparison_alone(tmp_path):
    run, other = write_run(tmp_path / "run", seed=3), write_run(tmp_path / "other", accuracy=0.3)
    base = tmp_path / "base"
    (other / "evaluations").rename(base)
    for summary in base.glob("*/summary.json"):
        about = json.loads(summary.read_text())
        del about["step"]
        summary.write_text(json.dumps(about | {"model": "tiny", "seed": 0}))
    text = write_report([run, base], tmp_path / "report.html").read_text()
    assert "difference to Base" in text
    assert "1 run of 1 setting" in text


def test_ten_long_runs_stay_below_six_megabytes(tmp_path):
    folders = [
        write_run(tmp_path / f"{n}", seed=n % 5, teacher=f"t{n // 5}", steps=300, tokens=1000) for n in range(10)
    ]
    assert write_report(folders, tmp_path / "report.html").stat().st_size < 6_000_000


def test_a_page_that_would_be_too_large_is_refused(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 10_000)
    with pytest.raises(ConfigError, match="too large"):
        write_report(runs, tmp_path / "report.html")


def test_a_place_that_cannot_be_written_is_refused_in_one_line(runs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_report(runs, tmp_path / "file" / "report.html")
