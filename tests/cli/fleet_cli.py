"""`twinline` as a process, with a gateway's double in the gateway's place."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.lines.fleet.harness import GATEWAY

from twinline.cli import fleet_control, main

fleet_control.GATEWAY = GATEWAY  # type: ignore[assignment]
fleet_control.CLI = (sys.executable, __file__)  # type: ignore[assignment]
sys.exit(main())
