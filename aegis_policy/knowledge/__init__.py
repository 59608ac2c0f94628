"""What counts as knowledge, and how it is kept: one file a question.

`trainable` says which weights may move, `drift` how far activations are from the anchor, `protection` carries anchor
and projectors to the optimizer, `sources` where an anchor comes from.
"""
