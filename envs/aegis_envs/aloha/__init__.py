"""gym-aloha's two tasks as LeRobot's `aloha` environment has them: solved by scripted experts, faster to render."""
