"""What stands between a policy and an arm: `--robot.type=aegis_guarded` around any of LeRobot's robots.

joint_limits    targets within their ranges
workspace       the gripper within a box
watchdog        no motion that nobody asked for lately
"""
