"""What stands between a command and a driver: the SafetyFilter, workspace limits and watchdogs."""
