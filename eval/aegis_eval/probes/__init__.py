"""VQA probes: versioned sets of questions that a checkpoint is asked."""
