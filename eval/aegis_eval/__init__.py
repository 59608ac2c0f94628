"""Success and retained knowledge, measured together."""
