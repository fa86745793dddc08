"""From latents to stored arrays and back."""
