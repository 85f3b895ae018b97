"""Where things lie: the home directory, the journals in it, and the database's URL.

Owns the two environment variables. Must not know what is stored.
"""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

HOME_VARIABLE = "TWINLINE_HOME"
DATABASE_VARIABLE = "TWINLINE_DATABASE_URL"


def home() -> Path:
    """`TWINLINE_HOME`, else ~/.local/share/twinline. Not created here."""
    given = os.environ.get(HOME_VARIABLE)
    return Path(given).expanduser() if given else Path.home() / ".local" / "share" / "twinline"


def journal_directory(database: str | None = None) -> Path:
    """Where this machine's gateway processes keep the journals that go into a database, also when it is elsewhere. Each
    has a directory of its own, so that nobody empties another's. `database`: its identity; None for the home's own."""
    if database is None:
        return home() / "journal"
    return home() / f"journal-{sha256(database.encode()).hexdigest()[:8]}"


def database_url() -> str:
    """`TWINLINE_DATABASE_URL`, else SQLite in the home directory."""
    return os.environ.get(DATABASE_VARIABLE) or f"sqlite:///{own_database()}"


def own_database() -> Path:
    return home() / "twinline.db"
