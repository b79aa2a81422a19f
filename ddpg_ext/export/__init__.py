"""Export of agents for programs without torch."""
