"""Augmenters, one file each: dataset in, augmented dataset out. The folder is the list of them."""
