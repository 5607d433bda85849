"""``sgsd eval --regrade``."""

from __future__ import annotations

import json

import pytest

from sgsd.evaluation.run import Evaluation, Sample

ROWS = [
    {"id": "a", "problem": "1?", "answer": "1/2", "response": "It is \\boxed{0.5}", "correct": False},
    {"id": "b", "problem": "2?", "answer": "2", "response": "It is \\boxed{2}", "correct": True},
    {"id": "c", "problem": "3?", "answer": "3", "response": "No idea [at all]", "correct": True},
]


@pytest.fixture
def responses(tmp_path):
    file = tmp_path / "responses.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def test_a_file_of_responses(sgsd, responses, tmp_path):
    result = sgsd("eval", "--regrade", responses)
    assert result.code == 0
    assert "3 responses under verifier math: 2 correct, 1 incorrect, 0 undecided" in result.out
    assert "1 of 3 (33.33 %) agree with the stored verdict; 1 now correct, 1 no longer correct" in result.out
    assert "not correct" in result.out
    assert "[at all]" in result.out  # no markup
    assert "1 more: --show 2" in sgsd("eval", "--regrade", responses, "--show", "1").out


def test_json_lists_every_disagreement(sgsd, responses):
    document = json.loads(sgsd("eval", "--regrade", responses, "--verifier", "exact", "--json").out)
    assert document["verifier"] == "exact"
    assert [row["id"] for row in document["disagreements"]] == ["c"]
    assert document["agreement"] == pytest.approx(2 / 3)


def test_output_holds_all_verdicts(sgsd, responses, tmp_path):
    out = tmp_path / "out"
    assert sgsd("eval", "--regrade", responses, "--output", out).code == 0
    kept = {name: (out / name).read_text().splitlines() for name in ("disagreements.jsonl", "verdicts.jsonl")}
    assert [json.loads(line)["id"] for line in kept["disagreements.jsonl"]] == ["a", "c"]
    assert len(kept["verdicts.jsonl"]) == 3
    assert json.loads((out / "summary.json").read_text())["agreed"] == 1
    refused = sgsd("eval", "--regrade", responses, "--output", out)
    assert refused.code == 2
    assert "not empty" in refused.error
    assert sgsd("eval", "--regrade", responses, "--output", out, "--force").code == 0


def test_refusals(sgsd, responses, tmp_path):
    assert "gone.jsonl (No such file or directory)" in sgsd("eval", "--regrade", tmp_path / "gone.jsonl").error
    assert "samples nothing" in sgsd("eval", "some/model", "--regrade", responses).error
    assert "--show: out of range" in sgsd("eval", "--regrade", responses, "--show", "-1").error
    assert "unknown verifier" in sgsd("eval", "--regrade", responses, "--verifier", "mth").error
    for flag, value in (("--dataset", "rows.jsonl"), ("--samples", "4"), ("--lm_eval", "x")):
        refused = sgsd("eval", "--regrade", responses, flag, value)
        assert (refused.code, f"{flag} has no effect with --regrade" in refused.error) == (2, True)
    assert (
        "--show has no effect without --regrade" in sgsd("eval", tmp_path, "--dataset", responses, "--show", "3").error
    )
    row = {"response": "2", "answer": "2", "answer_format": ["number"]}
    (tmp_path / "odd.jsonl").write_text(json.dumps(row) + "\n")
    assert "odd.jsonl:1" in sgsd("eval", "--regrade", tmp_path / "odd.jsonl").error


def test_nothing_of_the_old_verifier_is_left_in_the_summary(sgsd, tmp_path, monkeypatch):
    """A reward function extracts no answers: maj@k stayed, and the options of math."""
    samples = [
        Sample(f"p{place // 2}", place % 2, "It is \\boxed{5}", 3, "end", "correct", None, "5", "5?", "5")
        for place in range(4)
    ]
    options = {"timeout": 9}
    Evaluation(tuple(samples), 2).save(tmp_path / "old", model="m", seed=3, verifier="math", verifier_options=options)
    (tmp_path / "own_reward.py").write_text("def wrong(completions, **_):\n    return [0.0] * len(completions)\n")
    monkeypatch.syspath_prepend(tmp_path)

    def regraded(verifier: str) -> dict:
        out = tmp_path / verifier.partition(":")[0]
        assert sgsd("eval", "--regrade", tmp_path / "old", "--verifier", verifier, "--output", out).code == 0
        return json.loads((out / "summary.json").read_text())

    summary = regraded("own_reward:wrong")
    assert (summary["model"], summary["seed"], summary["verifier_options"]) == ("m", 3, {})
    assert summary["pass@2"] == summary["accuracy"] == 0
    assert not [name for name in summary if name.startswith("maj@")]
    summary = regraded("math")
    assert (summary["maj@2"], summary["verifier_options"]) == (1.0, options)


def test_a_regraded_evaluation_does_not_pass_for_the_one_it_replaced(sgsd, tiny_folder, problems, tmp_path):
    """``sgsd eval`` showed the other verifier's accuracy as its own."""
    flags = ("--dataset", problems, "--verifier", "exact", "--max_completion_length", "2", "--samples", "2")
    for name in ("one", "two"):
        assert sgsd("eval", tiny_folder, *flags, "--output", tmp_path / name).code == 0
    regrade = ("eval", "--regrade", tmp_path / "one", "--verifier", "math", "--output", tmp_path / "two", "--force")
    assert sgsd(*regrade).code == 0
    again = sgsd("eval", tiny_folder, *flags, "--output", tmp_path / "two")
    assert (again.code, "whose settings are unknown" in again.error) == (2, True)
    assert sgsd("compare", tmp_path / "two").code == 0


def test_the_stored_responses_of_several_projects(sgsd, shared_data):
    """Every one of 1,088 real model outputs; the one disagreement is a reference spelled ``10{,}000``."""
    document = json.loads(sgsd("eval", "--regrade", shared_data / "responses.jsonl", "--json").out)
    assert document["with_stored_verdict"] == document["responses"] == 1088
    assert document["agreed"] >= 1087
    assert len(document["disagreements"]) == 1088 - document["agreed"]
    assert sum(own["responses"] for own in document["by_format"].values()) == 1088
