"""What counts as knowledge, and how it is kept."""
