"""The MONAI Label app: labels on request, new labels painted on the atlas, training on corrections.

``python -m monai_lcs.label_app DIR`` writes the app. What needs MONAI Label is in :mod:`monai_lcs.label_app.server`;
the rest works without it.
"""
