"""Replay: recorded sweeps played to the conductor on a virtual clock, to judge a policy before it spends money."""
