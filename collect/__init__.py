"""Keeps data: teleoperation, recording, episodes as a dataset."""
