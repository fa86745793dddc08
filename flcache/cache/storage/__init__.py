"""Where the files of a cache lie, and how one becomes whole under its name."""
