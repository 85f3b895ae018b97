"""Where things lie: the home directory, the journals in it, and the database's URL.

Owns the two environment variables. Must not know what is stored.
"""

from __future__ import annotations

import os
from pathlib import Path

HOME_VARIABLE = "TWINLINE_HOME"
DATABASE_VARIABLE = "TWINLINE_DATABASE_URL"


def home() -> Path:
    """`TWINLINE_HOME`, else ~/.local/share/twinline. Not created here."""
    given = os.environ.get(HOME_VARIABLE)
    return Path(given).expanduser() if given else Path.home() / ".local" / "share" / "twinline"


def journal_directory() -> Path:
    """Where this machine's gateway processes keep their journals, also when the database is elsewhere."""
    return home() / "journal"


def database_url() -> str:
    """`TWINLINE_DATABASE_URL`, else SQLite in the home directory."""
    return os.environ.get(DATABASE_VARIABLE) or f"sqlite:///{home() / 'twinline.db'}"
