"""The state of one namespace: lease, records, log and registers."""
