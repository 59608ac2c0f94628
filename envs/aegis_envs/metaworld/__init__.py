"""Meta-World's tasks as LeRobot's `metaworld` environment has them: faster to render, recordable, repeatable."""
