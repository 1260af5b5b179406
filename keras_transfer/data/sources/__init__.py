"""Where images and labels come from, one file a source."""
