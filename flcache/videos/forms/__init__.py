"""The forms in which a list of videos may come: one file each."""
