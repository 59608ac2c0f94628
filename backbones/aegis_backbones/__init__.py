"""Where the embedded backbones come from: procedural scenes, their questions, pre-training."""
