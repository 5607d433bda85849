"""``sgsd`` as it is, but that the disk of one rank is full: ``refusing.py RANK ARGUMENTS``."""

from __future__ import annotations

import errno
import os
import sys

from sgsd.cli import main
from sgsd.trainers import checkpoint


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


if __name__ == "__main__":
    if os.environ["RANK"] == sys.argv[1]:
        checkpoint.save_file = full  # the teacher's weights, which every rank saves
    sys.exit(main(sys.argv[2:]))
