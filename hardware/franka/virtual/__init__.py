"""A Franka arm that is not there: the far side of the FCI wire, with MuJoCo behind it."""
