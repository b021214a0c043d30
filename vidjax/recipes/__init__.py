"""From a recipe to stages and models."""
