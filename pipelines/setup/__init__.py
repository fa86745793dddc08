"""From a configuration to what stages share: clips, encoder, predictor, source of latents, progress bar."""
