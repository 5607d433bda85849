"""Check that the wheel works without the repository. ``make wheel`` builds it and calls this.

The wheel is installed into an empty virtual environment, which uses the dependencies of the present one. Its commands
are run in an empty folder. The demo's document and tasks go into a tiny model of random weights, in one step.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

IMPORTS = "import sgsd; [getattr(sgsd, name) for name in sgsd.__all__]; print(sgsd.__file__)"
COMMANDS = (["--version"], ["--help"], ["demo", "--help"], ["bank", "show", "seed:mental-arithmetic"])

ROOT = Path(__file__).resolve().parents[1]
MODEL = "from tests.conftest import *; make_model().save_pretrained({0!r}); make_tokenizer().save_pretrained({0!r})"
DATA = "from pathlib import Path; from sgsd.examples import demo; demo.write(Path())"
INTERNALIZE = [
    *("internalize", "SKILL.md", "--tasks", "train.jsonl", "--held_out", "held-out.jsonl", "--model", "tiny"),
    *("--output", "out", "--force", "--", "--max_completion_length", "8", "--max_steps", "1"),
    *("--per_device_train_batch_size", "4", "--rehearsal_weight", "0"),
]
MADE = ("out/certificate.html", "out/run/adapter_model.safetensors")


def run(*command: str | Path, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def main(dist: str) -> None:
    (wheel,) = Path(dist).resolve().glob("sgsd-*.whl")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        venv.create(folder / "env", with_pip=False)
        python = folder / "env" / "bin" / "python"
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--python", python]
        run(*pip, "install", "--no-deps", "--no-index", wheel, folder=folder)
        site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=folder).strip())
        # A folder named in a .pth file is searched last, and its own .pth files (of an editable sgsd) are not read.
        (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        where = Path(run(python, "-c", IMPORTS, folder=folder).strip())
        if not where.is_relative_to(site):
            raise SystemExit(f"another sgsd was imported: got {where}; expected one in {site}")
        for arguments in COMMANDS:
            if not run(folder / "env" / "bin" / "sgsd", *arguments, folder=folder):
                raise SystemExit(f"no output of sgsd {' '.join(arguments)}")
        run(sys.executable, "-c", MODEL.format(str(folder / "tiny")), folder=ROOT)
        run(python, "-c", DATA, folder=folder)
        run(folder / "env" / "bin" / "sgsd", *INTERNALIZE, folder=folder)
        if missing := [name for name in MADE if not (folder / name).is_file()]:
            raise SystemExit(f"sgsd internalize did not write {', '.join(missing)}")
    print(f"{wheel.name}: installs, imports, its commands answer, and it trains a step without the repository")


if __name__ == "__main__":
    main(*sys.argv[1:])
