"""The certificate: what is read, what the page says in words, and that nothing written in it can do harm."""

from __future__ import annotations

import importlib
import json
import re
import sys

import pytest
from rich.console import Console

from sgsd.errors import ConfigError, DataError
from sgsd.report.certificate import (
    Accuracy,
    add_to_card,
    certificate_table,
    headline,
    read_certificate,
    remarks,
    write_page,
)

from .certificates import VERDICTS, make_certificate

ARITHMETIC = "arithmetic, 39 % right, 40 % before"
GRPO = "GRPO, trained beside it without the document, answers"
PROMPT = "What teachers are shown of the document in the prompt"
GAIN = "The model answers 88 % of held-out tasks right without the document in its prompt, 21 % before"
RULES = "its rules gain in the prompt, as teachers are shown them,"
HOSTILE = " [red]\u202egnp\u2066\u0007\u200b\u2028[/red] </style><img src=x onerror=alert(1)> {{ 7 * 7 }} &"


@pytest.fixture
def read(tmp_path):
    """``read(…)`` a certificate with these numbers."""

    def made(**numbers):
        (tmp_path / "certificate.json").write_text(json.dumps(make_certificate(**numbers)))
        return read_certificate(tmp_path)

    return made


@pytest.fixture
def page(read, tmp_path):
    """``page(…)``: the text of its page."""
    return lambda **numbers: write_page(read(**numbers), tmp_path / "pages" / "certificate.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ({}, f"{GAIN}; 97 % of what {RULES} is kept."),
        ({"with_document": 0.7}, f"{GAIN}; all of what {RULES} is kept."),
        ({"with_document": None}, f"{GAIN}."),
        ({"with_document": 0.22}, f"{GAIN}."),
        ({"after": 0.998}, f"{GAIN.replace('88', 'over 99')}; all of what {RULES} is kept."),
        ({"before": 0.005, "with_document": None}, f"{GAIN.replace('21', 'under 1')}."),  # one task of 200
        ({"after": 0.25}, f"No gain is shown: t{GAIN[1:].replace('88', '25')}, a difference that may be chance."),
        ({"after": 0.1}, f"Training made it worse: t{GAIN[1:].replace('88', '10')}."),
    ],
)
def test_one_sentence_says_what_happened(read, numbers, sentence):
    assert headline(read(**numbers)) == sentence


def test_the_sentence_names_the_document_where_teachers_are_shown_all_of_it(read):
    certificate = read().model_copy(update={"teachers": "document"})
    assert headline(certificate) == f"{GAIN}; 97 % of what the document gains in the prompt is kept."


@pytest.mark.parametrize(
    ("numbers", "place", "sentence"),
    [
        ({"with_document": 0.22}, 0, f"{PROMPT} shows no effect: 22 % right with it, 21 % without."),
        ({"with_document": 0.1}, 0, f"{PROMPT} harms: 10 % right with it, 21 % without."),
        ({"after": 0.2}, 0, f"{PROMPT} does help: 90 % right with it, 21 % without. Training did not gain that."),
        ({}, 0, f"{GRPO} 33 % right."),
        ({"grpo": 0.86}, 0, f"{GRPO} 86 % right: as good, as far as these tasks tell."),
        ({"grpo": 0.99}, 0, f"{GRPO} 99 % right, which is better."),
        ({}, 1, f"No forgetting is shown: {ARITHMETIC}; a loss of up to 9.0 points is not excluded."),
        (
            {"forgotten": -0.076},
            1,
            "No forgetting is shown: arithmetic, 48 % right, 40 % before; a loss of up to 0.4 points is not excluded.",
        ),
        ({"forgotten": 0.2}, 1, "Something was forgotten: arithmetic, 20 % right, 40 % before."),
        ({"forgotten": -0.2}, 1, "Nothing was forgotten: arithmetic, 60 % right, 40 % before."),
        ({"forgotten": None, "grpo": None}, 0, "Rules of the document that harmed: 3 of 12."),
    ],
)  # fmt: skip
def test_honest_sentences_follow(read, numbers, place, sentence):
    assert remarks(read(**numbers))[place] == sentence


@pytest.mark.parametrize(
    ("place", "value", "refusal"),
    [
        (("version",), 2, r"version: cannot be used: got 2"),
        (("accuracy", "after", "accuracy"), 1.2, r"accuracy\.after\.accuracy: cannot be used: got 1\.2"),
        (("accuracy", "after", "ci95"), [0.9, 0.1], r"accuracy\.after\.ci95: .*the lower end first"),
        (("accuracy", "before"), None, r"accuracy\.before: cannot be used: got null"),
        (("differences", "after - before", "mean"), float("nan"), r"after - before\.mean: cannot be used: got NaN"),
        (("rules", 3, "verdict"), "good", r"rules\[3\]\.verdict: .*'earned'"),
        (("answers", 0, "after"), {"correct": True}, r"answers\[0\]\.after\.text is missing"),
        (("extra",), 1, r"unknown key: got 'extra'"),
    ],
)
def test_a_broken_certificate_is_refused_in_one_line(tmp_path, place, value, refusal):
    document = make_certificate()
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    file = tmp_path / "certificate.json"
    file.write_text(json.dumps(document))
    with pytest.raises(DataError, match=refusal) as caught:
        read_certificate(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_certificate_that_is_not_there_or_no_json_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"cannot be read.*certificate\.json"):
        read_certificate(tmp_path)
    (tmp_path / "certificate.json").write_text("{")
    with pytest.raises(DataError, match="malformed JSON"):
        read_certificate(tmp_path)


def test_writing_it_again_gives_the_same_json(read):
    assert read().model_dump(mode="json") == json.loads(json.dumps(make_certificate()))


def test_the_page_has_every_section_in_order_and_each_figure(page):
    text = page()
    assert re.findall(r'<h2 id="(\w+)">', text) == (
        ["accuracy", "saved", "forgotten", "recited", "rules", "answers", "made"]
    )
    for figure in ("88.0 %", "79 to 95 %", "+67.0 points (+59.0 to +75.0)", ">431<", "2,865", "1,234,567", ">−1.0<"):
        assert figure in text
    assert re.findall(r'class="badge (\w+)">\1<', text.partition("</table>")[0]) == [
        verdict for verdict in VERDICTS for _ in range(3)
    ]
    assert "+0.80 (+0.62 to +0.98)" in text
    assert "SKILL.md:5" in text
    assert (text.count(">right<"), text.count(">wrong<"), text.count(">undecided<")) == (19, 19, 2)
    assert "learning_rate 0.0001" in text
    assert "training 9 min 10 s" in text
    assert "total 1 h 5 min" in text
    assert "never" not in text.partition("<h2")[2].partition('id="rules"')[0]
    without_gain = page(after=0.2)
    assert '<p class="big">never</p>' in without_gain
    assert "2,865" not in without_gain


@pytest.mark.parametrize(("teachers", "name"), [("rules", "With its rules"), ("document", "With the document")])
def test_what_stood_in_the_prompt_is_named_as_what_teachers_see(read, tmp_path, teachers, name):
    certificate = read().model_copy(update={"teachers": teachers})
    text = write_page(certificate, tmp_path / "page.html").read_text("utf-8")
    for said in (f"<span>{name}</span>", f"{name} minus before", f"After minus {name.lower()}"):
        assert said in text
    assert name in certificate_table(certificate).columns[0]._cells[1]


def test_a_narrow_interval_has_a_decimal(read, tmp_path):
    certificate = read()
    of_all = {"after": Accuracy(accuracy=1.0, ci95=(0.9962, 1.0)), "grpo": Accuracy(accuracy=0.0, ci95=(0.0, 0.0038))}
    certificate = certificate.model_copy(update={"accuracy": certificate.accuracy.model_copy(update=of_all)})
    text = write_page(certificate, tmp_path / "page.html").read_text("utf-8")
    assert "(99.6 to 100.0 %)" in text
    assert "(0.0 to 0.4 %)" in text


def test_what_was_not_measured_is_left_out_or_said(page, read):
    text = page(with_document=None, grpo=None, forgotten=None)
    assert text.count("Not measured.") == 1
    assert "less GRPO" not in text
    assert "Kept of the gain" not in text


def test_hostile_texts_stay_text_and_hidden_characters_are_named(page):
    text = page(text=HOSTILE)
    assert "<img" not in text
    assert "<script" not in text
    assert text.count("</style>") == 1
    assert "{{ 7 * 7 }}" in text
    assert not set("\u202e\u2066\u0007\u200b\u2028") & set(text)
    assert "⟨U+202E⟩gnp⟨U+2066⟩⟨U+0007⟩⟨U+200B⟩⟨U+2028⟩" in text


def test_long_texts_are_shown_by_beginning_and_end(page):
    text = page(text=" word" * 5000 + " END")
    assert "[…]" in text
    assert "word END</dd>" in text
    assert len(text) < 120_000


def test_the_page_needs_none_of_the_reports_extra(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("sgsd.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ziaplot", None)
    assert importlib.import_module("sgsd.report.certificate").write_page


def test_a_place_that_cannot_be_written_is_refused(read, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="the certificate's page cannot be written"):
        write_page(read(), tmp_path / "file" / "certificate.html")


def test_the_terminal_has_the_same_figures_and_takes_no_text_as_markup(read):
    console = Console(width=100)
    with console.capture() as captured:
        console.print(certificate_table(read(text=HOSTILE)))
    text = captured.get()
    for figure in (f"{GAIN};", "88.0 %", "79 to 95 %", "97.1 %", "431", "2,865", "40.0 %", "−1.0", "−9.0 to +7.0"):
        assert figure in " ".join(text.split())
    assert "[red]⟨U+202E⟩" in text
    assert "\u202e" not in text


def test_the_model_card_tells_the_same_figures_once_and_takes_no_text_as_markup(read, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "README.md").write_text("---\ntags: [sgsd]\n---\n\n# A model\n")
    add_to_card(read(after=0.2), folder)
    add_to_card(read(text=HOSTILE), folder)
    text = (folder / "README.md").read_text()
    assert text.startswith("---\ntags: [sgsd]\n---\n\n# A model\n\n## Certificate\n\n")
    assert text.count("## Certificate") == 1
    assert f"{GAIN};" in text
    for row in ("| After, tasks right | 88.0 % | 79 to 95 % |", "| Requests until training has paid | 2,865 |  |"):
        assert f"\n{row}\n" in text
    assert r"\<img src=x" in text
    assert not re.search(r"(?<!\\)<", text)
    assert "[certificate.json](certificate.json)" in text
    assert read_certificate(folder) == read(text=HOSTILE)
