"""The doctor's verdict where the answer is known, its rule over made-up numbers, and what it measures."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from sgsd import runfolder
from sgsd.bank import Mistake, Origin, Skill, SkillBank
from sgsd.bank.documents import read_document
from sgsd.cli import main
from sgsd.cli.console import standard_output
from sgsd.cli.doctor import show_examples
from sgsd.data.sources import load_problems
from sgsd.doctor import Diagnosis, InPrompt, Teachers, area_under_roc, diagnose
from sgsd.engines.models import load_model, load_tokenizer
from sgsd.errors import BankError, ConfigError, DataError, PromptError
from sgsd.evaluation import Estimate
from sgsd.examples import demo
from sgsd.examples.lab.experiment import BankShares, TopicEmbedder, make_bank, questions
from sgsd.examples.lab.language import MAX_COMPLETION
from sgsd.prompts import PromptRenderer
from sgsd.retrieval import BM25Retriever, EmbeddingRetriever
from sgsd.verifiers import Outcome, Verdict, get_verifier

# ---- the rule

NOTHING, RAISED, LOWERED = (0.02, -0.06, 0.10), (0.40, 0.28, 0.52), (-0.15, -0.25, -0.05)
HELPS = {"rules": InPrompt(Estimate(0.4, 0.3, 0.5), Estimate(*RAISED), prompt_tokens=60, truncated=0.0)}
APART, NEARLY, ALIKE = (0.70, 0.56, 0.84), (0.70, 0.54, 0.86), (0.50, 0.40, 0.60)


def measured(success=0.25, difference=NOTHING, auc=ALIKE, truncated=0.0, undecided=0.0, cut=0.0, **changes):
    """A diagnosis of made-up numbers."""
    estimate = None if auc is None else Estimate(*auc)
    shown = InPrompt(Estimate(success, 0, 1), Estimate(*difference), prompt_tokens=60, truncated=cut)
    numbers = {
        "problems": 128,
        "rollouts": 128,
        "greedy_problems": 64,
        "max_new_tokens": 16,
        "success": Estimate(success, 0, 1),
        "greedy_success": Estimate(success, 0, 1),
        "truncated": truncated,
        "undecided": undecided,
        "mean_tokens": 9.0,
        "prompt_tokens": 40,
        "in_prompt": {"rules": shown},
        "too_long": {"document": 300},
        "max_prompt_length": 200,
        "context": "rules",
        "teachers": Teachers(estimate, estimate, 0.4, 0.8, successes=32, failures=96),
        "sampling_seconds": 0.1,
        "scoring_seconds": 0.1,
        "memory_gib": 1,
    }
    return Diagnosis(**numbers | changes)


@pytest.mark.parametrize(
    ("numbers", "verdict", "said", "settings"),
    [
        ({"difference": RAISED}, "go", "+40.0 points (+28.0 to +52.0)", {"teacher_trust": "vouched"}),
        ({"difference": RAISED, "success": 0.0, "auc": None}, "go", "+40.0", {"teacher_context": "rules"}),
        ({"difference": RAISED, "cut": 0.2}, "go", "+40.0", {"max_completion_length": 32}),
        ({"auc": APART, "truncated": 0.2}, "go with these settings", "0.70", {"max_completion_length": 32}),
        ({"auc": APART}, "go with these settings", "0.70 (0.56 to 0.84)", {"teacher_trust": "worth"}),
        ({"auc": APART, "difference": LOWERED}, "go with these settings", "-15.0 points", {"num_generations": 8}),
        ({"auc": NEARLY}, "use GRPO", "0.70 (0.54 to 0.86)", {"method": "grpo"}),
        ({}, "use GRPO", "25.0 %", {"method": "grpo"}),
        ({"auc": None}, "use GRPO", "cannot be told", {"method": "grpo"}),
        ({"difference": LOWERED}, "use GRPO", "-15.0 points", {"method": "grpo"}),
        ({"success": 0.02}, "use GRPO", "2.0 %", {"method": "grpo"}),
        ({"success": 0.01, "auc": APART}, "no", "easier tasks", {}),
        ({"success": 0.92, "auc": APART}, "no", "harder tasks", {}),
        ({"success": 0.92, "difference": (0.05, 0.01, 0.09)}, "go", "+5.0", {"objective": "correction"}),
        ({"success": 0.95, "difference": (0.04, 0.01, 0.07)}, "no", "95.0 %", {}),
        ({"truncated": 0.51, "success": 0.01, "cut": 0.51}, "no", "51% of the rollouts", {"max_completion_length": 32}),
        ({"truncated": 0.51, "success": 0.01}, "no", "with the bank in the prompt, too, where most end", {}),
        ({"truncated": 0.51, "success": 0.01, "in_prompt": HELPS}, "go", "+40.0", {"max_completion_length": 32}),
        ({"truncated": 0.50, "success": 0.01}, "no", "easier tasks", {}),
        ({"truncated": 0.51, "difference": RAISED}, "go", "+40.0", {"teacher_trust": "vouched"}),
        ({"truncated": 0.70, "cut": 0.70}, "use GRPO", "25.0 %", {"max_completion_length": 32}),
        ({"cut": 0.51, "auc": APART}, "no", "51% of the answers cut off at 16 tokens", {"max_completion_length": 32}),
        ({"cut": 0.51, "difference": RAISED}, "go", "+40.0", {"max_completion_length": 32}),
        ({"undecided": 0.51}, "no", "51% of the rollouts: check it", {}),
        ({"context": None, "teachers": None, "in_prompt": {}}, "no", "200 tokens of prompt: document 300", {}),
    ],
)
def test_the_rule_and_the_number_that_decided_comes_first(numbers, verdict, said, settings):
    found = measured(**numbers)
    assert found.verdict == verdict
    assert said in found.sentences[0]
    assert settings.items() <= found.settings.items()
    assert (found.settings == {}) == (settings == {})


@pytest.mark.parametrize(
    ("accuracy", "difference", "little"), [(0.65, RAISED, False), (0.2, RAISED, True), (0.2, LOWERED, False)]
)
def test_a_go_of_which_most_answers_are_wrong_is_told(accuracy, difference, little):
    found = measured(difference=difference)
    shown = dataclasses.replace(found.in_prompt["rules"], accuracy=Estimate(accuracy, accuracy - 0.1, accuracy + 0.1))
    found = dataclasses.replace(found, in_prompt=found.in_prompt | {"rules": shown})
    assert found.teaches_little is little
    assert ("80% of the answers with it are wrong" in found.sentences[1]) is little


def test_a_diagnosis_goes_to_a_file_and_back_and_the_file_says_the_verdict(tmp_path):
    found = measured(difference=RAISED)
    found.save(tmp_path)
    assert Diagnosis.load(tmp_path) == found
    document = json.loads((tmp_path / "doctor.json").read_text())
    assert document["verdict"] == "go"
    assert document["sentences"] == list(found.sentences)
    assert document["settings"] == found.settings
    runfolder.write_json(tmp_path / runfolder.DOCTOR, document | {"problems": "many"})
    with pytest.raises(DataError, match="problems"):
        Diagnosis.load(tmp_path)


@pytest.mark.parametrize("numbers", [{"difference": RAISED, "cut": 0.2}, {"auc": APART}, {}])
def test_sgsd_train_takes_the_settings_that_are_recommended(numbers):
    from sgsd.cli.settings import parse_settings

    settings = measured(**numbers).settings
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    run, training, _ = parse_settings([*words, "--per_device_train_batch_size", "8", "--output_dir", "unused"])
    assert {name: vars(run).get(name, vars(training).get(name)) for name in settings} == settings


# ---- the area under the ROC curve


def test_the_area_is_the_share_of_pairs_in_order_and_its_interval_holds_it():
    found = area_under_roc([0.3, 0.1, 0.2, 0.1], [True, True, False, False], [0, 1, 2, 3])
    assert found.mean == (1 + 1 + 0 + 0.5) / 4
    assert 0 <= found.low < found.mean < found.high <= 1


def test_two_successes_that_are_apart_prove_little_and_rollouts_of_one_problem_less_than_of_many():
    few = area_under_roc([1.0, 1.0, *[0.0] * 50], [True, True, *[False] * 50], range(52))
    assert few.mean == few.high == 1
    assert few.low < 0.5
    draw = np.random.default_rng(0)
    success = np.arange(80) % 2 == 0
    values = draw.normal(size=80) + success
    alone = area_under_roc(values, success, np.arange(80))
    shared = area_under_roc(np.repeat(values, 4), np.repeat(success, 4), np.repeat(np.arange(80), 4))
    believed = area_under_roc(np.repeat(values, 4), np.repeat(success, 4), np.arange(320))
    assert alone.mean == shared.mean == believed.mean
    assert shared.high - shared.low == pytest.approx(alone.high - alone.low, rel=0.15)
    assert believed.high - believed.low < 0.6 * (alone.high - alone.low)


def test_its_interval_holds_the_truth_as_often_as_it_says():
    """Normal supports one standard deviation apart, two rollouts a problem with a share in common."""
    draw, truth, held = np.random.default_rng(0), 0.7602, 0
    for _ in range(400):
        success = draw.random(128) < 0.25
        values = success + np.sqrt(0.5) * (np.repeat(draw.normal(size=64), 2) + draw.normal(size=128))
        found = area_under_roc(values, success, np.repeat(np.arange(64), 2))
        held += found.low <= truth <= found.high
    assert 0.95 <= held / 400 <= 0.99


# ---- the lab


@pytest.fixture(scope="module", params=["sharp", "calibrated"])
def lab(request):
    name = f"local:lab-{request.param}"
    return load_model(name), load_tokenizer(name)


def in_the_lab(lab, shares, **options):
    made, (model, tokenizer) = make_bank(BankShares(*shares)), lab
    given = {"max_new_tokens": MAX_COMPLETION, "max_prompt_length": 64} | options
    with get_verifier("exact", workers=1) as verifier:
        return diagnose(
            model,
            tokenizer,
            questions(450, seed=2, prefix="train"),
            made.bank,
            renderer=PromptRenderer(tokenizer, instruction=""),
            verifier=verifier,
            retriever=EmbeddingRetriever(TopicEmbedder(made.topics)),
            **given,
        )


@pytest.mark.parametrize(
    ("shares", "verdict"),
    [((2, 0, 0), "go"), ((0, 2, 0), "use GRPO"), ((0, 0, 2), "use GRPO")],
    ids=["helpful", "misleading", "of other problems"],
)
def test_in_the_lab_a_bank_is_told_by_what_it_does(lab, shares, verdict):
    found = in_the_lab(lab, shares)
    assert found.verdict == verdict
    assert 0.15 < found.success.mean < 0.35
    assert found.prompt_tokens == 7
    assert found.in_prompt["pairs"].prompt_tokens == 21
    assert not lab[0].training


def test_a_diagnosis_is_repeatable_and_leaves_the_random_state_and_training_mode_alone(lab):
    model, _ = lab
    model.train()
    state = torch.random.get_rng_state()
    first, again = (in_the_lab(lab, (1, 1, 0), rollouts=32, num_teachers=2) for _ in range(2))
    assert model.training
    model.eval()
    assert torch.equal(state, torch.random.get_rng_state())
    timed = {"sampling_seconds": 0.0, "scoring_seconds": 0.0, "memory_gib": 0.0}
    assert dataclasses.replace(first, **timed) == dataclasses.replace(again, **timed)
    assert in_the_lab(lab, (1, 1, 0), rollouts=32, seed=1).success != first.success


def test_a_bank_that_does_not_fit_is_a_no(lab):
    found = in_the_lab(lab, (2, 0, 0), rollouts=16, max_prompt_length=20)
    assert (found.verdict, found.context, found.too_long) == ("no", None, {"pairs": 21})
    assert "20 tokens of prompt: pairs 21" in found.sentences[0]


def test_answers_that_are_cut_off_are_a_no_and_named_so(lab, capsys):
    found = in_the_lab(lab, (2, 0, 0), rollouts=16, max_new_tokens=8)
    assert (found.verdict, found.truncated, found.settings) == ("no", 1.0, {"max_completion_length": 16})
    show_examples(found, standard_output())
    shown = capsys.readouterr().out
    assert shown.count("[incorrect, cut off; reference ") == len(found.examples) > 0


# ---- documents, and rollouts of one outcome alone


class Scripted:
    """A verifier whose verdicts were written down: one list a call, repeated as often as needed."""

    def __init__(self, *calls):
        self.calls = list(calls)

    def verify_many(self, completions, answers):
        outcomes = self.calls.pop(0)
        return [Verdict(outcomes[n % len(outcomes)]) for n in range(len(completions))]

    def verify(self, completion, answer):
        return self.verify_many([completion], [answer])[0]

    def readable(self, answer):
        return True


RIGHT, WRONG, OPEN = Outcome.CORRECT, Outcome.INCORRECT, Outcome.UNDECIDED
DOCUMENT = "# Signs\n\n- @ stands for rule next\n- + stands for rule sum\n"


@pytest.fixture(scope="module")
def sharp():
    return load_model("local:lab-sharp"), load_tokenizer("local:lab-sharp")


def scripted(sharp, *calls, bank, **options):
    given = {"max_new_tokens": 32, "rollouts": 16, "max_prompt_length": 90} | options
    model, tokenizer = sharp
    return diagnose(
        model,
        tokenizer,
        questions(18, seed=2, prefix="q"),
        bank,
        renderer=PromptRenderer(tokenizer, instruction=""),
        verifier=Scripted(calls[0], [WRONG], *calls[1:]),  # the plain prompt sampled and greedily, contexts
        retriever=BM25Retriever(),
        **given,
    )


@pytest.fixture
def document(tmp_path, monkeypatch):
    def without_items(bank, ids):
        return "\n".join(item.text for item in bank.items if item.id not in set(ids))

    monkeypatch.setattr("sgsd.scoring.teachers.without_items", without_items)
    (tmp_path / "SKILL.md").write_text(DOCUMENT)
    return read_document(tmp_path / "SKILL.md")


@pytest.mark.parametrize(
    ("rules", "whole", "context"),
    [
        ([WRONG], [WRONG], "rules"),
        ([WRONG], [RIGHT], "document"),
        ([RIGHT], [WRONG], "rules"),
        ([RIGHT], [RIGHT], "rules"),
    ],
)
def test_a_document_is_shown_whole_only_where_that_is_better_than_a_rule(sharp, document, rules, whole, context):
    found = scripted(sharp, [WRONG, RIGHT, WRONG], rules, whole, bank=document)
    assert found.context == found.settings.get("teacher_context", context) == context
    assert found.in_prompt["document"].accuracy.mean == whole.count(RIGHT)
    assert found.in_prompt["rules"].prompt_tokens < found.in_prompt["document"].prompt_tokens
    assert found.teachers.successes + found.teachers.failures == 16


def test_what_is_too_long_is_left_out_and_the_rest_is_tried(sharp, document):
    lengths = scripted(sharp, [WRONG, RIGHT], [RIGHT], [RIGHT], bank=document).in_prompt
    room = round(lengths["document"].prompt_tokens) - 1
    found = scripted(sharp, [WRONG, RIGHT], [RIGHT], bank=document, max_prompt_length=room)
    assert list(found.in_prompt) == ["rules"]
    assert found.too_long["document"] > room
    assert any(f"{found.too_long['document']} tokens of prompt, room for {room}" in said for said in found.sentences)


@pytest.mark.parametrize(("plain", "known"), [([WRONG, RIGHT], True), ([WRONG], False), ([RIGHT, OPEN], False)])
def test_rollouts_of_one_outcome_tell_nothing_of_teachers(sharp, document, plain, known):
    found = scripted(sharp, plain, [WRONG, RIGHT], bank=document, contexts=["rules"])
    assert (found.teachers.auc is not None) == (found.teachers.auc_control is not None) == known


def test_a_verifier_that_decides_nothing_is_a_no(sharp, document):
    found = scripted(sharp, [OPEN], [OPEN], bank=document, contexts=["rules"])
    assert (found.verdict, found.undecided, found.teachers) == ("no", 1.0, None)
    assert "cannot judge 100% of the rollouts" in found.sentences[0]


PAIRS = SkillBank((Skill.new("g", origin=Origin.SEED),), (Mistake.new("e", origin=Origin.SEED),), name="two")


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"rollouts": 15}, ConfigError, "too few rollouts for a diagnosis: got 15; expected 16 or more"),
        ({"contexts": ["document"]}, ConfigError, "context document without a document"),
        ({"contexts": ["pair"]}, ConfigError, "did you mean pairs"),
        ({"bank": SkillBank(PAIRS.skills)}, BankError, "mistake"),
        ({"max_prompt_length": 5}, PromptError, "plain prompts are too long"),
    ],
)
def test_what_cannot_be_diagnosed_is_refused_in_one_line(sharp, options, error, said):
    with pytest.raises(error, match=said) as raised:
        scripted(sharp, [WRONG], [WRONG], **{"bank": PAIRS} | options)
    assert "\n" not in str(raised.value)


def test_a_control_of_a_bank_without_other_items_is_the_plain_prompt(sharp):
    found = scripted(sharp, [WRONG, RIGHT], [WRONG], bank=PAIRS).teachers
    assert found.style_share == 0
    assert found.auc == found.auc_control


# ---- the commands


@pytest.fixture
def files(tmp_path):
    made = make_bank(BankShares(2, 0, 0))
    made.bank.save(tmp_path / "bank.json")
    rows = [{"problem": problem.text, "answer": problem.answer} for problem in questions(64, seed=2, prefix="q")]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "open.jsonl").write_text("".join(json.dumps({"problem": row["problem"]}) + "\n" for row in rows))
    return tmp_path


def asked(files, *more, tasks="tasks.jsonl"):
    flags = ["--model", "local:lab-sharp", "--verifier", "exact", "--retriever", "bm25", "--instruction", ""]
    flags += ["--max_completion_length", "16", "--rollouts", "32"]
    return ["doctor", str(files / "bank.json"), "--tasks", str(files / tasks), *flags, *more]


def test_the_command_prints_a_table_and_sentences_and_keeps_the_numbers(files, capsys):
    assert main(asked(files, "--output", str(files / "out"))) == 0
    found = Diagnosis.load(files / "out")
    shown = capsys.readouterr().out
    assert f"verdict: {found.verdict}" in shown
    assert all(sentence in shown for sentence in found.sentences)
    assert found.rollouts == 32
    assert main(asked(files, "--json")) == 0
    assert json.loads(capsys.readouterr().out)["success"] == dataclasses.asdict(found.success)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"tasks": "open.jsonl"}, "no adapter fits the data's columns: got problem"),
        ({"more": ["--rollouts", "1"]}, "too few rollouts"),
        ({"more": ["--max_completion_length", "0"]}, "--max_completion_length: out of range"),
        ({"more": ["--temperature", "0"]}, "--temperature: out of range"),
        ({"more": ["--max_completion_length", "100000"]}, "do not fit the model's context"),
    ],
)
def test_the_command_refuses_in_one_line_and_leaves_nothing(files, capsys, more, said):
    given = asked(files, "--output", str(files / "out"), *more.get("more", []), tasks=more.get("tasks", "tasks.jsonl"))
    assert main(given) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (files / "out").exists()


def test_train_doctor_diagnoses_with_the_runs_settings_and_trains_nothing(files, capsys):
    flags = ["--model_name_or_path", "local:lab-sharp", "--bank", str(files / "bank.json"), "--retriever", "bm25"]
    flags += ["--dataset", str(files / "tasks.jsonl"), "--output_dir", str(files / "run"), "--doctor", "true"]
    assert main(["train", "--config", "lab", *flags, "--num_teachers", "2"]) == 0
    assert "verdict: " in capsys.readouterr().out
    assert not (files / "run").exists()
    assert main(["train", "--config", "lab", *flags[:2], *flags[6:], "--method", "grpo"]) == 2
    assert "the doctor needs teachers" in capsys.readouterr().err


# ---- SmolLM2


@pytest.fixture(scope="module")
def smollm2():
    return load_model("local:smollm2-135m-instruct"), load_tokenizer("local:smollm2-135m-instruct")


def with_smollm2(smollm2, problems, bank, instruction, *, length, rollouts):
    model, tokenizer = smollm2
    with get_verifier("math", workers=1) as verifier:
        return diagnose(
            model,
            tokenizer,
            problems,
            bank,
            renderer=PromptRenderer(tokenizer, instruction=instruction),
            verifier=verifier,
            retriever=BM25Retriever(),
            max_new_tokens=length,
            max_prompt_length=2048 - length,
            rollouts=rollouts,
            temperature=0.8,
            top_p=0.95,
        )


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_house_rules_that_no_model_can_know_are_a_go(smollm2, tmp_path):
    skill, train, _ = demo.write(tmp_path)
    problems, _ = load_problems(train)
    bank = read_document(skill)
    found = with_smollm2(smollm2, problems, bank, "Finish with the number of the shelf.", length=16, rollouts=72)
    assert found.verdict == "go"
    assert found.context == "rules"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_general_advice_for_easy_word_problems_is_no_go(smollm2, shared_data):
    problems, _ = load_problems(shared_data / "asdiv.jsonl", limit=600)
    bank = SkillBank.load("seed:arithmetic-word-problems")
    instruction = "Finish with the final answer as a single number."
    found = with_smollm2(smollm2, problems, bank, instruction, length=32, rollouts=96)
    assert found.verdict in ("use GRPO", "no")
