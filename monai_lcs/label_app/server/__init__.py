"""The parts that need MONAI Label, see ``docs/monai_label.md`` for how it is installed."""
