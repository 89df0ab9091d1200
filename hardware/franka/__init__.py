"""Franka arms: FR3 (server version 10) and FER, the older Panda (server version 5)."""
