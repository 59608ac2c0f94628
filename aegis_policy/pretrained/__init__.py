"""Starting from another LeRobot policy's checkpoint: its VLM, its action expert, and what its configuration fixes."""
