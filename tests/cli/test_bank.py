"""``sgsd bank``: looking, checking, changes, origins, both formats; for people and for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgsd.bank import Mistake, Origin, Skill, SkillBank
from sgsd.cli import main
from sgsd.data.problems import Problem
from sgsd.memories import Memory, memory_of
from sgsd.verifiers import Outcome, Verdict

SEED = "seed:mental-arithmetic"
COMMON = {
    "name": "public",
    "general_skills": [{"skill_id": "gen_001", "title": "Draw", "principle": "Draw it.", "when_to_apply": "Always."}],
    "task_specific_skills": {"sums": ["Carry the ten.", {"id": 7, "name": "Twice", "text": "Add twice."}]},
    "common_mistakes": [{"description": "Sign lost.", "why_it_happens": "Haste.", "how_to_avoid": "Look."}, "Copied."],
    "metadata": {"total": 3},
    "version": 2,
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "bank.json"


# ---- show, search


def test_show(sgsd):
    assert "8 skills, 8 mistakes" in sgsd("bank", "show", SEED).out
    document = json.loads(sgsd("bank", "show", SEED, "--json").out)
    assert len(document["skills"]) == len(SkillBank.load(SEED).skills)


def test_what_looks_like_markup_is_shown_as_it_is(sgsd, file):
    bank = SkillBank((Skill.new("Write [bold]x[/bold] in [/brackets].", title="[red]", origin=Origin.ONLINE),))
    bank.save(file)
    shown = sgsd("bank", "show", file).out
    assert "Write [bold]x[/bold] in [/brackets]." in shown
    assert "[red]" in shown
    (file.parent / "none.json").write_text('{"skills": [], "mistakes": []}')
    assert "[/brackets]." in sgsd("bank", "diff", file.parent / "none.json", file).out


def test_search(sgsd):
    rows = json.loads(sgsd("bank", "search", SEED, "What is 7 × 8?", "--k", "3", "--json").out)
    assert len(rows) == 3
    assert sum(row["weight"] for row in rows) == pytest.approx(1)
    assert "3 pairs by" in sgsd("bank", "search", SEED, "What is 7 × 8?", "--k", "3").out


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", SEED],
        ["search", SEED, "What is 7 × 8?"],
        ["check", "seed:competition-mathematics"],
        ["diff", SEED, "seed:competition-mathematics"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_tables_fit_80_columns(sgsd, tmp_path, monkeypatch, arguments):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    item = Skill.new("a", title="b", when="c", origin=Origin.ONLINE, parents=["memory-0123456789abcdef"])
    SkillBank((item,), (Mistake("i" * 128, "", "A long id " * 30),)).save("bank.json")
    result = sgsd("bank", *arguments)
    assert result.code in (0, 1)
    assert max(len(line) for line in result.out.splitlines()) <= 80
    assert "…" not in result.out


# ---- formats


def test_import_and_export_there_and_back(sgsd, tmp_path):
    common, native = tmp_path / "common.json", tmp_path / "native.json"
    assert sgsd("bank", "export", SEED, common).code == 0
    assert "general_skills" in json.loads(common.read_text())
    before = common.read_bytes()
    assert "--force" in sgsd("bank", "export", "seed:arithmetic-word-problems", common).error
    assert common.read_bytes() == before
    assert sgsd("bank", "import", common, native).code == 0
    texts = [item.text for item in SkillBank.load(native).items]
    assert texts == [item.text for item in SkillBank.load(SEED).items]
    assert sgsd("bank", "export", "seed:arithmetic-word-problems", common, "--force").code == 0
    assert common.read_bytes() != before
    assert sgsd("bank", "export", native, common, "--format", "native", "--force").code == 0
    assert common.read_bytes() == native.read_bytes()


def test_what_an_import_does_not_carry_is_named(sgsd, tmp_path):
    (tmp_path / "public.json").write_text(json.dumps(COMMON))
    result = sgsd("bank", "import", tmp_path / "public.json", tmp_path / "bank.json")
    assert result.err == f"{tmp_path / 'public.json'}: keys that banks do not have were left out: version\n"
    assert sgsd("bank", "import", SEED, tmp_path / "bank.json", "--force").err == ""


def test_an_import_tells_which_lines_of_a_document_became_no_item(sgsd, tmp_path):
    document = tmp_path / "SKILL.md"
    document.write_text("---\nname: a\n---\n# House\n\n## Never print\n\n" + "## Notes\n\n" * 4)
    result = sgsd("bank", "import", document, tmp_path / "bank.json")
    assert result.out == f"{tmp_path / 'bank.json'}: 0 skills, 1 mistake\n"
    told = "SKILL.md:8 ## Notes; SKILL.md:10 ## Notes; SKILL.md:12 ## Notes …"
    assert result.err == f"{document}: 4 lines became no item: {told}\n"
    document.write_text("# House\n\n## Never print\n")
    assert sgsd("bank", "import", tmp_path, tmp_path / "bank.json", "--force").err == ""


WORDS = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12)
FILLED = WORDS.filter(lambda text: bool(text.strip()))
NUMBERS = st.integers(0, 99)
COMMON_SKILLS = st.lists(
    FILLED
    | st.fixed_dictionaries(
        {"principle": FILLED},
        optional={"skill_id": NUMBERS, "title": WORDS | st.none(), "when_to_apply": WORDS, "weight": NUMBERS},
    ),
    max_size=4,
)
COMMON_MISTAKES = st.lists(
    FILLED
    | st.fixed_dictionaries(
        {"description": FILLED}, optional={"title": WORDS, "why_it_happens": WORDS | st.none(), "how_to_avoid": WORDS}
    ),
    max_size=4,
)
COMMON_FILES = st.fixed_dictionaries(
    {"general_skills": COMMON_SKILLS, "common_mistakes": COMMON_MISTAKES},
    optional={
        "name": WORDS,
        "metadata": st.dictionaries(WORDS, NUMBERS | WORDS, max_size=2),
        "task_specific_skills": st.dictionaries(WORDS, COMMON_SKILLS, max_size=2),
        "extra": NUMBERS,
    },
)


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(COMMON_FILES)
def test_any_common_file_that_can_be_read_comes_back_the_same(tmp_path_factory, document):
    folder = tmp_path_factory.mktemp("common")
    source = folder / "public.json"
    source.write_text(json.dumps(document))
    if main(["bank", "import", str(source), str(folder / "read.json")]) == 0:
        assert_round_trip(folder, source)


def assert_round_trip(folder: Path, source: Path) -> None:
    """import → export → import: the same native file, and the same common one."""
    names = {name: str(folder / f"{name}.json") for name in ("first", "exported", "second", "again")}
    assert main(["bank", "import", str(source), names["first"]]) == 0
    assert main(["bank", "export", names["first"], names["exported"], "--format", "common"]) == 0
    assert main(["bank", "import", names["exported"], names["second"]]) == 0
    assert main(["bank", "export", names["second"], names["again"], "--format", "common"]) == 0
    assert Path(names["first"]).read_bytes() == Path(names["second"]).read_bytes()
    assert Path(names["exported"]).read_bytes() == Path(names["again"]).read_bytes()


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ('{"schema_version": 2, "skills": []}', "written by a newer version: got schema_version 2"),
        ('{"skills": [{"id": "a", "text": "x"}, {"id": "a", "text": "y"}]}', "different items share an id: got 'a'"),
        ('{"skills": [', "malformed JSON: got Expecting value at line 1"),
        ('{"skils": []}', "not a bank: got keys ['skils']"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_one_line_and_nothing_is_written(sgsd, tmp_path, text, fragment):
    (tmp_path / "bad.json").write_text(text)
    for arguments in (["import", "bad.json", "bank.json"], ["check", "bad.json"], ["show", "bad.json"]):
        result = sgsd("bank", *(tmp_path / part if part.endswith("json") else part for part in arguments))
        assert result.code == 2
        assert len(result.err.splitlines()) == 1
        assert fragment in result.error
    assert [path.name for path in tmp_path.iterdir()] == ["bad.json"]


# ---- changes


def test_an_import_onto_a_bank_replaces_it_where_that_is_asked_for(sgsd, file):
    assert sgsd("bank", "import", SEED, file).out == f"{file}: 8 skills, 8 mistakes\n"
    refused = sgsd("bank", "import", "seed:competition-mathematics", file)
    assert refused.code == 2
    assert "the target exists" in refused.error
    told = json.loads(sgsd("bank", "import", "seed:competition-mathematics", file, "--force", "--json").out)
    assert told == {"file": str(file), "digest": SkillBank.load("seed:competition-mathematics").digest}
    assert SkillBank.load(file) == SkillBank.load("seed:competition-mathematics")
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_folder_stands_for_its_bank_wherever_a_bank_is_read(sgsd, file):
    sgsd("bank", "import", SEED, file)
    assert "8 skills, 8 mistakes" in sgsd("bank", "show", file.parent).out
    found = [sgsd("bank", "search", bank, "What is 7 × 8?", "--json").out for bank in (file, file.parent)]
    assert found[0] == found[1] == sgsd("bank", "search", SEED, "What is 7 × 8?", "--json").out
    assert "the same items\n" in sgsd("bank", "diff", file.parent, SEED).out


def test_diff_shows_each_field_that_changed(sgsd, file):
    sgsd("bank", "import", SEED, file)
    file.write_text(file.read_text().replace("Carry the ten", "Carry ten"))
    shown = sgsd("bank", "diff", SEED, file).out
    assert "title − Carry the ten" in shown
    assert "title + Carry ten" in shown


def test_diff_for_programs(sgsd, tmp_path):
    one, two = Skill.new("One.", origin=Origin.SEED), Skill.new("Two.", origin=Origin.SEED)
    other = Skill(one.id, "", "One, but more.")
    banks = {"a": (one, two), "b": (two, one), "c": (other,)}
    for name, skills in banks.items():
        SkillBank(skills).save(tmp_path / f"{name}.json")

    def diff(before: str, after: str) -> dict:
        return json.loads(sgsd("bank", "diff", tmp_path / before, tmp_path / after, "--json").out)

    moved = diff("a.json", "b.json")
    assert (moved["added"], moved["removed"], moved["changed"], moved["order_changed"]) == ([], [], [], True)
    assert "in another order" in sgsd("bank", "diff", tmp_path / "a.json", tmp_path / "b.json").out
    changed = diff("a.json", "c.json")
    assert [item["id"] for item in changed["removed"]] == [two.id]
    assert [(pair["before"]["text"], pair["after"]["text"]) for pair in changed["changed"]] == [
        ("One.", "One, but more.")
    ]
    assert "0 added, 1 removed, 1 changed" in sgsd("bank", "diff", tmp_path / "a.json", tmp_path / "c.json").out


# ---- check


def remembered(number: int, *, right: bool = False) -> Memory:
    problem = Problem(
        id=f"sum-{number}", text=f"Ann has {number} red pens. She buys 4 blue ones.", answer=f"{181 + number}"
    )
    verdict = Verdict(Outcome.CORRECT if right else Outcome.INCORRECT, None, "3")
    memory = memory_of(problem, f"First I add {number}.\nSo 3.", verdict, truncated=False, source=f"sum-{number}#0")
    assert memory is not None
    return memory


@pytest.fixture
def build(tmp_path: Path) -> Path:
    """What ``sgsd bank build`` leaves: three candidates, one a memory, merged into the bank's item."""
    memories = [remembered(0, right=True), remembered(1), remembered(2)]
    lineage = {f"skill-{n}": [memory.id] for n, memory in enumerate(memories)}
    parents = tuple(memory.id for memory in memories)
    item = Skill("top", "Carry", "Carry on. The answer is 181.", "Always", Origin.COLD_START, parents)
    write_lines(tmp_path / "memories.jsonl", [memory.as_dict() for memory in memories])
    (tmp_path / "lineage.json").write_text(json.dumps({**lineage, "top": list(lineage)}))
    SkillBank((item,), (Mistake("slip", "", "Slips.", "Look."),)).save(tmp_path / "bank.json")
    return tmp_path


def write_lines(file: Path, rows: list) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_check(sgsd, file):
    assert sgsd("bank", "check", SEED).code == 0
    assert json.loads(sgsd("bank", "check", SEED, "--json").out) == []
    file.write_text('{"skills": [{"text": "Carry."}], "mistakes": []}')
    result = sgsd("bank", "check", file, "--json")
    assert result.code == 1
    assert {"kind", "ids", "message"} == set(json.loads(result.out)[0])
    assert "no-when" in sgsd("bank", "check", file).out


def test_a_document_that_trains_has_nothing_odd(sgsd, tmp_path):
    """Seen before the mend: exit code 1, since it has no mistakes, and no rule says when to apply it."""
    document, imported = tmp_path / "SKILL.md", tmp_path / "bank.json"
    document.write_text("# Rules\n\n- Add first.\n- Say please.\n", encoding="utf-8")
    assert sgsd("bank", "import", document, imported).code == 0
    for bank in (document, imported):
        result = sgsd("bank", "check", bank)
        assert result.code == 0
        assert "2 skills, 0 mistakes, nothing odd" in result.out


def test_check_finds_answers_of_the_problems_that_items_came_from(sgsd, build):
    (leak,) = json.loads(sgsd("bank", "check", build, "--json").out)
    assert leak["kind"] == "leak-answer"
    assert leak["ids"] == [SkillBank.load(build / "bank.json").skills[0].id]
    assert (leak["problem"], leak["held"]) == ("sum-0", "carry on the answer is 181 always")
    result = sgsd("bank", "check", build)
    assert result.code == 1
    assert "leak-answer" in result.out
    assert "leaks: items 2, problems 3, compared by word 13-grams" in result.err


@pytest.mark.parametrize(
    ("name", "text", "fragment"),
    [
        ("lineage.json", "{", "lineage.json: malformed JSON"),
        ("lineage.json", '{"a": "b"}', "lineage.json: a: cannot be used: got"),
        ("memories.jsonl", "{}\n", "memories.jsonl:1: not a memory"),
    ],
)
def test_damaged_origins_are_named_in_one_line(sgsd, build, name, text, fragment):
    (build / name).write_text(text)
    assert fragment in sgsd("bank", "check", build).error


def test_check_says_whose_answers_it_could_not_compare(sgsd, build, tmp_path):
    (build / "memories.jsonl").rename(tmp_path / "elsewhere.jsonl")
    result = sgsd("bank", "check", build)
    assert "nothing to compare with" in result.err
    assert "items with parents but without a memory: 1" in result.err
    assert "leak-answer" not in result.out
    assert "leak-answer" in sgsd("bank", "check", build, "--memories", tmp_path / "elsewhere.jsonl").out
    assert "elsewhere" in sgsd("bank", "check", build, "--memories", tmp_path / "elsewhere").error


def test_check_finds_problems_by_file_and_as_a_benchmark(sgsd, tmp_path, file):
    rows = [{"id": f"p{n}", "problem": f"Tom has {n} apples and eats 2 of them.", "answer": "1"} for n in (30, 40)]
    write_lines(tmp_path / "data.jsonl", rows)
    held = Skill("held", "", "As in: Tom has 30 apples and eats 2 of them.", "Always")
    SkillBank((held,), (Mistake("slip", "", "Slips.", "Look."),)).save(file)
    trained = json.loads(sgsd("bank", "check", file, "--problems", tmp_path / "data.jsonl", "--json").out)
    assert [(row["kind"], row["problem"]) for row in trained] == [("leak-training-problem", "p30")]
    tested = json.loads(sgsd("bank", "check", file, "--benchmark", tmp_path / "data.jsonl", "--json").out)
    assert [(row["kind"], row["source"]) for row in tested] == [("leak-benchmark", str(tmp_path / "data.jsonl"))]
    both = ["--problems", tmp_path / "data.jsonl", "--benchmark", tmp_path / "data.jsonl"]
    assert len(json.loads(sgsd("bank", "check", file, *both, "--json").out)) == 2
    assert "--n is out of range" in sgsd("bank", "check", file, *both, "--n", "4").error
    assert "gone.jsonl" in sgsd("bank", "check", file, "--problems", tmp_path / "gone.jsonl").error


def test_an_export_warns_of_what_markdown_does_not_keep(sgsd, tmp_path):
    texts = {"list": "- one\n- two", "rule": "---", "open": "```\ncode", "fine": "Add  first,\nthen round."}
    items = [{"id": name, "title": "Sums", "text": text} for name, text in texts.items()]
    (tmp_path / "bank.json").write_text(json.dumps({"skills": items, "mistakes": []}))
    result = sgsd("bank", "export", tmp_path / "bank.json", tmp_path / "SKILL.md", "--format", "skill-md")
    assert result.code == 0
    assert "3 of 4 items are other rules when it is read (--format native keeps them): list, rule, open" in result.error
    (tmp_path / "bank.json").write_text(json.dumps({"skills": items[3:], "mistakes": []}))
    assert sgsd("bank", "export", tmp_path / "bank.json", tmp_path / "b.md", "--format", "skill-md").err == ""


@pytest.mark.parametrize("kept", ["null", "3", "[1]", '{"a": 1}'])
def test_a_check_s_memories_of_another_type_are_refused_by_line(sgsd, tmp_path, kept):
    (tmp_path / "bank.json").write_text(json.dumps({"skills": [{"id": "s", "text": "Add."}], "mistakes": []}))
    (tmp_path / "maintenance.jsonl").write_text(f'{{"step": 1, "items": [], "memories_kept": {kept}}}\n')
    result = sgsd("bank", "check", tmp_path / "bank.json")
    assert (result.code, "maintenance.jsonl:1: memories_kept" in result.error) == (2, True), result.err
