"""From models to videos: sampling, editing, extending."""
