"""Cameras: each reads one device and stamps frames at capture."""
