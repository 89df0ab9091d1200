"""Decoders: how samples of a policy become the chunk that a robot executes, per session."""
