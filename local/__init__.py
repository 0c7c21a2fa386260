"""Run a Cog package without Docker: its schema, its server with a watchdog, and a client like Cog's CLI."""
