"""AEGIS for LeRobot: vision-language-action policies that keep what their backbone knew."""
