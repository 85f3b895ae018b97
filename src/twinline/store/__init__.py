"""What must survive a restart: keys, what they have spent, and who used what. SQLite by default, PostgreSQL by URL."""
