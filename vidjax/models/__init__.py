"""Networks on videos `[b, t, h, w, c]`; an image is a video with t = 1."""
