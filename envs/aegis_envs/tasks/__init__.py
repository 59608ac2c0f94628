"""One file a task: instruction, scene, success."""
