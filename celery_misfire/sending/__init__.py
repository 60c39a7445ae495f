"""Messages to the broker, and what is told of a missed run."""
