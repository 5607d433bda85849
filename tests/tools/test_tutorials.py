"""The tutorials' code runs from top to bottom and prints what their pages keep; `make tutorials` runs these alone."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))


@pytest.fixture(scope="module")
def tutorials() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tutorials", ROOT / "tools" / "tutorials.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["tutorials"] = module  # where its dataclass looks itself up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["tutorials"]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_a_tutorial_prints_what_its_page_keeps(tutorials, page, tmp_path):
    text = page.read_text(encoding="utf-8")
    for block, printed in zip(tutorials.blocks(text)[0], tutorials.run(text, tmp_path), strict=True):
        told = f"{block.code}\nprints now\n{printed}"
        assert block.kept is None or tutorials.agrees(block.kept, printed, is_sample=block.is_sample), told


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_a_tutorial_keeps_outputs_and_stands_on_the_start_page(tutorials, page):
    blocks, _ = tutorials.blocks(page.read_text(encoding="utf-8"))
    kept = [block.kept for block in blocks if block.kept is not None]
    assert len(kept) >= 2
    assert all(map(tutorials.shape, kept))
    start = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert f"](tutorials/{page.name})" in start
    assert re.search(rf"^.+ <tutorials/{page.stem}>$", start, re.MULTILINE)


PAGE = """# Page

```yaml
# run.yaml
steps: 3
```

```python
x = open("run.yaml").read().count("\\n")
```

```bash
echo "$(wc -l < run.yaml) lines"
echo second >&2
```

```text
9 lines
…
```

```python
print("loading  50%|###\\nbusy\\rdone", x)
```

Words between.

```text
no output
```
"""


def test_a_page_runs_as_it_is_read(tutorials, tmp_path):
    blocks, files = tutorials.blocks(PAGE)
    assert files == {"run.yaml": "# run.yaml\nsteps: 3\n"}
    assert [(block.language, block.kept) for block in blocks] == [
        ("python", None),
        ("bash", "9 lines\n…\n"),
        ("python", None),
    ]
    printed = tutorials.run(PAGE, tmp_path)
    assert printed == ["", "2 lines\nsecond\n", "done 2\n"]
    assert tutorials.kept_of(blocks[1].kept, printed[1]) == "2 lines\n…\n"
    with pytest.raises(RuntimeError, match="no such thing"):
        tutorials.run(PAGE.replace("print(", "raise ValueError('no such thing', "), tmp_path / "..")


@pytest.mark.parametrize(
    ("kept", "printed", "agree"),
    [
        ("step 1: 25.8 %\n", "step 12: −0.3 %\n", True),
        ("step 1: 25.8 %\n", "step 1: none\n", False),
        ("│ a │  1.0 │\n━━━ \n", "│ a │ 100.25 │\n━━━━━━━━\n", True),
        ("first\n…\nlast\n", "first\n1\n2\nlast\n", True),
        ("first\n…\nlast\n", "first\nlast\n", True),
        ("first\n…\nlast\n", "first\n1\n", False),
        ("first\n", "first\nsecond\n", False),
        ("", "anything\n", False),
    ],
)
def test_outputs_agree_up_to_their_figures(tutorials, kept, printed, agree):
    assert tutorials.agrees(kept, printed) is agree


def test_a_sample_agrees_with_any_text_of_as_many_lines(tutorials):
    [block] = tutorials.blocks("```python\nprint()\n```\n\n```text sample\nlast 9\n```\n")[0]
    assert block.is_sample
    assert tutorials.agrees(block.kept, "twice 1 = 2\n", is_sample=True)
    assert not tutorials.agrees(block.kept, "", is_sample=True)
