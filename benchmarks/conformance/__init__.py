"""Unmodified client libraries of a robot, put through the same steps against a virtual one."""
