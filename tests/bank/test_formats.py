"""The common general_skills / common_mistakes format, as public files have it and as they vary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sgsd.bank import Mistake, Origin, Skill, SkillBank
from sgsd.errors import BankError

PUBLIC = {
    "general_skills": [
        {"skill_id": "gen_001", "title": "Look once", "principle": "Look once.", "when_to_apply": "While searching."},
        {"skill_id": "gen_002", "title": "Take it", "principle": "Take it at once.", "when_to_apply": "On sight."},
    ],
    "task_specific_skills": {
        "heat": [
            {"skill_id": "hea_001", "title": "Open first", "principle": "Open the door.", "when_to_apply": "There."}
        ],
        "cool": [
            {"skill_id": "coo_001", "title": "Fridge", "principle": "Find the fridge.", "when_to_apply": "Early."}
        ],
    },
    "common_mistakes": [
        {
            "mistake_id": "err_001",
            "description": "Goes round in circles.",
            "why_it_happens": "Nothing is remembered.",
            "how_to_avoid": "Keep a list.",
        }
    ],
    "metadata": {"source": "trajectories", "total": 3},
}


def load(document: object) -> SkillBank:
    return SkillBank.from_json(json.dumps(document), source="common.json")


def test_a_public_file_is_read_field_by_field_with_its_ids() -> None:
    bank = load(PUBLIC)
    assert bank.skills[0] == Skill("gen_001", "Look once", "Look once.", "While searching.", Origin.SEED)
    assert [skill.id for skill in bank.skills] == ["gen_001", "gen_002", "hea_001", "coo_001"]
    assert bank.mistakes == (
        Mistake("err_001", "Goes round in circles.", "Nothing is remembered.", "Keep a list.", Origin.SEED),
    )
    assert bank.metadata["source"] == "trajectories"


def test_a_public_file_is_written_back_as_it_was_with_its_categories() -> None:
    assert json.loads(load(PUBLIC).to_common_json()) == PUBLIC


def test_a_removed_skill_leaves_its_category_and_a_new_one_is_general() -> None:
    bank = load(PUBLIC).without(["hea_001"]).with_items([Skill("new", "", "New.")])
    common = json.loads(bank.to_common_json())
    assert common["task_specific_skills"]["heat"] == []
    assert common["general_skills"][-1] == {"skill_id": "new", "principle": "New."}


def test_it_is_written_on_request_only(tmp_path: Path) -> None:
    bank = load(PUBLIC)
    assert json.loads(bank.save(tmp_path / "common.json", format="common").read_text()) == PUBLIC
    assert "schema_version" in json.loads(bank.save(tmp_path / "native.json").read_text())
    assert SkillBank.load(tmp_path / "common.json") == SkillBank.load(tmp_path / "native.json") == bank


def test_bare_strings_missing_ids_numbers_as_ids_and_nulls_are_read() -> None:
    bank = load(
        {
            "general_skills": ["Draw a figure.", {"skill_id": 7, "principle": "Check.", "title": None}],
            "common_mistakes": ["Sign lost.", {"description": "Copied wrongly.", "how_to_avoid": None}],
        }
    )
    assert bank.skills == (Skill.new("Draw a figure.", origin=Origin.SEED), Skill("7", "", "Check."))
    assert bank.mistakes == (
        Mistake.new("Sign lost.", origin=Origin.SEED),
        Mistake.new("Copied wrongly.", origin=Origin.SEED),
    )


def test_a_mistakes_title_stays_a_title_where_the_description_is_the_text() -> None:
    bank = load({"common_mistakes": [{"title": "Signs", "description": "Drops a minus.", "how_to_avoid": "Look."}]})
    assert (bank.mistakes[0].title, bank.mistakes[0].text) == ("Signs", "Drops a minus.")


def test_near_names_of_fields_are_read() -> None:
    bank = load({"general_skills": [{"id": "a", "name": "N", "text": "T", "when": "W"}]})
    assert bank.skills == (Skill("a", "N", "T", "W"),)


def test_keys_that_mean_nothing_here_are_listed_and_not_silently_dropped() -> None:
    bank = load({"general_skills": [{"principle": "x", "confidence": 0.5}], "common_mistakes": [], "version": 3})
    assert bank.metadata["ignored_keys"] == ["general_skills[].confidence", "version"]


def test_a_list_may_be_missing_and_pairs_are_then_refused() -> None:
    bank = load({"general_skills": ["x"]})
    with pytest.raises(BankError, match="no mistakes"):
        bank.require_pairs()


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"general_skills": {"a": "b"}}, "general_skills: cannot be used: got {.*}; expected a JSON array"),
        ({"general_skills": [3]}, r"general_skills\[0\]: cannot be used: got 3; expected a JSON object"),
        ({"general_skills": [{"principle": ["x"]}]}, r"general_skills\[0\]: text: cannot be used"),
        ({"general_skills": [{"when_to_apply": "now"}]}, r"general_skills\[0\].principle is missing"),
        ({"common_mistakes": [{"how_to_avoid": "x"}]}, r"common_mistakes\[0\].why_it_happens is missing"),
        (
            {"common_mistakes": [{"description": {"a": 1}}]},
            r"common_mistakes\[0\]: text: cannot be used: got {.*}; expected a valid str",
        ),
        ({"common_mistakes": [], "metadata": 1}, "metadata: cannot be used: got 1; expected a JSON object"),
        ({"task_specific_skills": ["x"]}, "task_specific_skills: cannot be used: .*expected a JSON object"),
        ({"general_skills": ["a\0b"]}, r"U\+0000"),
        ({"general_skills": [{"skill_id": "a", "principle": "x"}, {"skill_id": "a", "principle": "y"}]}, "got 'a'"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(document: object, message: str) -> None:
    with pytest.raises(BankError, match=message) as error:
        load(document)
    assert "\n" not in str(error.value)


def test_metadata_of_another_shape_under_the_categories_name_is_left_alone() -> None:
    bank = SkillBank((Skill("a", "", "x"),), (), "", {"task_specific_skills": 3})
    assert SkillBank.from_json(bank.to_common_json()) == bank
