"""Documents of rules as banks, and back."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgsd.bank import Mistake, Origin, Skill, SkillBank, seed_banks
from sgsd.bank.documents import lines_without_item, load_bank, read_document, without_items, write_document
from sgsd.errors import BankError

HOUSE = """\
---
name: house-rules
description: How things are put away here.
---

# House rules

Everything made of clay belongs on shelf 1,
even if it is broken.

Log with:

- `log.note(text)` for what happens;
- `log.alarm(text)` for what should not.

## Reading

1. Read settings by `cfg.pull`.

   ```python
   cfg.pull("port")
   ```
2. **Never** read the environment.

| kind | shelf |
|---|---|
| glass | 2 |
| wood | 3 |

<!-- a comment -->

```
alone
```
"""


def read(tmp_path: Path, text: str, name: str = "SKILL.md") -> SkillBank:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode())
    return read_document(file)


def said(bank: SkillBank) -> list[tuple[str, str]]:
    return [(item.title, item.text) for item in bank.items]


def test_every_rule_is_an_item_with_its_headings_and_place(tmp_path: Path) -> None:
    bank = read(tmp_path, HOUSE)
    assert said(bank) == [
        ("House rules", "Everything made of clay belongs on shelf 1, even if it is broken."),
        ("House rules › Log with", "`log.note(text)` for what happens;"),
        ("House rules › Log with", "`log.alarm(text)` for what should not."),
        ("House rules › Reading", 'Read settings by `cfg.pull`.\n\n```python\ncfg.pull("port")\n```'),
        ("House rules › Reading", "kind: glass; shelf: 2"),
        ("House rules › Reading", "kind: wood; shelf: 3"),
        ("House rules › Reading", "```\nalone\n```"),
        ("House rules › Reading", "**Never** read the environment."),
    ]
    assert [type(item) for item in bank.items].count(Mistake) == 1
    assert (bank.name, bank.metadata["description"]) == ("house-rules", "How things are put away here.")
    lines = HOUSE.splitlines()
    sources = bank.metadata["sources"]
    assert isinstance(sources, dict)
    for item in bank.items:
        file, line = str(sources[item.id]).split(":")
        assert file == "SKILL.md"
        assert item.text.split()[1].strip("`*;") in lines[int(line) - 1] + lines[int(line)]
    assert str(bank.metadata["document"]).startswith("# House rules")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- Be brief.\n  - Not more than a line.", [("", "Be brief.\n\n- Not more than a line.")]),
        ("- For sums:\n  - carry.", [("For sums", "carry.")]),
        ("Do this:\n\n```\nx\n```", [("", "Do this:\n\n```\nx\n```")]),
        ("> Quoted rule.", [("", "Quoted rule.")]),
        ("# A\n\n# B\n\ntext\n\n### C\n\ntext", [("B", "text"), ("B › C", "text")]),
        ("- add\n  - When: numbers", [("", "add")]),
        (
            "\ufeff---\r\nname: x\r\ndescription: >\r\n  a\r\ntools: [a, {b: c}]\r\n---\r\n\r\nOne\r\nrule.\r\rTwo.",
            [("", "One rule."), ("", "Two.")],
        ),
        (
            "[s-1] helpful=4 harmful=1 :: Add.\n[s-2] helpful=0 harmful=0 :: Check.",
            [("", "Add."), ("", "Check.")],
        ),
        ("same\n\nsame", [("", "same")]),
        ("- [ ] 1. add\n- 2)\n  - When: x", [("", "1\\. add"), ("", "When: x")]),
        (
            "[s-1] helpful=4 harmful=1 :: Add\nthis:\n[s-2] :: Never.\n- a\n[s-3] :: Log:\n```\nx\n```\n- [s-4] :: Do.",
            [("", "Add this:"), ("", "Never."), ("", "a"), ("", "Log:\n\n```\nx\n```"), ("", "Do.")],
        ),
        ("- Add.\n  1. a\n  2) b\n     > c\n", [("", "Add.\n\n1. a\n\n2) b\n\n   > c")]),
        ("- Add:\n  - a\n\n  Then b.", [("Add", "a"), ("", "Then b.")]),
        ("- **Sums**\n  1. Add.\n  2. Check.", [("Sums", "Add."), ("Sums", "Check.")]),
        (f"- {'long ' * 30}:\n  - a", [("", f"{'long ' * 30}:\n\n- a")]),
        (
            "**Always:**\n\n- a\n\nForms\n\n- b\n\nEnd.\n\n- c",
            [("Always", "a"), ("Forms", "b"), ("", "End."), ("", "c")],
        ),
        ("In short:\n\nAdd.\n\nCheck.", [("In short", "Add."), ("", "Check.")]),
        ("Say\nthis:\n\n> Hello.\n>\n> - you", [("", "Say this:\n\n> Hello.\n>\n> - you")]),
        ("- [ ] add\n- [x] check\n- [ ] sum:\n  - x", [("", "add"), ("", "check"), ("sum", "x")]),
        ("    ```\n    x  \n    y", [("", "````\n```\nx  \ny\n````")]),
        ("| | b |\n|---|---|\n| x \\| y | z |\n| - | |", [("", "x | y; b: z"), ("", "\\-")]),
        ("- Add.\n\n  | a |\n  |---|\n  | x \\| y |", [("", "Add.\n\n| a |\n| --- |\n| x \\| y |")]),
        ("- [A](#a)\n- 1.2 [B](#b) — high\n\n@AGENTS.md\n\nrule [c](#c).", [("", "rule [c](#c).")]),
        (
            "<!-- a\n\n- no rule\n-->\n\n<!-- b --> c\n\na <b>rule</b> <!-- x -->",
            [("", "<!-- b --> c"), ("", "a <b>rule</b> <!-- x -->")],
        ),
        ("<Tone>\n```\nx\n```\nShort.\n</Tone>\nend", [("Tone", "```\nx\n```"), ("Tone", "Short."), ("", "end")]),
        ("<details>\n<summary>More:</summary>\n\n- a\n</details>\n\nb", [("More", "a"), ("", "b")]),
        ("<!--\na\n--> - b\n\n- c\n  <!--\n  d -->\n  e\n\n<!--\n--> <!-- f -->", [("", "\\- b"), ("", "c\n\ne")]),
        ("- <!--\n  a\n  --> b\n- c", [("", "b"), ("", "c")]),
        (
            "- [Never do it](#a) — because it harms\n- [Never do it](#a)\n- [Tone](#b) - in all our letters",
            [("", "[Never do it](#a) — because it harms")],
        ),
        (
            "# House\n\n## 1. Never commit secrets\n\n---\n\n## 1.2 **Use** tabs\n<!-- a -->\n## Logging\n\n"
            "## Log\n- a\n### Run the tests\n> ## Always add:\n\n## Overview",
            [
                ("House", "Never commit secrets"),
                ("House", "**Use** tabs"),
                ("House › Log", "a"),
                ("House › Log › Run the tests", "Always add:"),
            ],
        ),
        ("- a\n\n# A\n\nb:\n- c\n\n#\n\nd", [("", "a"), ("A › b", "c"), ("", "d")]),
        ("###### F\n\na:\n- b\n\nc:\n- **d:**\n  - e", [("F › a", "b"), ("F › c › d", "e")]),
        ("1. **A**:\n- a\n- b\n2. B:\n- c\n\nd", [("A", "a"), ("A", "b"), ("B", "c"), ("", "d")]),
        ("A:\n\n1. Add.\n2. Go:\n\n```\nx\n```\n\n- y:", [("A", "Add."), ("A", "Go:\n\n```\nx\n```"), ("", "y:")]),
        ("All:\n- b:\n\nc", [("All › b", "c")]),
        (
            "A:\n• a\n• b.\n  ◦ c\n\n> ● d\n\n•e • f.\n\n- ```\n  • g\n  ```",
            [("A", "a"), ("A", "b.\n\n- c"), ("", "d"), ("", "•e • f."), ("", "```\n• g\n```")],
        ),
    ],
)
def test_blocks_become_rules(tmp_path: Path, text: str, expected: list[tuple[str, str]]) -> None:
    bank = read(tmp_path, text)
    assert sorted(said(bank)) == sorted(expected)
    assert read(tmp_path, write_document(bank)).items == bank.items


@pytest.mark.parametrize(
    ("text", "forbids"),
    [
        ("Never print.", True),
        ("Don’t print.", True),
        ("_Do not_ print.", True),
        ("You never know; print.", False),
        ("Avoidance is fine.", False),
        ("## Common mistakes\n\nPrints.", True),
        ("## Anti-patterns\n\nPrints.", True),
        ("**Never** print.", True),
        ("Do **NOT** print.", True),
        ("❌ print", True),
        ("✅ log", False),
        ("## Common mistakes\n\n✅ log", False),
        ("**Incorrect (slow):**\n\n```\nprint\n```", True),
        ("**Correct:**\n\n```\nlog\n```", False),
        ("Wrong answers cost points.", False),
        ("<Bad>\nPrints.\n</Bad>", True),
        ("| Don't | Do |\n|---|---|\n| print | log |", True),
        ("## Things to avoid\n\nPrints.", True),
        ("To avoid noise:\n\n- Log.", False),
        ("## Avoid prints\n\nLog.", False),
        ("**Never do this:**\n\n- Print.", True),
        ("- **Avoid:**\n\n* Prints.", True),
        ("Never print; for logs:\n\n- Log.", True),
        ("Do not print. In its place:\n\n- Log.", False),
        ("As checks/anti-patterns.md says:\n\n- Log.", False),
        ("## Red flags\n\nPrints.", True),
        ("## Do's and Don’ts\n\nLog.", False),
        ("## 6. DOs & DON'Ts\n\n### Do\n\nLog.", False),
        ("## Do’s and don'ts\n\n### Don’ts\n\nPrints.", True),
        ("## Don'ts / Dos\n\nLog.", False),
        ("## What to do and what not to do\n\nLog.", False),
        ("## What not to do\n\nPrints.", True),
        ("## 常见错误\n\nPrints.", True),
        ("请勿打印。", True),
    ],
)
def test_what_a_rule_forbids_is_a_mistake(tmp_path: Path, text: str, forbids: bool) -> None:
    (item,) = read(tmp_path, text).items
    assert isinstance(item, Mistake) == forbids


def test_linked_files_of_the_folder_belong_to_it_and_no_others(tmp_path: Path) -> None:
    outside = tmp_path / "secret.md"
    outside.write_text("secret rule")
    folder = tmp_path / "skill"
    (folder / "more").mkdir(parents=True)
    (folder / "link.md").symlink_to(outside)
    (folder / "more" / "one.md").write_text("inner rule [back](../SKILL.md) [two](two.md)")
    (folder / "more" / "two.md").write_text("deeper rule")
    (folder / "unlinked.md").write_text("unlinked rule")
    links = "[a](more/one.md) [b](../secret.md) [c](link.md) [d](/etc/passwd.md) [e](file:///etc/x.md) [f](gone.md#x)"
    bank = read(tmp_path, f"rule {links} [g](%2e%2e/secret.md) [h](https://x.org/y.md)", "skill/SKILL.md")
    assert bank.metadata["files"] == ["SKILL.md", "more/one.md", "more/two.md"]
    assert not any("secret" in item.text for item in bank.items[1:])
    assert load_bank(folder) == bank


def test_a_folders_document_is_no_link_out_of_it_and_all_files_count_for_the_limit(tmp_path: Path) -> None:
    (tmp_path / "outside.md").write_text("secret rule")
    folder = tmp_path / "skill"
    folder.mkdir()
    (folder / "SKILL.md").symlink_to(tmp_path / "outside.md")
    with pytest.raises(BankError, match="lies elsewhere"):
        load_bank(folder)
    (folder / "SKILL.md").unlink()
    for name in ("a", "b"):
        (folder / f"{name}.md").write_text(("- " + "rule " * 120 + "\n") * 1_000)
    (folder / "SKILL.md").write_text("rule [a](a.md) [b](b.md)")
    with pytest.raises(BankError, match=r"too large: got .*b\.md"):
        read_document(folder)
    (folder / "b.md").unlink()
    (folder / "bank.json").write_text('{"skills": [{"text": "x"}]}')
    assert load_bank(folder).skills[0].text == "x"  # a run's folder, whatever else lies in it


def test_a_linked_file_without_headings_has_its_name_as_title(tmp_path: Path) -> None:
    (tmp_path / "more.md").write_text("inner\n\n# Own\n\nrule")
    assert said(read(tmp_path, "rule\n\n# A\n\nsee [more][m]\n\n[m]: more.md")) == [
        ("", "rule"),
        ("A", "see [more][m]"),
        ("more", "inner"),
        ("Own", "rule"),
    ]


def test_a_bank_goes_to_a_document_and_comes_back(tmp_path: Path) -> None:
    for bank in (SkillBank.load(f"seed:{name}") for name in seed_banks()):
        again = read(tmp_path, write_document(bank))
        assert {item.id for item in again.items} == {item.id for item in bank.items}
        assert again.name == bank.name
    bank = read(tmp_path, HOUSE)
    again = read(tmp_path, write_document(bank))
    assert (again.items, again.name) == (bank.items, bank.name)
    assert again.metadata["description"] == bank.metadata["description"]
    assert write_document(again) == write_document(bank)


def test_a_document_is_written_as_a_person_would(tmp_path: Path) -> None:
    assert (
        write_document(read(tmp_path, HOUSE)).partition('put away here."')[2]
        == """
---

# House rules

- Everything made of clay belongs on shelf 1, even if it is broken.

## Log with

- `log.note(text)` for what happens;
- `log.alarm(text)` for what should not.

## Reading

- Read settings by `cfg.pull`.

  ```python
  cfg.pull("port")
  ```
- **Never** read the environment.
- kind: glass; shelf: 2
- kind: wood; shelf: 3
- ```
  alone
  ```
"""
    )


_words = st.text("abc xyz`*_,.()", min_size=1, max_size=30).map(lambda text: f"w {text} w".replace("  ", " "))
_blocks = st.one_of(
    _words,
    _words.map("- {}".format),
    _words.map("1. {}".format),
    _words.map("# {}".format),
    _words.map("### {}".format),
    _words.map("- never {}".format),
    _words.map("> {}".format),
    _words.map("```\n{}\n```".format),
    _words.map("{}:".format),
    _words.map("| a | b |\n|---|---|\n| {} | y |".format),
)


@given(st.lists(_blocks, min_size=1, max_size=12))
def test_what_was_read_is_read_again(tmp_path_factory: pytest.TempPathFactory, blocks: list[str]) -> None:
    folder = tmp_path_factory.mktemp("document")
    bank = read(folder, "\n\n".join(["a rule", *blocks]))
    again = read(folder, write_document(bank))
    assert again.items == bank.items
    assert write_document(again) == write_document(bank)


@pytest.mark.parametrize(
    ("text", "out", "left"),
    [
        ("a\n\nb\n\nc", "b", "a\n\nc"),
        ("a\n\nb\n\nc", "c", "a\n\nb"),
        ("# A\na\n\n## B\n\nb\n\n# C\n\nc", "a", "# A\n\n## B\n\nb\n\n# C\n\nc"),
        ("# A\na\n\n## B\n\nb\n\n# C\n\nc", "b", "# A\na\n\n# C\n\nc"),
        ("# A\na\n\n## B\n\nb\n\n# C\n\nc", "a+b", "# C\n\nc"),
        ("- a\n- b\n\n  ```\n\n  x\n  ```\n  - more\n- c", "b", "- a\n- c"),
        ("Do:\n1. a\n2. b", "a", "Do:\n\n2. b"),
        ("Do:\n1. a\n2. b\n\nc", "a+b", "c"),
        ("Do.\n1. a\n2. b", "a", "Do.\n\n2. b"),
        ("• a\n• b\n• c", "b", "• a\n• c"),
        ("1. a\n   a\n2. b\n3. c", "b", "1. a\n   a\n3. c"),
        ("c\n\n| k |\n|---|\n| a |\n| b |\n", "k: a", "c\n\n| k |\n|---|\n| b |"),
        ("c.\n\n| k |\n|---|\n| a |\n", "k: a", "c."),
        ("c\n\na:\n\n```\nx\n```\nd", "a:", "c\n\nd"),
        ("- c\n```\na\n```\nd", "```", "- c\n\nd"),
        ("> a\n>\n> b\n\nc", "a", "> b\n\nc"),
        ("a\n\nb\n\na", "a", "b"),
        ("[x] :: a\n[y] :: b\nb\n[z] :: c", "b", "[x] :: a\n[z] :: c"),
        ("<!-- x -->\n- **g:**\n  - a\n- b", "a", "<!-- x -->\n- b"),
    ],
)
def test_items_are_left_out_with_their_blocks(tmp_path: Path, text: str, out: str, left: str) -> None:
    bank = read(tmp_path, text)
    gone = [item.id for item in bank.items if item.text.startswith(tuple(out.split("+")))]
    assert gone
    assert without_items(bank, []) == text.strip()
    assert without_items(bank, gone) == left


def test_what_is_not_in_the_document_cannot_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "more.md").write_text("inner")
    bank = read(tmp_path, "rule [more](more.md)")
    inner = bank.items[1].id
    assert without_items(bank, [inner, "mined-later"]) == "rule [more](more.md)"
    changed = SkillBank(bank.skills, name=bank.name, metadata={**bank.metadata, "document": "another"})
    with pytest.raises(BankError, match="no such item"):
        without_items(changed, [bank.items[0].id])
    with pytest.raises(BankError, match="no document"):
        without_items(SkillBank(bank.skills), [])


_sentences = st.text("abc`*_,()", min_size=1, max_size=20).map(lambda text: f"W {text} w.")
_rules = st.one_of(
    _sentences,
    st.lists(_sentences, min_size=1, max_size=4).map(
        lambda all: "\n".join(f"{n}. {one}" for n, one in enumerate(all, 1))
    ),
    st.lists(_sentences, min_size=1, max_size=3).map(
        lambda all: "Do:\n\n" + "\n".join(f"- {one}\n  - {one}" for one in all)
    ),
    _sentences.map("# {}".format),
    _sentences.map("### {}".format),
    _sentences.map("> {}".format),
    _sentences.map("W:\n\n```\n{}\n\nx\n```".format),
    _sentences.map("| a | b |\n|---|---|\n| {} | y |\n| z | |".format),
)


@given(st.lists(_rules, min_size=1, max_size=8), st.randoms())
def test_the_rest_is_read_as_before(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[str], random: Random
) -> None:
    folder = tmp_path_factory.mktemp("document")
    bank = read(folder, "\n\n".join(["A rule.", *blocks, "# End", "Z."]))
    assert without_items(bank, []) == bank.metadata["document"]
    gone = random.sample(bank.items[:-1], random.randint(1, len(bank.items) - 1))
    left = read(folder, without_items(bank, [item.id for item in gone]))
    assert left.items == bank.without([item.id for item in gone]).items


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no rule"),
        ("# Only a heading", "holds no rule"),
        ("---\n- a\n---\nx", "not a mapping"),
        ("---\na: {\n---\nx", "not YAML"),
        ("---\na: &x [1]\nb: [*x, *x]\n---\nx", "an alias"),
        ("---\nname: a\nname: b\n---\nx", "twice"),
        ("x\n" * (1 << 20), "too large"),
        ("x\n" * 20_001, "too large"),
        ("---\na: " + "[" * 20_000 + "\n---\nx", "not YAML"),
        ("<!-- {}", "holds no rule"),
        ("bad \0 rule", r"U\+0000"),
        ("bad \0 rule".replace("\0", "\x07"), r"U\+0007"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(BankError, match=complaint) as error:
        read(tmp_path, text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("> " * 20_000 + "x", id="quotes"),
        pytest.param("- " * 20_000 + "x", id="lists"),
        pytest.param("\n".join(f"{'  ' * depth}- x" for depth in range(200)), id="steps"),
        pytest.param("[" * 50_000, id="brackets"),
        pytest.param("[a](" * 20_000, id="links"),
        pytest.param("*a " * 50_000, id="stars"),
        pytest.param("`" * 50_000, id="ticks"),
        pytest.param("|" * 50_000 + "\n|-|", id="pipes"),
        pytest.param("|a" * 5_000 + "|\n" + "|-" * 5_000 + "|\n" + "|b" * 5_000 + "|", id="columns"),
        pytest.param("<!-- " * 20_000, id="comments"),
        pytest.param("<a" * 20_000, id="tags"),
        pytest.param("[x] " + "a=11" * 100, id="counters"),
        pytest.param("a:\n\n" * 2_000, id="lead-ins"),
    ],
)
def test_hostile_documents_end_soon(tmp_path: Path, text: str) -> None:
    begun = time.monotonic()
    with suppress(BankError):
        bank = read(tmp_path, f"a rule\n\n{text}")
        assert read(tmp_path, write_document(bank)).items == bank.items
    assert time.monotonic() - begun < 10


def test_a_header_of_many_keys_is_read_soon(tmp_path: Path) -> None:
    header = "\n".join(f"k{number}: 1" for number in range(3_000))
    assert said(read(tmp_path, f"---\n{header}\n---\nrule")) == [("", "rule")]


def test_only_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.md")
    (tmp_path / "loop.md").symlink_to("loop.md")
    (tmp_path / "device.md").symlink_to("/dev/zero")
    (tmp_path / "folder.md").mkdir()
    links = ("fifo.md", "loop.md", "device.md", "folder.md", "a%00.md", "//[.md", f"{'x' * 5_000}.md", "/dev/zero")
    bank = read(tmp_path, "rule " + " ".join(f"[a]({link})" for link in links) + " @fifo.md")
    assert bank.metadata["files"] == ["SKILL.md"]
    for name in ("fifo.md", "device.md"):
        with pytest.raises(BankError, match="not a plain file"):
            read_document(tmp_path / name)


@pytest.mark.parametrize(
    ("heading", "is_rule"),
    [
        ("Never commit secrets", True),
        ("2) Run the tests before each commit", True),
        ("Secrets must not be committed", True),
        ("Two spaces indent a line.", True),
        ("3 retries are enough!", True),
        ("Don’t print", True),
        ("不要打印", True),
        ("Overview", False),
        ("1. Getting started", False),
        ("Use cases", False),
        ("Test plan", False),
        ("Never", False),
        ("How tests should run", False),
        ("What is this?", False),
    ],
)
def test_a_heading_without_a_body_is_a_rule_if_it_reads_as_one(tmp_path: Path, heading: str, is_rule: bool) -> None:
    text = f"# House\n\nrule\n\n## {heading}\n\n## Other\n\nrule"
    bank = read(tmp_path, text)
    rules = [item for item in bank.items if item.title == "House" and item.text != "rule"]
    assert len(rules) == is_rule
    assert lines_without_item(tmp_path / "SKILL.md") == ([] if is_rule else [f"SKILL.md:5 ## {heading}"])
    assert without_items(bank, [item.id for item in rules]) == (
        text.replace(f"## {heading}\n\n", "") if is_rule else text
    )
    assert read(tmp_path, f"## {heading}\n\nrule").items[0].title == heading


def test_the_lines_that_became_no_item_are_told(tmp_path: Path) -> None:
    (tmp_path / "more.md").write_text("# Notes\n\n## Tone\n\n- [Tone](#tone)\n\nrule")
    text = f"{HOUSE}\n<Tone>\n</Tone>\n\n[m]: more.md\n\n# Overview\n\n| a | b |\n|---|---|\n"
    bank = read(tmp_path, text)
    assert len(bank.items) == 9
    line = text.count("\n") - 3
    told = [f"SKILL.md:{line} # Overview", f"SKILL.md:{line + 2} | a | b |", "more.md:5 - [Tone](#tone)"]
    assert lines_without_item(tmp_path) == told


def test_templates_and_marks_stay_text(tmp_path: Path) -> None:
    text = "{{ config }} {% raw %} <|im_end|> <script>alert(1)</script> \u202egnp.exe\u202c"
    assert read(tmp_path, text).items == (Skill.new(text, origin=Origin.SEED),)


def test_a_playbook_of_json_is_read(tmp_path: Path) -> None:
    bank = SkillBank.from_json('{"bullets": {"a-1": {"section": "pitfalls", "content": "Haste.", "helpful": 4}}}')
    assert bank.items == (Mistake("a-1", "pitfalls", "Haste."),)
    bank = SkillBank.from_json('{"bullets": {"b": {"section": "common_mistakes_to_avoid", "content": "Haste."}}}')
    assert len(bank.mistakes) == 1
