"""Regression tests of the numbers: record weights, scores, verdicts, tables and outputs, and compare them later.

    python tools/regression.py record tools/regression.json    # record what this checkout computes
    python tools/regression.py check tools/regression.json     # compare; exit code 1 if anything changed

``--tree FOLDER`` uses another checkout; ``--only PATTERN`` uses a part of the records, such as ``'run sharp/*'``. Only
stable interfaces are used: the command line, settings, files of a run, ``sgsd.score_completions`` and
``sgsd.get_verifier``.

A run is ``STEPS`` optimizer steps of ``sgsd lab run``. Its record has a SHA-256 of the last weights in float32, and for
each step the projections of the change of the weights on ``DIRECTIONS`` random directions. The norm of a difference of
projections estimates the norm of the difference of weights, to about an eighth. Relative to the change of the weights,
another order of a float32 sum (threads, micro-batches, chunks) differs by 2e-6 to 5e-6; another computation of the same
gradients by up to 6e-5 at the first step of Adam and less later; a gate wider by 1 % by 2e-4 at every step.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import fnmatch
import functools
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_REST = "equation (7) compares the rest of the vocabulary, too"
_LEDGER = "the prior of an item's worth is of intervals by problem"
_VERIFIER = "the verifier was rebuilt: 50 rows go to the known verdict, 7 from it, all 7 in docs/verifier.md"
EXPECTED = {
    "run */correction-equal": _REST,
    "run */guided-equal": _REST,
    "run */correction*": f"{_REST}; {_LEDGER}",
    "run */guided*": f"{_REST}; {_LEDGER}",
    "verdicts verifier_cases.jsonl": _VERIFIER,
    "verdicts verifier_cases_2.jsonl": _VERIFIER,
    "verdicts responses_2.jsonl": _VERIFIER,
    "command bank ledger": "of the guided run",
    "command compare": "of the guided run",
    "command lab table": "of the guided run",
    "table lab": "methods by their own names; every number as before",
    "table sweeps": "methods by their own names; every number as before",
}
"""Reasons of intended changes, by pattern of the records' names. The first matching pattern counts. No other record may
change.

Without the changes that these reasons name, all runs equal the recorded ones up to rounding (at most 6e-5 at step 1).
"""

STEPS = 8
ROUNDING = 1e-4
"""Highest relative difference of the weights' change that counts as rounding; see above."""
DIRECTIONS = 32
LABS = {"sharp": (1, 3), "calibrated": (2, 2)}
"""Helpful and misleading pairs per symbol, by lab."""
ENTRY = (sys.executable, "-c", "from sgsd.cli import main; raise SystemExit(main())")

_CORRECTION = ("--objective", "correction", "--teacher", "frozen", "--teacher_trust", "worth", "--grpo_weight", "1")
CORRECTION = (*_CORRECTION, "--sgsd_weight", "2")
GUIDED = (*CORRECTION, "--support_baseline", "control", "--teacher_guidance", "2")
NEW_SETTINGS = {"ledger_share": "1"}
"""Settings of the correction that an older checkout may not have, with the values that give its behaviour."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A run: flags of ``sgsd train``, method and flags of ``sgsd lab run``, and its labs."""

    settings: tuple[str, ...] = ()
    method: str = "sgsd"
    lab: tuple[str, ...] = ()
    labs: tuple[str, ...] = tuple(LABS)


ONE = ("calibrated",)
RUNS = {
    "published": Run(),
    "published-frozen": Run(("--teacher", "frozen")),
    "published-ema": Run(("--teacher", "ema", "--teacher_ema_decay", "0.5")),
    "published-periodic": Run(("--teacher", "periodic", "--teacher_sync_steps", "3")),
    "published-control": Run(("--support_baseline", "control"), labs=ONE),
    "local": Run(("--objective", "local", "--teacher_top_tokens", "10")),
    "correction": Run(CORRECTION),
    "guided": Run(GUIDED),
    "correction-equal": Run((*CORRECTION, "--teacher_trust", "equal"), labs=ONE),
    "guided-equal": Run((*GUIDED, "--teacher_trust", "equal"), labs=ONE),
    "correction-live-noisy": Run((*CORRECTION, "--teacher", "live"), lab=("--flips", "0.2", "--k", "3"), labs=ONE),
    "guided-alone": Run((*GUIDED, "--grpo_weight", "0", "--num_generations", "1"), labs=ONE),
    "grpo": Run(method="grpo"),
    "grpo-skills": Run(method="grpo", lab=("--skills_in_prompt",), labs=ONE),
    "opsd": Run(method="opsd"),
    "opsd-jsd": Run(("--divergence", "jsd"), method="opsd", labs=ONE),
}
SEEDS = ("arithmetic-word-problems", "competition-mathematics", "mental-arithmetic")
TABLES = {"lab": "table", "sweeps": "sweeps"}
"""Actions of ``examples/lab/evidence.py``, by name of the record."""
CASES = ("verifier_cases*.jsonl", "responses*.jsonl")


class FailedError(Exception):
    """A command of the checkout failed; the message is its last line of output."""


class Recorder:
    """Makes the records of one checkout.

    Args:
        tree: root of the checkout.
        work: an empty folder.
        data: folder of public data that the checkout does not contain; ``None`` skips its records.
    """

    def __init__(self, tree: Path, work: Path, data: Path | None) -> None:
        self.tree, self.work, self.data = tree, work, data
        if data:
            (work / "data").symlink_to(data, target_is_directory=True)

    def records(self) -> Iterator[tuple[str, Callable[[], Record]]]:
        """The name of each record, and a function that makes it."""
        for name, run in RUNS.items():
            for variant in run.labs:
                yield f"run {variant}/{name}", functools.partial(self.weights, variant, name)
        for variant in LABS:
            yield f"scores {variant}", functools.partial(self.scores, variant)
        for pattern in CASES if self.data else ():
            for file in sorted(self.data.glob(pattern)) if self.data else ():
                yield f"verdicts {file.name}", functools.partial(self.verdicts, file)
        for name, action in TABLES.items():
            yield f"table {name}", functools.partial(self.table, action)
        for name, (arguments, read) in self.commands().items():
            yield f"command {name}", functools.partial(self.output, arguments, read)

    def commands(self) -> dict[str, tuple[tuple[str | Callable[[], str], ...], Callable[[str], Any]]]:
        """Commands of README that do not train, by name: the arguments, and a function of the standard output.

        Arguments that are functions are called when the command is run. The value of the function is recorded.
        """
        run, other = (functools.partial(self.run, "calibrated", name) for name in ("guided", "grpo"))
        questions = functools.partial(self.questions, "calibrated")
        found: dict[str, tuple[tuple[str | Callable[[], str], ...], Callable[[str], Any]]] = {}
        for seed in SEEDS:
            found[f"bank show {seed}"] = ("bank", "show", f"seed:{seed}", "--json"), json.loads
            found[f"bank check {seed}"] = ("bank", "check", f"seed:{seed}"), words
        search = ("bank", "search", "seed:mental-arithmetic", "What is 28 + 14?", "--k", "2", "--retriever")
        for retriever in ("bm25", "embedding"):
            found[f"bank search {retriever}"] = (*search, retriever), words
        found["bank import"] = (
            ("bank", "import", self.exported, "imported.json", "--force"),
            lambda _: items(json.loads((self.work / "imported.json").read_text())),
        )
        found["bank ledger"] = ("bank", "ledger", run, "--json"), ledger
        found["compare"] = ("compare", run, other, "--json"), numbers
        found["lab table"] = (
            ("lab", "table", run, other, "--json"),
            lambda out: [g["accuracy"] for g in json.loads(out)],
        )
        found["eval"] = (
            ("eval", run, "--dataset", questions, "--limit", "64", "--temperature", "0", "--output", "eval", "--json"),
            evaluation,
        )
        dry = ("train", "--config", "lab", "--model_name_or_path", "local:lab-calibrated", "--dataset", questions)
        dry = (*dry, "--bank", "seed:mental-arithmetic", "--retriever", "bm25", "--output_dir", "dry", "--dry_run")
        found["train dry run"] = dry, lambda _: None
        if self.data:
            train, test = "data/dapo_math_sample.jsonl", "data/math_sample.jsonl"
            found["contamination"] = ("contamination", "--train", train, "--test", test, "--json"), json.loads
            found["eval regrade"] = ("eval", "--regrade", "data/responses.jsonl", "--json"), numbers
        return found

    # ---- records

    def weights(self, variant: str, name: str) -> Record:
        """Hash of the last weights, projections and samples of each step, and the accuracies."""
        folder = self.work / self.run(variant, name)
        start = weights(self.start(variant))
        steps = [folder / f"checkpoint-{step}" / "model.safetensors" for step in range(1, STEPS + 1)]
        last = weights(folder / "model.safetensors")
        changes = [weights(file) - start if file.is_file() else None for file in steps[:-1]] + [last - start]
        kept = [step for step, change in enumerate(changes, 1) if change is not None]
        seen = projections(np.stack([change for change in changes if change is not None], axis=1))
        history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        return {
            "sha256": hashlib.sha256(last.astype(np.float32).tobytes()).hexdigest(),
            "accuracy": [entry["eval_accuracy"] for entry in history if "eval_accuracy" in entry],
            "projections": dict(zip(map(str, kept), map(packed, seen.T), strict=True)),
            "samples": samples(folder),
        }

    def scores(self, variant: str) -> Record:
        """Log-probabilities, entropies and top log-probabilities of 4 prompts with 3 completions each."""
        import torch
        from transformers import AutoModelForCausalLM

        from sgsd import score_completions

        torch.set_num_threads(1)
        with contextlib.redirect_stderr(None):
            model = AutoModelForCausalLM.from_pretrained(self.start(variant).parent, dtype=torch.float32)
        draw = np.random.default_rng(0)
        rows: dict[str, str] = {}
        prompts = [draw.integers(3, 30, length).tolist() for length in (4, 9, 9, 17)]
        completions = [draw.integers(3, 30, length).tolist() for length in (1, 5, 12)]
        for temperature in (1.0, 0.7):
            found = score_completions(
                model,
                [prompt for prompt in prompts for _ in completions],
                [completion for _ in prompts for completion in completions],
                temperature=temperature,
                max_tokens_per_chunk=96,
                with_entropy=True,
                top_tokens=3,
            )
            logps, entropy = found.logps[found.mask], found.entropy[found.mask]
            likeliest = found.top_logps[found.mask].flatten()
            values = torch.cat([logps, entropy, likeliest]).double().numpy()
            rows[f"temperature {temperature:g}"] = packed(values)
        return {"values": rows}

    def verdicts(self, file: Path) -> Record:
        """The outcome of each row as a letter: correct, incorrect, undecided."""
        from sgsd import get_verifier

        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        outcomes = [""] * len(rows)
        for kind in sorted({row.get("verifier") or "math" for row in rows}):
            of_kind = [n for n, row in enumerate(rows) if (row.get("verifier") or "math") == kind]
            verdicts = get_verifier(kind, workers=1, timeout=20).verify_many(
                [rows[n].get("response") or rows[n].get("pred") or "" for n in of_kind],
                [rows[n].get("gold") or rows[n].get("answer") or "" for n in of_kind],
            )
            for n, verdict in zip(of_kind, verdicts, strict=True):
                outcomes[n] = verdict.outcome.name[0].lower()
        letters = "".join(outcomes)
        return {"counts": dict(sorted(Counter(letters).items())), "sha256": digest(letters), "outcomes": letters}

    def table(self, action: str) -> Record:
        """Hash of a table of stored results."""
        done = self.call([sys.executable, str(self.tree / "examples" / "lab" / "evidence.py"), action])
        if done.returncode:
            raise FailedError(last_line(done.stderr))
        return {"lines": len(done.stdout.splitlines()), "sha256": digest(done.stdout)}

    def output(self, arguments: Sequence[str | Callable[[], str]], read: Callable[[str], Any]) -> Record:
        """Exit code, and hash of the recorded part of the standard output."""
        done = self.call([*ENTRY, *(part if isinstance(part, str) else part() for part in arguments)])
        try:
            kept = read(done.stdout)
        except (ValueError, KeyError, OSError) as error:
            raise FailedError(f"exit code {done.returncode}: {last_line(done.stderr) or error!r}") from None
        return {"exit": done.returncode, "sha256": digest(json.dumps(kept, sort_keys=True))}

    # ---- inputs of the records

    @functools.cache  # noqa: B019 - there is one recorder
    def run(self, variant: str, name: str) -> str:
        """Make the run once; returns its folder, relative to the work folder."""
        run, folder = RUNS[name], f"{variant}/{name}"
        helpful, misleading = LABS[variant]
        lab = ["--helpful", str(helpful), "--misleading", str(misleading), "--seed", "0", "--threads", "1", "--json"]
        lab += ["--output", folder, "--accuracy_steps", str(STEPS), "--method", run.method, *run.lab]
        train = ["--learning_rate", "1e-4", "--max_steps", str(STEPS), "--save_strategy", "steps", "--save_steps", "1"]
        train += ["--save_only_model", "true", "--log_completions", "true", *run.settings]
        for setting in self.new_settings() if "correction" in run.settings else ():
            train += [f"--{setting}", NEW_SETTINGS[setting]]
        done = self.call([*ENTRY, "lab", "run", variant, *lab, "--", *train])
        if done.returncode:
            raise FailedError(last_line(done.stderr))
        return folder

    def questions(self, variant: str) -> str:
        """The lab's training problems."""
        self.run(variant, "guided")
        return f"{variant}/lab-data/questions.jsonl"

    def exported(self) -> str:
        """A shipped bank as general_skills / common_mistakes JSON."""
        done = self.call([*ENTRY, "bank", "export", "seed:mental-arithmetic", "exported.json", "--force"])
        if done.returncode:
            raise FailedError(last_line(done.stderr))
        return "exported.json"

    @functools.cache  # noqa: B019 - there is one recorder
    def new_settings(self) -> list[str]:
        """Those of ``NEW_SETTINGS`` that the checkout has."""
        known = self.call([*ENTRY, "train", "--help"]).stdout
        return [name for name in NEW_SETTINGS if re.search(rf"--{name}\b", known)]

    def start(self, variant: str) -> Path:
        """The initial weights of the lab's runs."""
        return self.tree / "examples" / "lab" / "models" / variant / "model.safetensors"

    def call(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=self.work)


# ---- weights and samples


def weights(file: Path) -> NDArray[np.float64]:
    """All weights of a safetensors file in one vector, ordered by name."""
    from safetensors.torch import load_file

    state = load_file(file)
    return np.concatenate([state[name].double().numpy().ravel() for name in sorted(state)])


def projections(changes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Project ``[weights, steps]`` on random normal directions: ``[DIRECTIONS, steps]``."""
    draw = np.random.default_rng(0)
    return np.stack([draw.standard_normal(len(changes)) @ changes for _ in range(DIRECTIONS)])


def samples(folder: Path) -> list[str]:
    """Four digits of a hash of each completion, a text per step; empty if the run kept no completions."""
    import pyarrow.parquet as pq

    files = sorted((folder / "completions").glob("completions_*.parquet"))
    return [
        "".join(digest(json.dumps(drawn))[:4] for drawn in pq.read_table(file)["completion"].to_pylist())
        for file in files
    ]


def packed(values: NDArray[np.float64]) -> str:
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


def unpacked(text: str) -> NDArray[np.float64]:
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float64)


def relative(was: str, now: str) -> float:
    """Norm of the difference over the norm of what was."""
    before, after = unpacked(was), unpacked(now)
    if before.shape != after.shape:
        return float("inf")
    if not before.any():  # nothing was learnt yet
        return float("inf") if after.any() else 0.0
    return float(np.linalg.norm(after - before) / np.linalg.norm(before))


# ---- outputs


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def words(out: str) -> list[str]:
    """The words and numbers of a printed table, without lines and widths."""
    return re.findall(r"[\w.,%:/+-]+", out)


def numbers(out: str) -> list[float]:
    """All numbers in a JSON document, in order. Labels are left out, because they may change."""

    def within(value: Any) -> Iterator[float]:
        if isinstance(value, dict | list):
            for part in value.values() if isinstance(value, dict) else value:
                yield from within(part)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield value

    return list(within(json.loads(out)))


def items(bank: dict[str, Any]) -> list[str]:
    """The ids of the items in a bank file."""
    return re.findall(r'"((?:skill|mistake)-[0-9a-f]{12})"', json.dumps(bank))


def ledger(out: str) -> dict[str, Any]:
    """The totals, and the counts of each item."""
    document = json.loads(out)
    kept = ("id", "uses", "active", "positive", "negative", "neutral")
    rows = [{name: item[name] for name in kept} for item in document["items"]]
    return {"totals": document["totals"], "items": sorted(rows, key=lambda row: row["id"])}


def evaluation(out: str) -> dict[str, Any]:
    """The measurements in a summary, and the digest of its prompts."""
    document = json.loads(out)
    return {name: document[name] for name in ("prompts", "accuracy", "ci95", "truncated", "undecided", "mean_tokens")}


# ---- comparison


@dataclass(frozen=True)
class Finding:
    """The result of a comparison; ``state`` is same, rounding, CHANGED, expected or new."""

    name: str
    state: str
    note: str = ""


def compare(name: str, was: Record, now: Record) -> Finding:
    """Compare the stored and the new record of one name."""
    if was == now:
        return Finding(name, "same")
    if "failed" in now:
        return Finding(name, "CHANGED", now["failed"])
    if "projections" in was:
        return compare_runs(name, was, now)
    if "values" in was:
        size = max(relative(was["values"][row], now["values"].get(row, "")) for row in was["values"])
        return Finding(name, "rounding" if size <= ROUNDING else "CHANGED", f"{size:.0e}")
    if "outcomes" in was:
        rows = [n for n, (a, b) in enumerate(zip(was["outcomes"], now["outcomes"], strict=False), 1) if a != b]
        note = f"{len(rows)} rows ({was['counts']} → {now['counts']}), such as {rows[:8]}"
        return Finding(name, "CHANGED", note)
    if was.get("exit") != now.get("exit"):
        return Finding(name, "CHANGED", f"exit code {was['exit']} → {now['exit']}")
    shown = {key: f"{was[key]} → {now.get(key)}" for key in was if key != "sha256" and was[key] != now.get(key)}
    return Finding(name, "CHANGED", ", ".join(f"{key}: {text}" for key, text in shown.items()) or "another output")


def compare_runs(name: str, was: Record, now: Record) -> Finding:
    """Compare two runs by the changes of their weights.

    Rounding can change a sampled token, after which two runs diverge. Runs therefore also differ by rounding if they
    diverge after the first step, agree up to rounding until then, and few samples differ at that step.
    """
    if was["sha256"] == now["sha256"]:
        return Finding(name, "same", "" if was["accuracy"] == now["accuracy"] else "another accuracy along the way")
    steps = [step for step in was["projections"] if step in now["projections"]]
    sizes = {int(step): relative(was["projections"][step], now["projections"][step]) for step in steps}
    parted = next((step for step, size in sizes.items() if size > ROUNDING), None)
    if parted is None:
        first, last = min(sizes), max(sizes)
        return Finding(name, "rounding", f"{sizes[first]:.0e} at step {first}, {sizes[last]:.0e} at the last")
    other, count = other_samples(was["samples"], now["samples"], parted)
    note = (
        f"{sizes[parted]:.0e} at step {parted}, {sizes[max(sizes)]:.0e} at the last; {other} of {count} other samples"
    )
    few = parted > 1 and 0 < other <= count / 8
    return Finding(name, "rounding" if few else "CHANGED", note)


def other_samples(was: Sequence[str], now: Sequence[str], step: int) -> tuple[int, int]:
    """How many samples of a step differ, and their number; (0, 0) if they were not kept."""
    if min(len(was), len(now)) < step or len(was[step - 1]) != len(now[step - 1]):
        return 0, 0
    before, after = was[step - 1], now[step - 1]
    differ = [before[n : n + 4] != after[n : n + 4] for n in range(0, len(before), 4)]
    return sum(differ), len(differ)


def judged(finding: Finding) -> Finding:
    """The finding as expected if ``EXPECTED`` lists it. An entry without need is noted."""
    reason = next((why for pattern, why in EXPECTED.items() if fnmatch.fnmatch(finding.name, pattern)), None)
    if reason is None:
        return finding
    if finding.state == "CHANGED":
        return replace(finding, state="expected", note=f"{reason} [{finding.note}]")
    return replace(finding, note=f"{finding.note} listed as expected, without need".strip())


# ---- command line


def matches(name: str, options: argparse.Namespace) -> bool:
    return fnmatch.fnmatch(name, options.only)


def made(recorder: Recorder, options: argparse.Namespace) -> Iterator[tuple[str, Record]]:
    for name, make in recorder.records():
        if matches(name, options):
            began = time.perf_counter()
            try:
                record = make()
            except FailedError as failure:
                record = {"failed": str(failure)}
            print(f"{time.perf_counter() - began:6.1f} s  {name}", file=sys.stderr, flush=True)
            yield name, record


def record(recorder: Recorder, options: argparse.Namespace) -> int:
    """Write the file, or replace the records that match ``--only``. Failures are printed and not recorded."""
    records = {}
    for name, found in made(recorder, options):
        if "failed" in found:
            print(f"{name}: {found['failed']}")
        else:
            records[name] = found
    complete = len(records) == len([name for name, _ in recorder.records() if matches(name, options)])
    if options.file.is_file() and options.only != "*":
        records = json.loads(options.file.read_text(encoding="utf-8"))["records"] | records
    head = ["git", "-C", str(recorder.tree), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip()
    document = {
        "commit": commit,
        "versions": {package: version(package) for package in ("numpy", "torch", "transformers", "trl")},
        "records": records,
    }
    options.file.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return int(not complete)


def check(recorder: Recorder, options: argparse.Namespace) -> int:
    """Compare all records; print a line per record, and the number of each state."""
    document = json.loads(options.file.read_text(encoding="utf-8"))
    was, findings = document["records"], []
    for name, now in made(recorder, options):
        finding = judged(compare(name, was[name], now) if name in was else Finding(name, "new", "not recorded"))
        findings.append(finding)
        print(f"{finding.state:9} {finding.name:36} {finding.note}".rstrip(), flush=True)
    skipped = [name for name in was if matches(name, options) and name not in {f.name for f in findings}]
    for name in skipped:
        print(f"skipped   {name}")
    counts = Counter(finding.state for finding in findings) | Counter({"skipped": len(skipped)})
    print(f"against {document['commit']}: " + ", ".join(f"{count} {state}" for state, count in counts.items() if count))
    return int(counts["CHANGED"] > 0)


def main() -> int:
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("record", "check"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--tree", type=Path, default=root, help="the checkout (this file's)")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="names, as a shell matches them")
    options = parser.parse_args()
    tree = options.tree.resolve()
    data = Path(os.environ.get("SGSD_DATA", root.parent / "shared" / "data"))
    sys.path.insert(0, str(tree / "src"))
    os.environ |= {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}
    with tempfile.TemporaryDirectory() as work:
        recorder = Recorder(tree, Path(work), data if data.is_dir() else None)
        return {"record": record, "check": check}[options.action](recorder, options)


if __name__ == "__main__":
    raise SystemExit(main())
