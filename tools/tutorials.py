"""Run the code of the tutorials from top to bottom in an empty folder, and write its outputs into the pages.

    python tools/tutorials.py docs/tutorials/*.md

A block whose first line is a comment with a file name is the content of that file. Other Python blocks run one after
another in one process, and bash blocks in a shell. A ``text`` block directly below a block is its output, in which a
line ``…`` stands for any number of lines. The output of a block without one is not kept. A ``text sample`` block is
text that a model wrote, which differs between machines.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```(python|bash|yaml|text|text sample)\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"# ([\w-]+\.\w+)\n")
_BAR = re.compile(r"\d+%\|")
_MARK = "\x1e"
_DRIVER = f"""
import subprocess, sys
names = {{"__name__": "__main__"}}
for language, code in BLOCKS:
    print({_MARK!r}, flush=True)
    if language == "bash":
        subprocess.run(["bash", "-ec", code], check=True)
    else:
        exec(compile(code, "a block of the page", "exec"), names)
    sys.stdout.flush()
"""
_ANYTHING = "…"


@dataclass(frozen=True)
class Block:
    """A block of code, with the output in the page and its position there, or ``None``."""

    language: str
    code: str
    kept: str | None
    place: tuple[int, int] | None
    is_sample: bool = False


def blocks(page: str) -> tuple[list[Block], dict[str, str]]:
    """The blocks that a page runs, and the files that it contains."""
    found = list(_FENCE.finditer(page))
    files = {file[1]: match[2] for match in found if (file := _FILE.match(match[2]))}
    made: list[Block] = []
    for match, following in zip(found, [*found[1:], None], strict=True):
        language, code = match.groups()
        if language not in ("python", "bash") or _FILE.match(code):
            continue
        below = following is not None and not page[match.end() : following.start()].strip()
        if following is not None and below and following[1].startswith("text"):
            made.append(Block(language, code, following[2], following.span(), following[1] == "text sample"))
        else:
            made.append(Block(language, code, None, None))
    return made, files


def run(page: str, folder: Path) -> list[str]:
    """Run a page in ``folder``; returns the output of each block.

    Raises:
        RuntimeError: a block failed; the message has the whole output.
    """
    parts, files = blocks(page)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    code = f"BLOCKS = {[(part.language, part.code) for part in parts]!r}{_DRIVER}"
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment |= {
        "COLUMNS": "100",
        "NO_COLOR": "1",
        "TQDM_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    printed = done.stdout.decode()  # text mode would turn a lone carriage return into a line end
    if done.returncode:
        raise RuntimeError(f"{printed}\nexit code {done.returncode}")
    return [_as_seen(text) for text in printed.split(f"{_MARK}\n")[1:]]


def _as_seen(text: str) -> str:
    """The output without progress bars, as it is on the screen at the end."""
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.split("\n") if not _BAR.search(line)]
    return "\n".join(lines).strip("\n") + "\n" if any(lines) else ""


def shape(text: str) -> list[str]:
    """The lines with numbers replaced by 0, without spaces and rules, since machines round differently."""
    bare = re.sub(r"[-−+]?\d[\d.,]*(?:e[-+]?\d+)?", "0", text)
    return [line for raw in bare.splitlines() if (line := re.sub(r"[\s─━═]+", " ", raw).strip())]


def agrees(kept: str, got: str, *, is_sample: bool = False) -> bool:
    """Whether an output has the shape of that in the page; for a sample, only as many lines."""
    if is_sample:
        return len(shape(kept)) == len(shape(got))
    pattern = "".join("(?:.*\n)*?" if line == _ANYTHING else re.escape(line) + "\n" for line in shape(kept))
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in shape(got))) is not None


def kept_of(kept: str, got: str) -> str:
    """The new output for the page. If its shape is unchanged, the lines left out before are left out again."""
    if not agrees(kept, got) or _ANYTHING not in kept:
        return got
    lines = iter(got.splitlines())
    found = (
        line if line == _ANYTHING else next(new for new in lines if shape(new) == shape(line))
        for line in kept.splitlines()
    )
    return "\n".join(found) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", type=Path, nargs="+")
    for path in parser.parse_args().pages:
        page = path.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder:
            outputs = run(page, Path(folder))
        parts, _ = blocks(page)
        for part, got in reversed(list(zip(parts, outputs, strict=True))):
            if part.kept is not None and part.place is not None:
                begin, end = part.place
                kind = "text sample" if part.is_sample else "text"
                page = f"{page[:begin]}```{kind}\n{kept_of(part.kept, got)}```\n{page[end:]}"
        path.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
