"""Fronts: other projects' protocols, for their own clients, before a policy server."""
