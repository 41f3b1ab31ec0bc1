"""The agent: runs one server run on the server itself and records all that happens.

Standard library and `tasks.domain` only, Python >= 3.9. It is shipped as one zipapp (`build_agent.py`).
The conductor decides; the driver carries out and reports; the controller only reads the event log.
"""
