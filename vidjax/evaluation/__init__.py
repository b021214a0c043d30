"""Scores videos and presents runs."""
