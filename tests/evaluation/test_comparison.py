"""Folders → rows, columns, cells and differences; what is refused; what is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sgsd.errors import ConfigError, DataError
from sgsd.evaluation import compare_runs, mean_estimate, paired_difference
from sgsd.evaluation.recorded import read_member
from sgsd.evaluation.statistics import difference_over, mean_over

from .recorded import solved, write_evaluation, write_run


@pytest.fixture
def base(tmp_path) -> Path:
    return write_evaluation(tmp_path / "base", solved(3))


@pytest.fixture
def sgsd(tmp_path) -> Path:
    return write_run(tmp_path / "sgsd", {"sums": solved(6)})


def shares(correct: dict[str, list[bool]]) -> list[float]:
    return [float(np.mean(correct[name])) for name in sorted(correct)]


def test_a_run_and_its_base(tmp_path, base, sgsd):
    table = compare_runs([base, sgsd])
    assert [(column.name, column.problems, column.samples) for column in table.columns] == [("sums", 10, 2)]
    first, second = table.rows
    assert (first.label, second.label, table.baseline) == ("Base", "SGSD", "Base")
    assert (first.cells, first.differences) == ((mean_estimate(shares(solved(3))),), (None,))
    assert second.differences == (paired_difference(shares(solved(3)), shares(solved(6))),)
    assert (second.seeds, second.checkpoints) == ((0,), (100,))
    plain = json.loads(json.dumps(table.to_dict()))
    assert plain["rows"][1]["cells"]["sums"]["mean"] == pytest.approx(0.6)
    assert plain["rows"][1]["differences"]["sums"]["low"] == second.differences[0].low
    assert plain["rows"][0]["differences"]["sums"] is None
    # Problems are paired by id, whatever their order.
    turned = write_run(tmp_path / "turned", {"sums": dict(reversed(solved(3).items()))})
    difference = compare_runs([base, turned]).rows[1].differences[0]
    assert difference == paired_difference(shares(solved(3)), shares(solved(3)))


def test_runs_that_differ_in_seed_paths_and_what_they_log_are_one_row(tmp_path, base):
    folders = [
        write_run(
            tmp_path / f"run-{seed}",
            {"sums": solved(count)},
            seed=seed,
            bank=f"/data/{seed}/bank-seed{seed}.json",
            logging_steps=seed,
            save_steps=9 + seed,
            trace_steps=seed,
        )
        for seed, count in enumerate((4, 6, 8))
    ]
    row = compare_runs([base, *folders]).rows[1]
    assert row.seeds == (0, 1, 2)
    values = [shares(solved(count)) for count in (4, 6, 8)]
    assert row.cells == (mean_estimate(values),)
    assert row.differences == (paired_difference([shares(solved(3))], values),)


def test_a_setting_that_is_none_and_one_that_is_not_recorded_are_the_same(tmp_path):
    """Two groups had one label, and the first was lost."""
    folders = [write_run(tmp_path / "0", {"sums": solved(4)}), write_run(tmp_path / "1", {"sums": solved(6)}, seed=1)]
    record = json.loads((folders[1] / "run.json").read_text())
    record["settings"]["a_later_setting"] = None
    (folders[1] / "run.json").write_text(json.dumps(record))
    (row,) = compare_runs(folders).rows
    assert (row.label, row.seeds) == ("SGSD", (0, 1))


def digests(bank: str = "b", data: str = "d", model: str | None = None) -> dict:
    return {"bank_digest": bank, "data": {"digest": data}, "model_digest": model}


@pytest.mark.parametrize(
    ("setting", "paths", "kept"),
    [
        ("bank", ("a/bank.json", "b/bank.json"), ("a/bank.json", "b/bank.json")),
        ("bank", ("bank.json", "bank.json"), ("bank.json (first)", "bank.json (second)")),
        ("bank", ("x-seed0/bank.json", "y-seed1/bank.json"), ("x-seed*/bank.json", "y-seed*/bank.json")),
        ("dataset", ("/data/a/train.jsonl", "/data/b/train.jsonl"), ("a/train.jsonl", "b/train.jsonl")),
        ("model_name_or_path", ("/m/a/checkpoint-9", "/n/b/checkpoint-9"), ("a/checkpoint-9", "b/checkpoint-9")),
    ],
)
def test_files_of_one_name_are_told_apart_by_what_they_hold(tmp_path, setting, paths, kept):
    """Runs with other banks, data or models in files of one name were seeds of one method."""
    of = {"bank": "bank", "dataset": "data", "model_name_or_path": "model"}[setting]
    folders = [
        write_run(
            tmp_path / str(seed),
            {"sums": solved(count)},
            seed=seed,
            record=digests(**{of: ("first", "second")[seed]}),
            **{setting: path},
        )
        for seed, (path, count) in enumerate(zip(paths, (4, 6), strict=True))
    ]
    rows = compare_runs(folders).rows
    assert [row.label for row in rows] == [f"SGSD, {setting.replace('_', ' ')} {name}" for name in kept]
    assert [row.seeds for row in rows] == [(0,), (1,)]
    for folder in folders:  # of an earlier version
        record = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps({"settings": record["settings"]}))
    assert [(row.label, row.seeds) for row in compare_runs(folders).rows] == [("SGSD", (0, 1))]


def test_one_file_in_two_folders_and_a_file_for_each_seed_are_one_method(tmp_path):
    for name, paths, contents in (
        ("moved", ("/a/bank.json", "/b/bank.json"), ("same", "same")),
        ("built", ("/a/seed0/bank.json", "/b/seed1/bank.json"), ("first", "second")),
    ):
        folders = [
            write_run(
                tmp_path / f"{name}-{seed}", {"sums": solved(4)}, seed=seed, bank=paths[seed], record=digests(content)
            )
            for seed, content in enumerate(contents)
        ]
        assert [(row.label, row.seeds) for row in compare_runs(folders).rows] == [("SGSD", (0, 1))]


def test_untrained_models_in_folders_of_one_name_are_told_apart_by_their_weights(tmp_path):
    folders = [
        write_evaluation(tmp_path / name, solved(5), model=f"/m/{name}/merged", weights=name, seed=seed)
        for seed, name in enumerate(("a", "b"))
    ]
    labels = [row.label for row in compare_runs(folders).rows]
    assert labels == ["merged, model a/merged", "merged, model b/merged"]


def test_trained_methods_are_compared_by_plain_prompts(base, sgsd):
    skilled = write_evaluation(sgsd / "evaluations" / "sums-skills", solved(9), model=str(sgsd), skills_in_prompt=True)
    table = compare_runs([base, sgsd])
    assert [column.name for column in table.columns] == ["sums"]
    assert table.rows[1].cells[0].mean == pytest.approx(0.6)
    assert any(note.startswith(f"{skilled} shows skills in the prompt, and is left out") for note in table.notes)
    shutil.rmtree(sgsd / "evaluations" / "sums")
    with pytest.raises(ConfigError, match=r"final checkpoint: got .* shows skills in the prompt"):
        compare_runs([base, sgsd])
    assert compare_runs([skilled]).rows[0].cells[0].mean == pytest.approx(0.9)


def test_methods_with_the_same_seeds_are_paired_by_seed(tmp_path):
    folders = [
        write_run(tmp_path / f"{method}-{seed}", {"sums": solved((2, 7)[seed] + gain)}, seed=seed, method=method)
        for method, gain, seeds in (("grpo", 0, (0, 1)), ("sgsd", 1, (1, 0)))
        for seed in seeds
    ]
    grpo, sgsd = compare_runs(folders).rows
    before, after = ([shares(solved(count)) for count in counts] for counts in ((2, 7), (3, 8)))
    assert sgsd.differences == (paired_difference(before, after, same_seeds=True),)
    assert grpo.label == "GRPO"


OURS = {"objective": "correction", "teacher": "frozen"}


@pytest.mark.parametrize(
    "labelled",
    [
        {
            "SGSD, teacher live": {"teacher": "live"},
            "SGSD, teacher frozen": {"teacher": "frozen"},
            "GRPO": {"method": "grpo"},
            "GRPO+Skill": {"method": "grpo", "skills_in_prompt": True},
        },
        {
            "SGSD": {"objective": "gated"},
            "GRPO + correction": OURS | {"grpo_weight": 1.0},
            "correction, guided": OURS | {"teacher_guidance": 2.0, "support_baseline": "control"},
            "local support": {"objective": "local"},
        },
    ],
)
def test_each_method_has_its_name_and_what_tells_it_from_others_of_that_name(tmp_path, labelled):
    folders = [write_run(tmp_path / label, {"sums": solved(5)}, **settings) for label, settings in labelled.items()]
    assert [row.label for row in compare_runs(folders).rows] == list(labelled)


def test_base_is_the_model_that_runs_began_with_and_another_has_its_own_name(tmp_path, base, sgsd):
    """An adapter's evaluation was Base."""
    skilled = write_evaluation(tmp_path / "skilled", solved(4), skills_in_prompt=True)
    adapter = write_evaluation(tmp_path / "adapter", solved(5), model="someone/adapter")
    table = compare_runs([skilled, adapter, base, sgsd], baseline="Base")
    assert [row.label for row in table.rows] == ["Base+Skill", "adapter", "Base", "SGSD"]
    table = compare_runs([skilled, base, adapter])
    assert [row.label for row in table.rows] == ["base-model+Skill", "base-model", "adapter"]
    assert table.baseline == "base-model"


def test_several_evaluations_have_a_mean_of_equal_weights(tmp_path):
    few, many = solved(3, of=10), solved(6, of=60, prefix="q")
    for name, correct in (("few", few), ("many", many)):
        write_evaluation(tmp_path / "base" / name, correct)
    better = solved(5, of=10), solved(30, of=60, prefix="q")
    run = write_run(tmp_path / "run", dict(zip(("few", "many"), better, strict=True)))
    table = compare_runs([tmp_path / "base", run])
    assert [(column.name, column.problems) for column in table.columns] == [("few", 10), ("many", 60), ("mean", 70)]
    before, after = [shares(few), shares(many)], list(map(shares, better))
    assert table.rows[0].cells[-1] == mean_over(before)
    assert table.rows[0].cells[-1].mean == pytest.approx((0.3 + 0.1) / 2)
    assert table.rows[1].differences[-1] == difference_over(before, after)


def test_a_name_of_the_hub_with_a_point_is_whole(tmp_path):
    """Two versions of a data set were taken for one and refused."""
    folders = [
        write_evaluation(tmp_path / prefix, solved(3, prefix=prefix), dataset=f"owner/sums-v1.{prefix}")
        for prefix in ("5", "6")
    ]
    assert [column.name for column in compare_runs(folders).columns] == ["sums-v1.5", "sums-v1.6", "mean"]


def test_two_evaluations_of_the_same_problems_have_no_mean(tmp_path):
    run = write_run(tmp_path / "run", {"greedy": solved(5), "sampled": solved(6), "more": solved(2, prefix="q")})
    table = compare_runs([run])
    assert [column.name for column in table.columns] == ["greedy", "more", "sampled"]
    assert "Two evaluations have the same problems: no mean is taken." in table.notes


def test_a_missing_evaluation_leaves_a_hole_and_a_note(base, sgsd):
    write_evaluation(sgsd / "evaluations" / "more", solved(2, prefix="q"), model=str(sgsd))
    table = compare_runs([base, sgsd])
    by_name = dict(zip((column.name for column in table.columns), table.rows[0].cells, strict=True))
    assert by_name["more"] is by_name["mean"] is None
    assert [difference is None for difference in table.rows[1].differences] == [False, True, True]
    assert "Missing of Base, seed 0: more." in table.notes


def test_the_final_checkpoint_unless_another_was_declared(sgsd):
    write_evaluation(sgsd / "evaluations" / "sums-50", solved(9), model=f"{sgsd}/checkpoint-50")
    write_evaluation(sgsd / "checkpoint-50" / "evaluations" / "sums", solved(8), model=f"{sgsd}/checkpoint-50")
    final = compare_runs([sgsd])
    assert (final.rows[0].cells[0].mean, final.rows[0].checkpoints) == (pytest.approx(0.6), (100,))
    assert "Checkpoint: the final one of every run." in final.notes
    assert any("sums-50 is of step 50, not of step 100, and is left out" in note for note in final.notes)
    declared = compare_runs([sgsd], checkpoint=50)
    assert {column.name for column in declared.columns} == {"sums", "sums-50"}
    assert {cell.mean for cell in declared.rows[0].cells[:2]} == {0.8, 0.9}
    assert "Checkpoint: step 50 of every run, as declared." in declared.notes
    with pytest.raises(ConfigError, match="no evaluation of checkpoint 75"):
        compare_runs([sgsd], checkpoint=75)


def test_an_evaluation_elsewhere_belongs_to_the_run_its_model_is(tmp_path, base, sgsd):
    elsewhere = write_evaluation(tmp_path / "elsewhere", solved(7, prefix="q"), model=str(sgsd), dataset="more.jsonl")
    table = compare_runs([base, sgsd, elsewhere])
    assert [row.label for row in table.rows] == ["Base", "SGSD"]
    assert [column.name for column in table.columns] == ["sums", "more", "mean"]
    early = write_evaluation(tmp_path / "early", solved(7), model=f"{sgsd}/checkpoint-50")
    with pytest.raises(ConfigError, match=r"final checkpoint: got .*early is of step 50, not of step 100"):
        compare_runs([early])
    assert compare_runs([early], checkpoint=50).rows[0].label == "SGSD"
    assert compare_runs([sgsd / "evaluations" / "sums"]).rows[0].label == "SGSD"


@pytest.mark.parametrize(
    ("correct", "told", "refusal"),
    [
        (solved(3), {"verifier": "exact"}, "cannot be compared: verifier"),
        (solved(3), {"temperature": 0.6}, "cannot be compared: temperature"),
        (solved(3), {"max_completion_length": 38912}, "cannot be compared: max_completion_length"),
        (solved(3, of=9), {}, "other problems: got 9 and 10, 9 of them in both"),
        (solved(3, k=1), {}, "samples per problem: got 1 and 2"),
    ],
)
def test_evaluations_under_other_conditions_are_refused(tmp_path, sgsd, correct, told, refusal):
    write_evaluation(tmp_path / "other" / "sums", correct, **told)
    with pytest.raises(ConfigError, match=refusal):
        compare_runs([tmp_path / "other", sgsd])


def test_another_text_under_the_same_id_is_another_problem(base, sgsd):
    for folder, text in ((base, "1 + 1?"), (sgsd / "evaluations" / "sums", "1 + 2?")):
        file = folder / "samples.jsonl"
        rows = list(map(json.loads, file.read_text().splitlines()))
        asked = [{"problem": text if row["problem_id"] in ("p-0", "p-1") else "2 + 2?"} for row in rows]
        file.write_text("".join(json.dumps(row | own) + "\n" for row, own in zip(rows, asked, strict=True)))
    with pytest.raises(ConfigError, match="another text or reference answer under the id p-0, and 1 more"):
        compare_runs([base, sgsd])


def test_two_sets_numbered_alike_are_two_sets_and_have_a_mean(tmp_path):
    """Problems of AIME 2025 and HMMT 2025 are both numbered from 1."""
    base = tmp_path / "base"
    for name, right in (("aime", 3), ("hmmt", 5)):
        file = write_evaluation(base / name, solved(right)) / "samples.jsonl"
        rows = [json.loads(line) | {"problem": f"Of {name}?"} for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = compare_runs([base])
    assert [column.name for column in table.columns] == ["aime", "hmmt", "mean"]
    assert not any("same problems" in note for note in table.notes)


def test_a_repetition_is_no_second_seed(tmp_path, sgsd):
    again = write_run(tmp_path / "again", {"sums": solved(5)})
    with pytest.raises(ConfigError, match="the same settings and seed twice"):
        compare_runs([sgsd, again])
    assert compare_runs([sgsd, sgsd]).rows[0].seeds == (0,)


def test_the_baseline_is_a_label_or_a_folder(tmp_path, base, sgsd):
    grpo = write_run(tmp_path / "grpo", {"sums": solved(5)}, method="grpo")
    for wanted in ("grpo", str(grpo)):
        table = compare_runs([base, sgsd, grpo], baseline=wanted)
        assert table.baseline == "GRPO"
        assert [row.differences[0] is None for row in table.rows] == [False, False, True]
    with pytest.raises(ConfigError, match=r"unknown --baseline: got 'SGSE'; expected .*did you mean SGSD"):
        compare_runs([base, sgsd], baseline="SGSE")
    assert compare_runs([sgsd]).baseline is None


def test_notes(tmp_path, base, sgsd):
    """What a reader should know, and nothing of what is not so."""
    plain = compare_runs([base, sgsd]).notes
    assert plain == (
        "Checkpoint: the final one of every run.",
        "One seed: SGSD. Such an interval says nothing of other seeds.",
    )
    other = write_evaluation(tmp_path / "other", solved(3), model="other-model", engine="vllm", verifier_options={})
    longer = write_run(tmp_path / "longer", {"sums": solved(7)}, method="grpo", dataset="/data/train.jsonl")
    (longer / "trainer_state.json").write_text(json.dumps({"global_step": 200}))
    about = {"model": str(sgsd), "skills_in_prompt": True, "dataset": "q.jsonl"}
    skilled = write_evaluation(tmp_path / "skilled", solved(7, prefix="q"), **about)
    again = write_evaluation(tmp_path / "again", solved(5), model="other-model", engine="vllm", seed=1)
    notes = compare_runs([other, sgsd, longer, skilled, again]).notes
    assert "The runs ended at different steps. SGSD: 100; GRPO: 200." in notes
    assert "Sampling seeds of other-model: 0, 1." in notes
    assert "One seed: SGSD; GRPO. Such an interval says nothing of other seeds." in notes
    assert "SGSD was evaluated with skills in the prompt: q." in notes
    assert "Evaluation sums was made with different settings. engine: None, vllm." in notes
    assert "The models differ. other-model: other-model; SGSD: base-model; GRPO: base-model." in notes
    assert "Whether train.jsonl holds test problems: sgsd contamination --train … --test …" in notes
    (said,) = (note for note in notes if "differences" in note)
    assert said.startswith("2 differences without a correction")
    assert said.endswith("in up to 10 % of such tables.")


def test_an_evaluation_may_lie_in_the_root_folder(base, monkeypatch):
    monkeypatch.setattr(Path, "resolve", lambda path: Path("/", path.name))
    assert compare_runs([base]).rows[0].label == "base-model"


def test_what_cannot_be_read_is_refused(tmp_path, base):
    with pytest.raises(ConfigError, match=r"no such folder: got .*nowhere; expected one of sgsd train or sgsd eval$"):
        compare_runs([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="neither a run nor an evaluation"):
        compare_runs([tmp_path / "empty"])
    with pytest.raises(ConfigError, match="nothing to compare"):
        compare_runs([])
    lines = (base / "samples.jsonl").read_text().splitlines()
    (base / "samples.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(DataError, match="samples are missing"):
        compare_runs([base])
    gone = write_evaluation(tmp_path / "gone", solved(3), model="runs/first/checkpoint-100")
    with pytest.raises(ConfigError, match="a trained model whose run is missing"):
        compare_runs([gone])
    moved = write_evaluation(tmp_path / "moved", solved(3), model="runs/first", trained_by="grpo")
    with pytest.raises(ConfigError, match=r"a trained model whose run is missing: got .*moved, of runs/first"):
        compare_runs([moved])


def test_an_evaluation_of_the_base_in_a_runs_folder_is_not_the_runs(tmp_path, sgsd):
    write_evaluation(sgsd / "evaluations" / "base", solved(1), model="base-model")
    found = read_member(sgsd, None)
    assert list(found.scores) == ["sums"]
    assert "is of the model before training, and is left out" in " ".join(found.notes)
    alone = read_member(sgsd / "evaluations" / "base", None)
    assert (alone.method, alone.is_trained) == ("base", False)
