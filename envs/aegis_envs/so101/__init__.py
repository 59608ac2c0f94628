"""A simulated SO-101 follower behind LeRobot's robot interface: `--robot.type=aegis_so101_sim`."""
