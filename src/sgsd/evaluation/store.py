"""The folder of one evaluation while it is made: settings first, then batch after batch, the summary last."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from sgsd import runfolder
from sgsd.errors import ConfigError, DataError
from sgsd.evaluation.run import Evaluation, Sample, read_samples, sample_lines, whole_batches

_HASHES = ("prompts", "weights", "bank")  # settings that tell a reader nothing
_FILES = (runfolder.SETTINGS, runfolder.SAMPLES, runfolder.SUMMARY)


class SampleStore:
    """Keeps the samples of one evaluation as they are made.

    Args:
        folder: of the evaluation; made with the first batch.
        settings: all that the samples depend on, as plain JSON data. An evaluation with other ones in the folder is
            refused.
        force: discard what an evaluation left in the folder, once ``resume`` is called.

    Raises:
        ConfigError: the folder holds an evaluation with other settings, or with unknown ones.
    """

    def __init__(self, folder: Path, settings: Mapping[str, object], *, force: bool = False) -> None:
        self.folder = folder
        self._settings = json.loads(json.dumps(settings))
        self._force = force
        if not force and any((folder / name).exists() for name in _FILES):
            self._refuse_others()

    def finished(self) -> Evaluation | None:
        """The evaluation, if it was made to its end.

        Raises:
            DataError: its samples cannot be read.
        """
        made = not self._force and (self.folder / runfolder.SUMMARY).exists()
        return Evaluation.load(self.folder) if made else None

    def resume(self, *, batch_size: int, total: int) -> list[Sample]:
        """The samples there are, in whole batches; what is left of a batch that was cut off is discarded.

        Raises:
            DataError: a line other than the last is broken.
        """
        if self._force:
            for name in _FILES:
                (self.folder / name).unlink(missing_ok=True)
        file = self.folder / runfolder.SAMPLES
        if not file.exists():
            return []
        found = list(read_samples(file, torn=True))
        kept = found[: whole_batches(len(found), batch_size, total)]
        runfolder.write_text(file, sample_lines(kept))
        return kept

    def append(self, samples: Sequence[Sample]) -> None:
        """Write one batch."""
        if not (self.folder / runfolder.SETTINGS).exists():
            runfolder.write_json(self.folder / runfolder.SETTINGS, self._settings)
        runfolder.append_text(self.folder / runfolder.SAMPLES, sample_lines(samples))

    def finish(self, evaluation: Evaluation, **extra: object) -> None:
        """Write the summary, with the settings and ``extra`` in it."""
        evaluation.save_summary(self.folder, **self._settings, **extra)

    def _refuse_others(self) -> None:
        remedy = "give another --output, or --force to discard that evaluation"
        try:
            before = runfolder.read_json(self.folder / runfolder.SETTINGS)
        except DataError as error:
            raise ConfigError(
                "the folder holds an evaluation whose settings are unknown", got=str(self.folder), remedy=remedy
            ) from error
        names = [name for name in {**before, **self._settings} if before.get(name) != self._settings.get(name)]
        if names:
            names.sort(key=lambda name: (name in _HASHES, name))
            here, there = (_shown(settings.get(names[0])) for settings in (self._settings, before))
            raise ConfigError(
                f"{self.folder} holds an evaluation of other {', '.join(names)}",
                got=f"{names[0]} {here}",
                expected=f"{there} as there",
                remedy=remedy,
            )


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
