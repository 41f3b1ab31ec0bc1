"""Decisions: pure functions and small state machines.

Standard library only; no clock, network, file, environment or Prefect. The same code runs in the
controller, on the server inside the agent (Python >= 3.9) and in replay, so a decision is written once.
"""
