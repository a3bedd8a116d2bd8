"""The MONAI Label app: it finds requested labels, takes new labels painted on the atlas, and trains on corrections.

``python -m monai_lcs.label_app DIR`` writes the app. Only :mod:`monai_lcs.label_app.server` needs MONAI Label.
"""
