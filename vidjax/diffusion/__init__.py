"""The diffusion process: schedule, loss weights, samplers, guidance."""
