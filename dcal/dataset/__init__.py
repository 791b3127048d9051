"""Readers, augmentation, sampling and loading; everything between a dataset's folder and a batch."""
