"""SSH to one server: keys, connecting, commands, files, and the event log that the agent writes there."""
