"""Teleoperation devices: each turns what a person does into targets of a follower group."""
