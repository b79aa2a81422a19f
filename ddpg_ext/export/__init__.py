"""Agents for programs without torch."""
