"""Studies: what comes in, as images, cases, splits and their checks."""
