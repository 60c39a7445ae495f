"""The configuration: checked settings, or one error that names every problem."""
