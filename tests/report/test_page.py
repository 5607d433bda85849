"""One page, whole and harmless, whatever the runs hold."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from sgsd.display import visible
from sgsd.errors import ConfigError
from sgsd.report import grouped, html, load_runs
from sgsd.report import page as pages
from sgsd.report.page import write_report

from .folders import HOSTILE, write_run


class Outline(HTMLParser):
    """Tags with their attributes and the text that follows each, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.texts.append("")

    def handle_endtag(self, tag):
        self.handle_starttag(f"/{tag}", ())

    def handle_data(self, data):
        if self.texts:
            self.texts[-1] += data

    def all(self, tag: str, attribute: str = "") -> list:
        """The attributes of each such tag, or one of them."""
        return [found.get(attribute) if attribute else found for name, found in self.tags if name == tag]

    def text_of(self, wanted: str, **attributes: str) -> str:
        (text,) = [
            text
            for text, (tag, found) in zip(self.texts, self.tags, strict=True)
            if tag == wanted and found == attributes
        ]
        return text


@pytest.fixture(scope="module")
def text(page):
    return page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def outline(text):
    return Outline(text)


def test_the_page_has_every_section_and_is_in_order(outline, text):
    sections = outline.all("section", "id")
    assert sections == ["comparison", "learning", "trouble", "teachers", "items", "rollouts", "configuration"]
    assert outline.all("a", "href") == ["#main", *(f"#{section}" for section in sections)]
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    charts = [attributes for attributes in outline.all("div") if attributes.get("class") == "chart"]
    assert len(charts) == text.count("In words and figures: ") == 7
    assert all(chart["role"] == "img" and len(chart["aria-label"]) > 20 for chart in charts)


def test_nothing_on_the_page_asks_the_network_and_the_policy_admits_its_own_style_and_script_alone(outline):
    for tag, attributes in outline.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name != "style"
            if name in ("src", "href", "action", "poster", "data"):
                assert value.startswith("#") or value == "data:,", (tag, name, value)
    hashes = {
        name: base64.b64encode(hashlib.sha256(outline.text_of(name).encode()).digest()).decode()
        for name in ("script", "style")
    }
    (policy,) = [meta["content"] for meta in outline.all("meta") if "http-equiv" in meta]
    assert policy == (
        f"default-src 'none'; script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def test_what_models_and_banks_say_stays_text(outline, text):
    assert HOSTILE not in text
    assert outline.all("img") == []
    assert "{{ 7 * 7 }}" in text
    traces = json.loads(outline.text_of("script", type="application/json", id="traces"))
    rollout = traces["rollouts"][0]
    assert rollout["tokens"][1] == HOSTILE.replace("\u2028", "⟨U+2028⟩")
    shown = [*rollout["tokens"], *(teacher[part] for teacher in rollout["teachers"] for part in ("skill", "mistake"))]
    assert all(text == visible(text) for text in shown)


def test_configuration_and_notes_are_there(text, runs):
    for name in json.loads((runs[0] / "run.json").read_text())["settings"]:
        assert f'<th scope="row">{name}</th>' in text, name
    assert "Training seeds of SGSD: 0, 1." in text


def test_runs_without_an_evaluation_have_a_page_that_says_so(tmp_path):
    folder = write_run(tmp_path / "run")
    for file in (folder / "evaluations" / "sums").iterdir():
        file.unlink()
    text = write_report([folder], tmp_path / "report.html").read_text()
    assert "No comparison of evaluations: no evaluation of the final checkpoint" in text
    assert "<h3>Evaluations</h3>" not in text


def test_a_chart_that_cannot_be_drawn_is_named_and_the_page_stands(tmp_path):
    """An accuracy of 1e30 had an axis of 1e31 ticks."""
    folder = write_run(tmp_path / "run")
    state = json.loads((folder / "trainer_state.json").read_text())
    for entry in state["log_history"]:
        entry |= {name: 1e30 for name in ("eval_accuracy", "success_rate") if name in entry}
        entry |= {name: "x" for name in ("entropy",) if name in entry}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    (folder / "traces.jsonl").write_text("{}\n")
    text = write_report([folder], tmp_path / "report.html").read_text()
    for said in (
        "Left out: eval_accuracy",
        "entropy, of which no logged value is a finite number",
        "traces.jsonl:1",
    ):
        assert said in text
    assert '<section id="trouble"' in text
    assert '<section id="learning"' not in text


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


@pytest.mark.slow
def test_ten_long_runs_stay_below_six_megabytes(tmp_path):
    folders = [
        write_run(tmp_path / f"{n}", seed=n % 5, teacher=f"t{n // 5}", steps=300, tokens=1000) for n in range(10)
    ]
    assert write_report(folders, tmp_path / "report.html").stat().st_size < 6_000_000


def test_a_page_that_is_too_large_or_has_no_place_is_refused(runs, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_report(runs, tmp_path / "file" / "report.html")
    monkeypatch.setattr(html, "MOST_BYTES", 10_000)
    with pytest.raises(ConfigError, match="too large"):
        write_report(runs, tmp_path / "report.html")


# ---- traced rollouts


def traced(*folders):
    return pages._traced(grouped(load_runs(folders)))


def test_rollouts_are_of_steps_spread_over_training_and_have_their_teachers(runs):
    (group,) = traced(runs[0], runs[3])
    assert (group["label"], group["run"], group["left_out"]) == ("SGSD", "sgsd-1", 0)
    assert [(rollout["step"], rollout["outcome"]) for rollout in group["rollouts"]] == [
        (step, outcome) for step in (1, 11, 21) for outcome in ("success", "failure")
    ]
    teacher = group["rollouts"][0]["teachers"][1]
    assert teacher["line"] == "Signs 1 (suppresses, −0.200)"
    assert teacher["skill"] == "Signs 1. Check the sign of step 1"
    assert teacher["support"] == "−0.200 nats per token: suppresses, polarity negative, weight 0.25"


def test_a_page_has_room_for_so_much_and_says_what_it_leaves_out(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "_MOST_CHARACTERS", 4000)
    (group,) = traced(write_run(tmp_path / "run"))
    assert 0 < len(group["rollouts"]) < 6
    assert len(group["rollouts"]) + group["left_out"] == 6


@pytest.mark.parametrize(("steps", "shown"), [(1, 2), (500, 8)])
def test_short_and_long_runs_have_rollouts(tmp_path, steps, shown):
    (group,) = traced(write_run(tmp_path / "run", steps=steps))
    assert len(group["rollouts"]) == shown
    assert group["rollouts"][0]["step"] == 1


def test_a_number_that_json_cannot_hold_is_none(tmp_path):
    folder = write_run(tmp_path / "run", steps=1)
    lines = [json.loads(line) for line in (folder / "traces.jsonl").read_text().splitlines()]
    for line in lines:
        line["student_logps"][0], line["teachers"][0]["gaps"][1] = -math.inf, math.nan
    (folder / "traces.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (group,) = traced(folder)
    rollout = group["rollouts"][0]
    assert (rollout["student_logps"][0], rollout["teachers"][0]["gaps"][1]) == (None, None)
    json.dumps(group, allow_nan=False)
