"""The atlas: an image, its label map and its label table; how it is aligned to a scan."""
