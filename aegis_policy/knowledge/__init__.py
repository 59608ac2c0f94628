"""What counts as knowledge, and how it is kept: one file a question.

`retention` is what the policy holds of it. `trainable` says which weights may move, `reference` (and a file each under
`references`) what is compared with, `protection` carries anchor and projectors to the optimizer, `drift` measures how
far activations are from the anchor, `sources` says where an anchor comes from, `cotraining` brings VQA samples into the
batch.
"""
