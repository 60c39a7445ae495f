"""The beat that leads: it decides, durably and in the right order, what the planner says."""
