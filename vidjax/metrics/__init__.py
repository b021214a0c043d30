"""How good is it: reconstruction, retrieval, motion."""
