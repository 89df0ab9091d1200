"""Device drivers: robots, cameras, teleoperation devices and the worlds behind virtual ones."""
