"""The bank's values: ids, frozen updates, files, findings."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgsd.bank import FindingKind, Mistake, Origin, Skill, SkillBank, seed_banks
from sgsd.errors import BankError

TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from("\n\t\r"), max_size=40)
FILLED = TEXT.filter(lambda text: bool(text.strip()))
ORIGIN = st.sampled_from(list(Origin))
PARENTS = st.lists(st.sampled_from(["skill-00000001", "mistake-00000002"]), max_size=2, unique=True)
SKILLS = st.lists(
    st.builds(Skill.new, FILLED, title=TEXT, when=TEXT, origin=ORIGIN, parents=PARENTS),
    max_size=5,
    unique_by=lambda skill: skill.id,
)
MISTAKES = st.lists(
    st.builds(Mistake.new, FILLED, title=TEXT, avoid=TEXT, origin=ORIGIN, parents=PARENTS),
    max_size=5,
    unique_by=lambda mistake: mistake.id,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
BANKS = st.builds(
    lambda skills, mistakes, name, metadata: SkillBank(tuple(skills), tuple(mistakes), name, metadata),
    SKILLS,
    MISTAKES,
    TEXT,
    st.dictionaries(TEXT, JSON, max_size=3),
)

ADD = Skill.new("Add the ones first.", title="Ones first", when="When adding.", origin=Origin.SEED)
CARRY = Skill.new("Carry the ten.", title="Carry", when="When the ones reach ten.", origin=Origin.ONLINE)
SLIP = Mistake.new("Drops the carry.", title="Carry lost", avoid="Write it down.", origin=Origin.COLD_START)
BANK = SkillBank((ADD, CARRY), (SLIP,), "tiny", {"note": "for tests"})


def one_line(error: pytest.ExceptionInfo[BankError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


class TestIds:
    def test_an_id_is_derived_from_the_content_alone(self) -> None:
        again = Skill.new(ADD.text, title=ADD.title, when=ADD.when, origin=Origin.ONLINE, parents=("x",))
        assert again.id == ADD.id
        assert ADD.id.startswith("skill-")
        assert len(ADD.id) == len("skill-") + 12

    def test_ids_are_pinned_so_that_ledgers_of_old_runs_stay_readable(self) -> None:
        assert Skill.new("a", title="b", when="c", origin=Origin.SEED).id == "skill-e8f278f0fc57"
        assert Mistake.new("a", title="b", avoid="c", origin=Origin.SEED).id == "mistake-b9a3a821c1d0"

    def test_two_items_of_a_bank_cannot_share_an_id(self) -> None:
        with pytest.raises(BankError, match="share an id: got 'a'"):
            SkillBank((Skill("a", "", "one"),), (Mistake("a", "", "two"),))

    @pytest.mark.parametrize("id", ["", " a", "a ", "a\nb", "a" * 129])
    def test_an_unusable_id_is_refused(self, id: str) -> None:
        with pytest.raises(BankError, match="unusable id"):
            Skill(id, "", "text")


class TestCharacters:
    @pytest.mark.parametrize("bad", ["\0", "\ud800", "\x1b", "\x85", "\x7f"])
    @pytest.mark.parametrize("field", ["title", "text", "when"])
    def test_control_characters_and_lone_surrogates_are_refused_in_every_field(self, bad: str, field: str) -> None:
        with pytest.raises(BankError, match=f"U\\+{ord(bad):04X}"):
            Skill(**({"id": "a", "title": "t", "text": "x", "when": "w"} | {field: f"a{bad}b"}))
        with pytest.raises(BankError, match=f"U\\+{ord(bad):04X}"):
            Skill.new(**({"title": "t", "text": "x", "when": "w"} | {field: f"a{bad}b"}), origin=Origin.SEED)

    def test_an_undoubled_latex_backslash_is_explained(self) -> None:
        with pytest.raises(BankError, match="backslash must be doubled") as error:
            SkillBank.from_json('{"skills": [{"text": "Write \\frac over it"}], "mistakes": []}')
        one_line(error)

    @pytest.mark.parametrize("text", ["", " ", "\n\t"])
    def test_a_blank_text_is_refused(self, text: str) -> None:
        with pytest.raises(BankError, match="blank text"):
            Mistake("a", "title", text)


class TestBank:
    def test_values_are_frozen(self) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            BANK.name = "x"
        with pytest.raises(dataclasses.FrozenInstanceError):
            ADD.text = "x"
        with pytest.raises(TypeError):
            BANK.metadata["x"] = 1

    def test_it_can_be_pickled_copied_and_hashed(self) -> None:
        assert pickle.loads(pickle.dumps(BANK)) == copy.deepcopy(BANK) == BANK
        assert hash(copy.copy(BANK)) == hash(BANK)

    def test_online_items_are_the_dynamic_part_and_the_others_the_static_part(self) -> None:
        assert BANK.dynamic.items == (CARRY,)
        assert BANK.static.items == (ADD, SLIP)

    def test_items_are_added_to_the_end_of_their_list_in_a_new_bank(self) -> None:
        new_skill, new_mistake = Skill.new("x", origin=Origin.ONLINE), Mistake.new("y", origin=Origin.ONLINE)
        grown = BANK.with_items([new_mistake, new_skill])
        assert grown.skills == (ADD, CARRY, new_skill)
        assert grown.mistakes == (SLIP, new_mistake)
        assert BANK.items == (ADD, CARRY, SLIP)
        assert (grown.name, dict(grown.metadata)) == (BANK.name, dict(BANK.metadata))

    def test_an_id_cannot_come_to_mean_something_else(self) -> None:
        with pytest.raises(BankError, match="two different items share an id") as error:
            BANK.with_items([dataclasses.replace(ADD, text="Subtract\nfirst.")])
        one_line(error)

    def test_unknown_ids_are_answered_with_the_nearest(self) -> None:
        for call in (lambda id: BANK.get(id), lambda id: BANK.without([id])):
            with pytest.raises(BankError, match=f"expected '{ADD.id}'"):
                call(ADD.id[:-1])

    def test_pairs_need_a_skill_and_a_mistake(self) -> None:
        BANK.require_pairs()
        with pytest.raises(BankError, match="has no mistakes"):
            BANK.without([SLIP.id]).require_pairs()
        with pytest.raises(BankError, match="has no skills"):
            BANK.without([ADD.id, CARRY.id]).require_pairs()

    def test_a_diff_tells_what_the_other_bank_gained_lost_and_changed(self) -> None:
        new = Mistake.new("z", origin=Origin.ONLINE)
        moved = dataclasses.replace(CARRY, origin=Origin.SEED)
        other = SkillBank((moved,), (SLIP, new))
        diff = BANK.diff(other)
        assert (diff.added, diff.removed, diff.changed) == ((new,), (ADD,), ((CARRY, moved),))
        assert str(diff).splitlines() == [f"+ {new.id}  z", f"- {ADD.id}  Ones first", f"~ {CARRY.id}  Carry"]
        assert diff
        assert not BANK.diff(BANK)

    @pytest.mark.parametrize("metadata", [{"a": float("nan")}, {"a": object()}, {"a": "\ud800"}, {"a": {1, 2}}])
    def test_metadata_that_is_not_json_is_refused(self, metadata: dict[str, object]) -> None:
        with pytest.raises(BankError, match="metadata is not JSON"):
            SkillBank(metadata=metadata)


class TestDigest:
    def test_it_is_pinned(self) -> None:
        assert BANK.digest == "ceeb3522abb4d6acb0f7c78e4b29a3cdda425247925fac383760784f293d2d37"

    def test_spacing_and_key_order_of_the_file_do_not_count(self) -> None:
        document = json.loads(BANK.to_json())
        shuffled = {
            key: [dict(reversed(item.items())) for item in value] if isinstance(value, list) else value
            for key, value in reversed(document.items())
        }
        assert SkillBank.from_json(json.dumps(shuffled)).digest == BANK.digest

    def test_name_and_metadata_do_not_count(self) -> None:
        assert SkillBank(BANK.skills, BANK.mistakes).digest == BANK.digest

    def test_content_order_and_origin_count(self) -> None:
        others = [
            BANK.without([ADD.id]),
            dataclasses.replace(BANK, skills=(CARRY, ADD)),
            dataclasses.replace(BANK, skills=(ADD, dataclasses.replace(CARRY, origin=Origin.SEED))),
            dataclasses.replace(BANK, mistakes=(dataclasses.replace(SLIP, avoid="?"),)),
        ]
        assert len({bank.digest for bank in [BANK, *others]}) == 5


class TestFiles:
    @given(BANKS)
    def test_native_json_loses_nothing(self, bank: SkillBank) -> None:
        back = SkillBank.from_json(bank.to_json())
        assert back == bank
        assert back.digest == bank.digest
        assert back.to_json() == bank.to_json()

    @given(BANKS)
    def test_the_common_format_loses_nothing_either(self, bank: SkillBank) -> None:
        text = bank.to_common_json()
        back = SkillBank.from_json(text)
        assert back == bank
        assert back.to_common_json() == text

    def test_a_saved_file_is_read_back_and_can_be_diffed_line_by_line(self, tmp_path: Path) -> None:
        path = BANK.save(tmp_path / "deep" / "bank.json")
        assert SkillBank.load(path) == SkillBank.load(str(path)) == BANK
        text = path.read_text(encoding="utf-8")
        assert text.endswith("}\n")
        assert f'      "id": "{ADD.id}",\n' in text
        before, after = (
            text.splitlines(),
            BANK.with_items([Skill.new("x", origin=Origin.ONLINE)]).to_json().splitlines(),
        )
        assert [line for line in before if line not in after] == []

    def test_a_file_from_another_editor_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "bank.json"
        path.write_bytes(b"\xef\xbb\xbf" + BANK.to_json().replace("\n", "\r\n").encode())
        assert SkillBank.load(path) == BANK

    def test_saving_leaves_nothing_beside_the_file_and_honours_the_umask(self, tmp_path: Path) -> None:
        plain = tmp_path / "plain"
        plain.write_text("x")
        BANK.save(tmp_path / "bank.json")
        BANK.static.save(tmp_path / "bank.json")
        assert sorted(file.name for file in tmp_path.iterdir()) == ["bank.json", "plain"]
        mode = stat.S_IMODE((tmp_path / "bank.json").stat().st_mode)
        assert mode == stat.S_IMODE(plain.stat().st_mode)

    def test_a_failed_save_keeps_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = BANK.save(tmp_path / "bank.json")

        def fail(source: object, target: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.replace", fail)
        with pytest.raises(BankError, match="cannot be written") as error:
            BANK.static.save(path)
        one_line(error)
        assert [file.name for file in tmp_path.iterdir()] == ["bank.json"]
        assert SkillBank.load(path) == BANK

    def test_a_link_is_replaced_and_not_followed(self, tmp_path: Path) -> None:
        target = tmp_path / "target.json"
        target.write_text("old")
        link = tmp_path / "link.json"
        link.symlink_to(target)
        BANK.save(link)
        assert not link.is_symlink()
        assert SkillBank.load(link) == BANK
        assert target.read_text() == "old"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "malformed JSON: got Expecting property name .* at line 1 column 2"),
            ('{"skills": [{"text": "\\sqrt"}]}', "a LaTeX backslash must be doubled"),
            ("[]", "wrong type: got list; expected a JSON object"),
            ("{}", "not a bank"),
            ('{"name": "x"}', "not a bank: got keys"),
            ('{"skills": [], "skills": []}', "repeats a key: got 'skills'"),
            ('{"skills": [], "metadata": {"a": NaN}}', "got nan, not a finite number"),
            ('{"skills": [], "metadata": {"a": 1e999}}', "got inf, not a finite number"),
            ('{"skills": [], "metadata": []}', r"metadata: cannot be used: got \[\]; expected a JSON object"),
            ('{"schema_version": 2, "skills": []}', "newer version: got schema_version 2; expected at most 1; upgrade"),
            ('{"schema_version": "1", "skills": []}', "schema_version: cannot be used"),
            ('{"skills": [], "mistake": []}', "unknown key: got 'mistake'; expected 'mistakes'"),
            ('{"skills": [{"text": "x", "wen": ""}]}', r"skills\[0\]: unknown key: got 'wen'; expected 'when'"),
            ('{"mistakes": [{"text": "x", "when": ""}]}', r"mistakes\[0\]: unknown key: got 'when'"),
            ('{"skills": {}}', "skills: cannot be used: got {}; expected a JSON array"),
            ('{"skills": ["x"]}', r"skills\[0\]: cannot be used: got \"x\"; expected a JSON object"),
            ('{"skills": [{"text": 3}]}', r"skills\[0\].text: cannot be used: got 3; expected a valid string"),
            ('{"skills": [{"text": null}]}', "got null"),
            ('{"skills": [{"title": "x"}]}', "blank text"),
            (f'{{"skills": [{{"text": "{"x" * 100_001}"}}]}}', "too long: got 100,001 characters"),
            ('{"skills": [{"text": "x", "id": ""}]}', "unusable id"),
            ('{"skills": [{"text": "x", "origin": "onlin"}]}', "origin: cannot be used: got .onlin.; expected 'seed'"),
            ('{"skills": [{"text": "x", "parents": [1]}]}', r"skills\[0\].parents\[0\]: cannot be used: got 1"),
            ('{"skills": [], "name": 1}', "name: cannot be used"),
            (
                '{"skills": [{"id": "a", "text": "x"}, {"id": "a", "text": "y"}]}',
                "two different items share an id: got 'a'",
            ),
            ('{"skills": [{"text": "\\ud800"}]}', "a lone surrogate"),
            ("[" * 100_000, "malformed JSON"),
            ('{"skills": [], "metadata": {"a": ' + "1" * 5000 + "}}", "malformed JSON"),
        ],
    )
    def test_a_file_that_cannot_be_used_is_refused_in_one_line_that_says_why(self, text: str, message: str) -> None:
        with pytest.raises(BankError, match=message) as error:
            SkillBank.from_json(text, source="bank.json")
        one_line(error)

    @pytest.mark.parametrize("text", ['{"text": "x"}, {"text": "a\\u0000"}', '{"text": "x"}, {"id": "a", "text": ""}'])
    def test_the_place_of_a_bad_item_is_named(self, text: str) -> None:
        for document in (f'{{"mistakes": [{text}]}}', f'{{"common_mistakes": [{text}]}}'):
            with pytest.raises(BankError, match=r"^bank.json: (common_)?mistakes\[1\]"):
                SkillBank.from_json(document, source="bank.json")

    def test_an_item_repeated_as_it_is_counts_once(self) -> None:
        assert len(SkillBank.from_json('{"skills": [{"text": "x"}, {"text": "x"}]}').skills) == 1

    def test_unreadable_paths_are_refused_in_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "latin").write_bytes(b'{"skills": "\xe9"}')
        for path, message in [("none.json", "no such bank file"), ("latin", "not UTF-8"), (".", "cannot be read")]:
            with pytest.raises(BankError, match=message) as error:
                SkillBank.load(tmp_path / path)
            one_line(error)
        with pytest.raises(BankError, match="read-only"):
            BANK.save("seed:mine")
        with pytest.raises(BankError, match="unknown bank format"):
            BANK.save(tmp_path / "x", format="yaml")


class TestFindings:
    def kinds(self, *items: Skill | Mistake) -> list[FindingKind]:
        return [finding.kind for finding in SkillBank().with_items(items).check()]

    def test_empty_and_unequal_lists_are_found(self) -> None:
        assert self.kinds() == [FindingKind.EMPTY_LIST, FindingKind.EMPTY_LIST]
        assert self.kinds(ADD) == [FindingKind.EMPTY_LIST]
        assert self.kinds(ADD, CARRY, SLIP) == [FindingKind.UNEQUAL_LISTS]

    def test_rules_of_a_document_need_neither_pairs_nor_notes(self) -> None:
        rules = [Skill.new(f"Rule {word}.", origin=Origin.SEED) for word in ("one", "two")]
        never = Mistake.new("Never three.", origin=Origin.SEED)
        for items in (rules, [never], [*rules, never]):
            document = SkillBank(metadata={"document": "text"}).with_items(items)
            assert document.check() == ()
            long = document.with_items([Skill.new("x" * 900, origin=Origin.SEED)])
            assert [finding.kind for finding in long.check()] == [FindingKind.TOO_LONG]
            assert self.kinds(*items)
        assert SkillBank(metadata={"document": "text"}).check() == SkillBank().check() != ()

    def test_equal_texts_are_duplicates_and_not_near_duplicates(self) -> None:
        other = Skill.new("add  THE ones first.", title="Ones first!", when="x", origin=Origin.SEED)
        second = Mistake.new("Something else.", avoid="y", origin=Origin.SEED)
        assert self.kinds(ADD, other, SLIP, second) == [FindingKind.DUPLICATE_TEXT]

    def test_texts_that_share_most_words_are_near_duplicates(self) -> None:
        first = Skill.new("one two three four five six seven eight nine ten", when="x", origin=Origin.SEED)
        second = Skill.new("one two three four five six seven eight nine", when="x", origin=Origin.SEED)
        third = Skill.new("one two three four five six", when="x", origin=Origin.SEED)
        near = [f for f in SkillBank((first, second, third)).check() if f.kind is FindingKind.NEAR_DUPLICATE]
        assert [finding.ids for finding in near] == [(first.id, second.id)]

    def test_long_items_empty_notes_and_broken_latex_are_found(self) -> None:
        assert self.kinds(Skill.new("x" * 900, when="w", origin=Origin.SEED), SLIP) == [FindingKind.TOO_LONG]
        assert self.kinds(Skill.new("x", title="t" * 121, when="w", origin=Origin.SEED), SLIP) == [FindingKind.TOO_LONG]
        assert self.kinds(Skill.new("x", origin=Origin.SEED), SLIP) == [FindingKind.NO_WHEN]
        assert self.kinds(ADD, Mistake.new("x", origin=Origin.SEED)) == [FindingKind.NO_AVOID]
        assert self.kinds(Skill.new("a \times b", when="w", origin=Origin.SEED), SLIP) == [FindingKind.BROKEN_LATEX]
        fine = Skill.new("e has no factor:\ne.g. it is\ne) a unit.", title="x", when="u is known.", origin=Origin.SEED)
        assert self.kinds(fine, SLIP) == []

    @pytest.mark.parametrize("token", ["<|im_start|>", "<|endoftext|>", "</think>", "[INST]", "<｜User｜>", "</s>"])
    def test_control_tokens_are_found_in_any_field(self, token: str) -> None:
        assert self.kinds(Skill.new("x", when=f"a{token}b", origin=Origin.SEED), SLIP) == [FindingKind.CONTROL_TOKEN]

    def test_comparisons_are_not_taken_for_control_tokens(self) -> None:
        assert self.kinds(Skill.new("if a<b and |x|>c, or <x, y>", when="w", origin=Origin.SEED), SLIP) == []


class TestSeeds:
    @pytest.mark.parametrize("name", seed_banks())
    def test_a_shipped_bank_is_sound_canonical_and_holds_no_worked_results(self, name: str) -> None:
        bank = SkillBank.load(f"seed:{name}")
        assert bank.name == name
        assert {finding.kind for finding in bank.check()} <= {FindingKind.UNEQUAL_LISTS}
        assert all(item.origin is Origin.SEED for item in bank.items)
        assert bank.max_pairs >= 8
        for skill in bank.skills:
            assert skill == Skill.new(skill.text, title=skill.title, when=skill.when, origin=Origin.SEED)
        for mistake in bank.mistakes:
            assert mistake == Mistake.new(mistake.text, title=mistake.title, avoid=mistake.avoid, origin=Origin.SEED)
        # No digit, hence no answer of any problem, and no example whose result could be copied.
        assert not [item.id for item in bank.items if any(c.isdigit() for c in item.title + item.text + item.note)]

    def test_an_unknown_one_is_answered_with_the_nearest(self) -> None:
        with pytest.raises(
            BankError, match="no such shipped bank: got 'arithmetic'; expected 'arithmetic-word-problems'"
        ):
            SkillBank.load("seed:arithmetic")
