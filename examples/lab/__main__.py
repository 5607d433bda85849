"""``python examples/lab …`` is ``sgsd lab …``."""

import sys

from sgsd.cli import main

sys.exit(main(["lab", *sys.argv[1:]]))
