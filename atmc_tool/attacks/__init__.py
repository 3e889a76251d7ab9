"""Attacks, one file each: functions of a classifier, images and labels, for torch tensors and NumPy arrays alike."""
