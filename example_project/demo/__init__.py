"""The demo: kill a real beat for ten seconds, and see what becomes of every run it should have started."""
