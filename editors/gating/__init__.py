"""Gates: which inputs an edit applies to; features, classifiers, thresholds."""
