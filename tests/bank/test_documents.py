"""Documents of rules as banks, and back."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgsd.bank import Mistake, Skill, SkillBank, seed_banks
from sgsd.bank.documents import load_bank, read_document, write_document
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
        ("- Be brief.\n  - Not more than a line.", [("", "Be brief."), ("Be brief.", "Not more than a line.")]),
        ("- For sums:\n  - carry.", [("For sums", "carry.")]),
        ("Do this:\n\n```\nx\n```", [("", "Do this:\n\n```\nx\n```")]),
        ("> Quoted rule.", [("", "Quoted rule.")]),
        ("# A\n\n# B\n\ntext\n\n### C\n\ntext", [("B", "text"), ("B › C", "text")]),
        ("- add\n  - When: numbers", [("", "add")]),
        ("\ufeff---\r\nname: x\r\n---\r\n\r\nOne\r\nrule.", [("", "One rule.")]),
        (
            "[s-1] helpful=4 harmful=1 :: Add.\n[s-2] helpful=0 harmful=0 :: Check.",
            [("", "Add."), ("", "Check.")],
        ),
        ("same\n\nsame", [("", "same")]),
    ],
)
def test_blocks_become_rules(tmp_path: Path, text: str, expected: list[tuple[str, str]]) -> None:
    assert said(read(tmp_path, text)) == expected


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
        (folder / f"{name}.md").write_text("rule\n\n" * 100_000)
    (folder / "SKILL.md").write_text("rule [a](a.md) [b](b.md)")
    with pytest.raises(BankError, match=r"too large: got .*b\.md"):
        read_document(folder)
    (folder / "b.md").unlink()
    (folder / "bank.json").write_text('{"skills": [{"text": "x"}]}')
    assert load_bank(folder).skills[0].text == "x"  # a run's folder, whatever else lies in it


def test_a_bank_goes_to_a_document_and_comes_back(tmp_path: Path) -> None:
    for bank in (read(tmp_path, HOUSE), *(SkillBank.load(f"seed:{name}") for name in seed_banks())):
        again = read(tmp_path, write_document(bank), "again/SKILL.md")
        assert {item.id for item in again.items} == {item.id for item in bank.items}
        assert again.name == bank.name


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
    assert sorted((item.id, item.title, item.text) for item in again.items) == sorted(
        (item.id, item.title, item.text) for item in bank.items
    )


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
        ("bad \0 rule".replace("\0", "\x07"), r"U\+0007"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(BankError, match=complaint) as error:
        read(tmp_path, text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["> " * 20_000 + "x", "- " * 20_000 + "x", "[" * 50_000, "*a " * 50_000, "`" * 50_000, "|" * 50_000 + "\n|-|"],
    ids=["quotes", "lists", "brackets", "stars", "ticks", "pipes"],
)
def test_hostile_documents_end_soon(tmp_path: Path, text: str) -> None:
    begun = time.monotonic()
    with suppress(BankError):
        read(tmp_path, f"a rule\n\n{text}")
    assert time.monotonic() - begun < 10


def test_templates_and_marks_stay_text(tmp_path: Path) -> None:
    bank = read(tmp_path, "{{ config }} {% raw %} <|im_end|> <script>alert(1)</script>")
    assert isinstance(bank.items[0], Skill)
    assert bank.items[0].text.startswith("{{ config }}")


def test_a_playbook_of_json_is_read(tmp_path: Path) -> None:
    bank = SkillBank.from_json('{"bullets": {"a-1": {"section": "pitfalls", "content": "Haste.", "helpful": 4}}}')
    assert bank.items == (Mistake("a-1", "pitfalls", "Haste."),)
