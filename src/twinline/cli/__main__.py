"""`python -m twinline.cli` is `twinline`."""

import sys

from twinline.cli import main

sys.exit(main())
