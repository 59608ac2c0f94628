"""MuJoCo environments with language-conditioned tasks and scripted experts."""
