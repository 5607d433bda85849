"""``python -m sgsd.cli``."""

import sys

from sgsd.cli.parser import main

sys.exit(main())
