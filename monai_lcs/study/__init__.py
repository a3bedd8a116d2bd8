"""What comes in: images, cases, splits and their checks."""
